"""Episodes of states, actions and rewards, from files or from an environment.

Two file formats are supported. `.npz` of arrays with one entry for each step, episode after episode:

    observations  (steps, ...) numbers, or (steps,) integers that number the states
    actions       (steps,) integers that number the actions, or (steps, action) numbers
    rewards       (steps,), the reward of each action
    terminals, timeouts  (steps,), one of them or both: true where an episode ended, or ran out of time

as in D4RL (Fu et al. 2020), and the HDF5 of Minari, with a group for each episode (needs the extra `act`).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from qkv.errors import ConfigError, DataError, MissingExtraError

FloatArray = npt.NDArray[np.float32]
ActionArray = npt.NDArray[np.int64] | npt.NDArray[np.float32]

_MAX_BROKEN_FRACTION = 0.01
"""The fraction of episodes that may be broken before the whole file is refused."""
_MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Rollouts:
    """Episodes that are generated in an environment of gymnasium (extra `act`), or in `key-to-door`.

    behaviour: "mixed", each episode has its own policy, good or bad: a random one or, if states are discrete, one
    trained on the episodes before (see `qkv.data.trajectories.environments.collect_episodes`); "random", every action
    is
    drawn uniformly.
    """

    environment: str
    episodes: int = 1000
    policy: Literal["mixed", "random"] = "mixed"
    seed: int = 1

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError([f"episodes={self.episodes}: expected at least 1"])


@dataclass(frozen=True)
class Npz:
    """A file of arrays in the format above."""

    path: Path


@dataclass(frozen=True)
class Minari:
    """A Minari data set: its folder, or its main_data.hdf5."""

    path: Path


TrajectorySource: TypeAlias = Rollouts | Npz | Minari


@dataclass(frozen=True)
class SpaceSpec:
    """The sizes of states and actions: how many numbers a state has, and `action_dim` choices, or numbers between `low`
    and
    `high`.
    """

    state_dim: int
    action_dim: int
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def discrete(self) -> bool:
        """Whether an action is a choice rather than numbers."""
        return not self.low


@dataclass(frozen=True)
class Episode:
    """One episode: states (steps, state), actions (steps,) or (steps, action), rewards (steps,)."""

    states: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    rewards: npt.NDArray[Any]

    def find_problem(self) -> str | None:
        """Return what is wrong with the episode; None if nothing is."""
        steps = len(self.actions)
        if not steps:
            return "has no step"
        if not len(self.states) == len(self.rewards) == steps:
            return f"has {len(self.states)} states, {steps} actions and {len(self.rewards)} rewards"
        for name in ("states", "actions", "rewards"):
            if not np.isfinite(getattr(self, name)).all():
                return f"has {name} that are no finite numbers"
        return None


@dataclass(frozen=True)
class Trajectories:
    """Concatenated episodes; `ends` (episodes,) is the index after the last step of each.

    states (steps, state), rewards (steps,), actions (steps,) int64 if they are choices, else (steps, action).
    """

    space: SpaceSpec
    states: FloatArray
    actions: ActionArray
    rewards: FloatArray
    ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first step of each episode."""
        return np.concatenate(([0], self.ends[:-1])).astype(np.int64)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of steps in each episode."""
        return self.ends - self.starts

    @property
    def returns(self) -> FloatArray:
        """The total reward of each episode."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.starts).astype(np.float32)

    def compute_returns_to_go(self) -> FloatArray:
        """Compute the sum of the rewards of each step and all later ones in its episode, (steps,) (Chen et al. 2021,
        section 3)."""
        passed = np.cumsum(self.rewards.astype(np.float64))
        whole = np.repeat(passed[self.ends - 1], self.lengths)
        return (whole - passed + self.rewards).astype(np.float32)

    def select(self, episodes: Sequence[int] | npt.NDArray[np.int64]) -> Trajectories:
        """Select some episodes."""
        starts = self.starts
        steps = np.concatenate([np.arange(starts[one], self.ends[one]) for one in episodes])
        ends = np.cumsum(self.lengths[np.asarray(episodes, dtype=np.int64)])
        return Trajectories(self.space, self.states[steps], self.actions[steps], self.rewards[steps], ends)

    def save(self, path: Path) -> None:
        """Write the episodes as an `.npz` that `read_npz` reads."""
        over = np.zeros(len(self.rewards), dtype=bool)
        over[self.ends - 1] = True
        np.savez_compressed(path, observations=self.states, actions=self.actions, rewards=self.rewards, terminals=over)


@dataclass
class TrajectoryBuffer:
    """Valid episodes, and the problems of those that were left out."""

    name: str
    episodes: list[Episode] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def from_episodes(cls, name: str, episodes: Iterable[Episode]) -> TrajectoryBuffer:
        """Collect valid episodes. Raises DataError if more than 1% are broken, or none is valid."""
        found = cls(name)
        for number, episode in enumerate(episodes):
            problem = episode.find_problem()
            if problem is None:
                found.episodes.append(episode)
            else:
                found.problems.append(f"episode {number} {problem}")
        total = len(found.episodes) + len(found.problems)
        if not found.episodes or len(found.problems) > _MAX_BROKEN_FRACTION * total:
            raise DataError(
                f"{name}: {len(found.problems):,} of {total:,} episodes cannot be used"
                + (f" ({'; '.join(found.problems[:_MAX_EXAMPLES])})" if found.problems else "")
                + f"; expected at most {_MAX_BROKEN_FRACTION:.0%}, and at least one valid one: repair the file"
            )
        return found

    @property
    def notes(self) -> list[str]:
        """Notes on the episodes that were left out."""
        if not self.problems:
            return []
        return [f"{self.name}: left out {len(self.problems):,} episodes: {'; '.join(self.problems[:_MAX_EXAMPLES])}"]

    def to_trajectories(self, space: SpaceSpec | None = None) -> Trajectories:
        """Concatenate all episodes, optionally for an environment of these sizes. Raises DataError if they do not
        fit it."""
        widths = {(one.states.shape[1:], one.actions.shape[1:], one.actions.dtype.kind) for one in self.episodes}
        if len(widths) > 1:
            shapes = [f"{state} and {action}" for state, action, _ in sorted(widths, key=str)[:_MAX_EXAMPLES]]
            raise DataError(
                f"{self.name}: the episodes differ in the shape of a state or an action: {', '.join(shapes)}; "
                "expected the same shapes in all episodes"
            )
        states = np.concatenate([one.states for one in self.episodes])
        actions = np.concatenate([one.actions for one in self.episodes])
        rewards = np.concatenate([one.rewards for one in self.episodes]).astype(np.float32)
        ends = np.cumsum([len(one.actions) for one in self.episodes])
        if space is None:
            space = _infer_space(states, actions)
        return Trajectories(
            space, _convert_states(states, space, self.name), _convert_actions(actions, space, self.name), rewards, ends
        )


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """Concatenate several sets of episodes. Raises DataError if they differ in their states or actions."""
    sizes = parts[0].space
    for part in parts[1:]:
        if part.space != sizes:
            raise DataError(f"the sources of episodes differ: {sizes} and {part.space}; expected one environment")
    offsets = np.cumsum([0, *(len(part.rewards) for part in parts)])
    return Trajectories(
        sizes,
        np.concatenate([part.states for part in parts]),
        np.concatenate([part.actions for part in parts]),
        np.concatenate([part.rewards for part in parts]),
        np.concatenate([part.ends + offset for part, offset in zip(parts, offsets, strict=False)]),
    )


def read_npz(path: Path) -> TrajectoryBuffer:
    """Read the arrays of an `.npz` in the format above.

    Raises DataError for a file that is missing or damaged, lacks an array or has arrays of different lengths, or whose
    episodes are broken.
    """
    required = ("observations", "actions", "rewards")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not a complete .npz file: write it with numpy.savez, or copy it again")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*required, "terminals", "timeouts") if name in file}
            known = list(file)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; expected an .npz of trajectories: check the path") from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an .npz of plain arrays ({error}): write it again") from error
    missing = [name for name in required if name not in arrays]
    if missing or not arrays.keys() & {"terminals", "timeouts"}:
        raise DataError(
            f"{path} has the arrays {', '.join(known)}; expected {', '.join(required)}, and terminals or timeouts that "
            "are true where an episode ends"
        )
    lengths = {name: len(np.atleast_1d(array)) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        lengths_text = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise DataError(
            f"{path}: its arrays differ in length ({lengths_text}); expected one entry for each step in all"
        )
    over = np.zeros(lengths["actions"], dtype=bool)
    for name in ("terminals", "timeouts"):
        over |= arrays.get(name, over).reshape(len(over), -1)[:, 0].astype(bool)
    ends = [*(np.flatnonzero(over) + 1).tolist()]
    ends += [] if ends and ends[-1] == len(over) else [len(over)]

    def episodes() -> Iterator[Episode]:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            yield Episode(*(_check_numeric(arrays[name][start:end], path) for name in required))

    return TrajectoryBuffer.from_episodes(str(path), episodes())


def read_minari(path: Path) -> TrajectoryBuffer:
    """Read the HDF5 of a Minari data set: its folder, or the file itself.

    The parts of structured observations are concatenated in the order of their names. The observation after the last
    action is left out. Raises DataError if something is missing, damaged or broken, and MissingExtraError without h5py.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("reading Minari's HDF5 needs h5py: pip install 'qkv[act]'") from error
    place = next((one for one in (path / "data" / "main_data.hdf5", path / "main_data.hdf5") if one.is_file()), path)
    if not place.is_file():
        raise DataError(f"{path} contains no main_data.hdf5; expected the folder of a Minari data set, or that file")

    def episodes(file: Any) -> Iterator[Episode]:
        names = sorted((name for name in file if name.startswith("episode_")), key=lambda name: int(name[8:]))
        for name in names:
            group = file[name]
            lacking = [one for one in ("observations", "actions", "rewards") if one not in group]
            if lacking:
                raise DataError(f"{place}: {name} lacks {', '.join(lacking)}; expected the layout of Minari")
            states, actions = _read_parts(group["observations"], place), _read_parts(group["actions"], place)
            rewards = _check_numeric(np.asarray(group["rewards"]), place)
            yield Episode(states[: len(actions)] if len(states) == len(actions) + 1 else states, actions, rewards)

    try:
        with h5py.File(place, "r") as file:
            return TrajectoryBuffer.from_episodes(str(place), episodes(file))
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{place} cannot be read as HDF5 ({error}): copy it again") from error


def _read_parts(found: Any, path: Path) -> npt.NDArray[Any]:
    """Read an array, or concatenate those of a group."""
    if not isinstance(found, Mapping) and not hasattr(found, "keys"):
        return _check_numeric(np.asarray(found), path)
    parts = [_read_parts(found[name], path) for name in sorted(found)]
    return np.concatenate([one.reshape(len(one), -1).astype(np.float32) for one in parts], axis=1)


def _check_numeric(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: an array of {array.dtype} was found; expected numbers")
    return array


def _infer_space(states: npt.NDArray[Any], actions: npt.NDArray[Any]) -> SpaceSpec:
    """Infer sizes from the data: integers in one column are discrete, and are counted."""
    numbered = states.ndim == 1 and states.dtype.kind in "biu"
    state = int(states.max()) + 1 if numbered else math.prod(states.shape[1:])
    if actions.dtype.kind in "biu" and actions[0].size == 1:
        return SpaceSpec(state, int(actions.max()) + 1)
    flat = actions.reshape(len(actions), -1).astype(np.float64)
    low, high = flat.min(axis=0), flat.max(axis=0)
    return SpaceSpec(state, flat.shape[1], tuple(low.tolist()), tuple(np.where(high > low, high, low + 1).tolist()))


def _convert_states(states: npt.NDArray[Any], space: SpaceSpec, name: str) -> FloatArray:
    if states.ndim == 1 and states.dtype.kind in "biu":
        if states.min() < 0 or states.max() >= space.state_dim:
            raise DataError(
                f"{name}: states are numbered {states.min()} to {states.max()}; expected below {space.state_dim}"
            )
        return one_hot(states, space.state_dim)
    flat = states.reshape(len(states), -1).astype(np.float32)
    if flat.shape[1] != space.state_dim:
        raise DataError(f"{name}: a state has {flat.shape[1]} numbers; the environment's has {space.state_dim}")
    return flat


def _convert_actions(actions: npt.NDArray[Any], space: SpaceSpec, name: str) -> ActionArray:
    if not space.discrete:
        flat = actions.reshape(len(actions), -1).astype(np.float32)
        if flat.shape[1] != space.action_dim:
            raise DataError(f"{name}: an action has {flat.shape[1]} numbers; the environment's has {space.action_dim}")
        return flat
    if actions.dtype.kind not in "biu" or actions[0].size != 1:
        raise DataError(f"{name}: actions are {actions.dtype} {actions.shape[1:]}; the environment numbers its own")
    chosen = actions.reshape(-1).astype(np.int64)
    if chosen.min() < 0 or chosen.max() >= space.action_dim:
        raise DataError(
            f"{name}: actions are numbered {chosen.min()} to {chosen.max()}; expected below {space.action_dim}"
        )
    return chosen


def one_hot(numbers: npt.ArrayLike, n_classes: int) -> FloatArray:
    """Encode numbers (...) below `n_classes` as (..., n_classes), 1 at the number and 0 elsewhere."""
    table: FloatArray = np.eye(n_classes, dtype=np.float32)
    marked: FloatArray = table[np.asarray(numbers)]
    return marked
