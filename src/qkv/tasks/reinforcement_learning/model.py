"""Decision Transformer agents: given a target return, an agent plays an episode in its environment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv import config, lens, spec
from qkv.data.trajectories.environments import Environment, make_environment
from qkv.data.trajectories.episodes import Episode, FloatArray, Trajectories, TrajectoryBuffer, read_npz
from qkv.data.trajectories.windows import TrajectoryNormalizer, predicted_actions
from qkv.decoding import DecodingConfig, Greedy
from qkv.decoding.config import RolloutConfig
from qkv.decoding.rollout import Rollout, rollout
from qkv.errors import CheckpointError, DataError
from qkv.lens import Trace
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap
from qkv.tasks import model_folder
from qkv.tasks.base import Answer, Capability, TaskModel
from qkv.tasks.registry import TASKS, Task
from qkv.tasks.text_generator import TrajectoryInput

_MAX_PARALLEL = 100


@dataclass(frozen=True)
class EpisodeAnswer(Answer):
    """An output that is an episode: the target return, the achieved return, and every step."""

    target_return: float = 0.0
    achieved_return: float = 0.0
    seed: int = 0
    states: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _AgentSettings:
    """The part of card.json that describes the environment and the normalization."""

    environment: str | None
    normalizer: TrajectoryNormalizer
    rollout: RolloutConfig


@dataclass(frozen=True, repr=False)
class DecisionTransformerAgent(TaskModel):
    """An agent: its environment, the normalization of its observations, and its choice of actions."""

    module: SequenceModel
    normalizer: TrajectoryNormalizer
    environment: str | None
    rollout: RolloutConfig = RolloutConfig()
    task: Task = TASKS["decision-transformer"]
    card: model_folder.Card = model_folder.Card()
    decoding: DecodingConfig = DecodingConfig(Greedy())  # there is only one way to act

    def make_environment(self) -> Environment:
        """Create the environment. Raises DataError if there is none, or its spaces differ from those of the
        training."""
        if self.environment is None:
            raise DataError(
                "this model has no environment and cannot play; give it recorded steps (episodes.npz), or train one "
                "with data.environment=NAME"
            )
        found = make_environment(self.environment)
        if found.space != self.normalizer.space:
            raise DataError(
                f"{self.environment} has {found.space}, but the model was trained on {self.normalizer.space}; use the "
                "version of the environment that the data came from"
            )
        return found

    def play_episodes(self, targets: Iterable[tuple[float, int]]) -> Iterator[Rollout]:
        """Play an episode for each target return, with its seed, and yield them in order."""
        rest = iter(targets)
        while some := list(islice(rest, _MAX_PARALLEL)):
            yield from rollout(self.module, self.normalizer, self.make_environment, some, self.rollout)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """It acts in an environment."""
        return frozenset({"rollout"})

    def predict_ranked(self, lines: Iterable[str], decoding: DecodingConfig | None = None) -> Iterator[list[Answer]]:
        """Play an episode for each line, which is the target return; line n is played with seed n.

        For a line that names a recorded episode (see `look`), the answer is the action at its last step, or at the step
        that the line names. Raises DataError for any other line. An empty line has an empty answer.
        """
        if decoding is not None and not isinstance(decoding.method, Greedy):
            raise DataError("a beam or several answers were requested; an agent plays one episode for each line")
        rest = enumerate(lines)
        while some := list(islice(rest, _MAX_PARALLEL)):
            full = [
                (parse_target_return(line), number)
                for number, line in some
                if line.strip() and not _is_recorded_episode(line)
            ]
            played = self.play_episodes(full)
            for _, line in some:
                if _is_recorded_episode(line):
                    yield [self._predict_action(*self._load_steps(line))]
                else:
                    yield [_to_answer(next(played)) if line.strip() else Answer("", 0.0, 0.0, ())]

    def validate_inputs(self, lines: Sequence[str], n_read: int = 0) -> list[list[int]]:
        """Check each line. Raises DataError, with its number, for one that is not a return."""
        for number, line in enumerate(lines, n_read + 1):
            if line.strip() and not _is_recorded_episode(line):
                parse_target_return(line, f"line {number}: ")
        return []

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """Return the names of actions."""
        return [f"action {number}" for number in ids]

    def look(self, line: str, answer: str | Answer | None = None, tap: Tap = NO_TAP) -> Trace:
        """Play an episode and trace every attention that led to one of its actions, by default the last.

        line: a return, or a return and a step, as in "500@120"; or a recorded episode, "episodes.npz", one of several
        "episodes.npz#3", counted from 0, then "@" and a step, then a tab and the target return, by default the achieved
        one.
        tap: an edit of the traced step, not of the steps that were played. Raises DataError for any other line.
        """
        if answer is not None:
            raise DataError(f"answer={answer!r} was given; an agent plays by itself: leave it out")
        played, steps, last = self._load_steps(line)
        first = last - len(steps)
        trace = lens.look(self.module.eval(), steps[None], tap=tap)
        held = TrajectoryInput(
            {kind: torch.from_numpy(one[first:last]) for kind, one in self.position_values(played).items()}, first
        )
        named = self.position_labels(played, first, last)
        answer = self._predict_action(played, steps, last) if _is_recorded_episode(line) else _to_answer(played)
        return replace(
            trace, logits=None, text=line, answer=answer, source_tokens=named, input=held, token_names=self.token_names
        )

    def _load_steps(self, line: str) -> tuple[Rollout, Tensor, int]:
        """Return the episode of a line, the steps in the context as model inputs, and the index of the last step."""
        line, _, target_return = line.strip().partition("\t")
        name, mark, place = line.rpartition("@")
        name, place = (name, place) if mark else (line, "")
        [played] = (
            [_read_episode(name, target_return, self.normalizer)]
            if _is_recorded_episode(line)
            else self.play_episodes([(parse_target_return(name), 0)])
        )
        if place and not (place.strip().isdigit() and 1 <= int(place) <= played.length):
            raise DataError(f"step {place!r} was requested; the episode has steps 1 to {played.length}")
        last = int(place) if place else played.length
        steps = torch.from_numpy(self.normalizer.encode_steps(_to_trajectories(played, self.normalizer)))
        steps[:, 1] = torch.from_numpy(played.returns_to_go) / self.normalizer.return_scale
        return played, steps[max(0, last - self.rollout.context_length) : last], last

    @torch.no_grad()
    def _predict_action(self, rollout: Rollout, steps: Tensor, last: int) -> Answer:
        """Predict the action of the last of some steps, whose own action the model does not see."""
        shape = self.module.spec
        assert isinstance(shape, spec.Transformer) and isinstance(shape.head, spec.Actions)
        answer = predicted_actions(self.module.eval()(steps[None]), self.normalizer.space.action_dim)[0, -1].float()
        if self.normalizer.space.discrete:
            chance, best = answer.log_softmax(-1).max(dim=-1)
            return Answer(str(int(best)), float(chance), float(chance), (int(best),))
        numbers = self.normalizer.decode_action(answer) if shape.head.bounded else answer.numpy()
        return Answer(" ".join(f"{number:.6g}" for number in numbers.tolist()), 0.0, 0.0, ())

    def position_values(self, rollout: Rollout) -> dict[str, FloatArray]:
        """Return the values at each position of an episode, (steps, numbers) by kind, in their order within a step."""
        episode = rollout.episode
        states = (
            episode.states
            if self.normalizer.observed_dims is None
            else episode.states[:, list(self.normalizer.observed_dims)]
        )
        returns = {"return": rollout.returns_to_go} if _trajectory_spec(self.module).return_conditioned else {}
        found = {**returns, "state": states, "action": episode.actions}
        return {kind: one.reshape(rollout.length, -1).astype("float32") for kind, one in found.items()}

    def position_labels(self, rollout: Rollout, first: int, last: int) -> list[str]:
        """Return the labels of the positions of some steps: return-to-go, state, action."""
        named = []
        for step in range(first, last):
            if _trajectory_spec(self.module).return_conditioned:
                named.append(f"{step + 1}: return {rollout.returns_to_go[step]:g}")
            state = rollout.episode.states[step]
            state = state if self.normalizer.observed_dims is None else state[list(self.normalizer.observed_dims)]
            named.append(
                f"{step + 1}: state {_format_flags(state) if self.normalizer.is_binary else _format_numbers(state)}"
            )
            named.append(f"{step + 1}: action {_format_numbers(rollout.episode.actions[step])}")
        return named

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model folder, as `TextGenerator.save` does."""
        kept = _AgentSettings(self.environment, self.normalizer, self.rollout)
        card = {**self.card.to_json(), "task": self.task.name, **config.to_dict(kept)}
        model_folder.write_model_folder(Path(folder), self.module, card, {}, dtype)

    @classmethod
    def from_folder(cls, folder: Path, loaded: model_folder.LoadedFolder) -> DecisionTransformerAgent:
        """Build the agent of a folder. Raises CheckpointError or ConfigError for a card that does not fit the model."""
        where, kept = f"{folder}/card.json", loaded.read_settings(_AgentSettings)
        reads = _trajectory_spec(loaded.model)
        if (kept.normalizer.state_dim, kept.normalizer.space.action_dim) != (reads.state_dim, reads.action_dim):
            raise CheckpointError(
                f"{where}: a step has {kept.normalizer.state_dim} numbers of a state and "
                f"{kept.normalizer.space.action_dim} of an "
                f"action, and the model reads {reads.state_dim} and {reads.action_dim}; take both files from the "
                f"same run"
            )
        return cls(loaded.model, kept.normalizer, kept.environment, kept.rollout, loaded.task, loaded.card)


@dataclass(frozen=True)
class ReturnStatistics:
    """The achieved returns for one target return, over several episodes."""

    target_return: float
    returns: tuple[float, ...]
    mean_steps: float

    @property
    def mean(self) -> float:
        """The mean of the achieved returns."""
        return sum(self.returns) / len(self.returns)

    @property
    def std(self) -> float:
        """The sample standard deviation of the achieved returns."""
        spread = sum((one - self.mean) ** 2 for one in self.returns)
        return math.sqrt(spread / (len(self.returns) - 1)) if len(self.returns) > 1 else 0.0

    @property
    def confidence_95(self) -> float:
        """Half of the 95% confidence interval of the mean, for normally distributed returns."""
        return 1.96 * self.std / math.sqrt(len(self.returns))


@dataclass(frozen=True)
class RolloutReport:
    """The results of an agent for each target return."""

    statistics: tuple[ReturnStatistics, ...]
    episodes: int
    seed: int
    environment: str

    def __str__(self) -> str:
        lines = ["   asked   achieved  +- 95%   deviation    lowest   highest     steps"]
        lines += [
            f"{one.target_return:8g} {one.mean:10.2f} {one.confidence_95:7.2f} {one.std:11.2f} {min(one.returns):9g} "
            f"{max(one.returns):9g} {one.mean_steps:9.1f}"
            for one in self.statistics
        ]
        last = self.seed + self.episodes - 1
        return "\n".join(
            [*lines, f"{self.episodes:,} episodes of {self.environment} each, seeds {self.seed} to {last}"]
        )


def evaluate_agent(
    agent: DecisionTransformerAgent, target_returns: Sequence[float] = (), episodes: int = 100, seed: int = 10_000
) -> RolloutReport:
    """Play episodes for each target return, by default the highest in the training data.

    Episode i starts from seed + i for every target return; validation uses seeds from 0.
    """
    if episodes < 1:
        raise DataError(f"episodes={episodes} was given; expected at least 1")
    found = []
    for one in target_returns or (agent.normalizer.max_return,):
        played = list(agent.play_episodes(zip([one] * episodes, count(seed), strict=False)))
        steps = sum(each.length for each in played) / len(played)
        found.append(ReturnStatistics(one, tuple(each.episode_return for each in played), steps))
    return RolloutReport(tuple(found), episodes, seed, agent.environment or "")


def parse_evaluation_options(returns: Sequence[object], options: Sequence[str]) -> tuple[list[float], dict[str, int]]:
    """Parse command-line options: target returns, and assignments to episodes or seed.

    Raises DataError for anything else.
    """
    values = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in ("episodes", "seed") or not value.isdigit():
            raise DataError(
                f"--option {option} was given; expected episodes=NUMBER or seed=NUMBER for a Decision Transformer"
            )
        values[name] = int(value)
    return [parse_target_return(str(one)) for one in returns], values


def parse_target_return(line: str, where: str = "") -> float:
    """Parse the target return in a line. Raises DataError if it is not a number."""
    try:
        number = float(line)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{where}{line.strip()[:30]!r} was given; expected a target return, a number such as 500, "
            "or recorded steps such as episodes.npz#3"
        )
    return number


def _is_recorded_episode(line: str) -> bool:
    """Return whether a line names a recorded episode."""
    return ".npz" in line


def _read_episode(name: str, target_return: str, normalizer: TrajectoryNormalizer) -> Rollout:
    """Read an episode of a file. Raises DataError for one that does not exist or does not fit the model."""
    path, mark, number = name.rpartition("#")
    path, number = (path, number) if mark else (name, "0")
    episodes = read_npz(Path(path)).episodes
    if not (number.isdigit() and int(number) < len(episodes)):
        raise DataError(f"episode {number!r} of {path} was requested; it has episodes 0 to {len(episodes) - 1}")
    chosen = TrajectoryBuffer(path, [episodes[int(number)]]).to_trajectories(normalizer.space)
    episode_return = parse_target_return(target_return) if target_return.strip() else float(chosen.returns[0])
    return Rollout(episode_return, 0, Episode(chosen.states, chosen.actions, chosen.rewards))


def _trajectory_spec(model: SequenceModel) -> spec.Trajectory:
    """Return the input of a model of trajectories."""
    shape = model.spec
    assert isinstance(shape, spec.Transformer) and shape.encoder is not None
    assert isinstance(shape.encoder.input, spec.Trajectory)  # its head predicts actions
    return shape.encoder.input


def _to_answer(rollout: Rollout) -> EpisodeAnswer:
    episode = rollout.episode
    text = f"achieved {rollout.episode_return:g} in {rollout.length} steps"
    return EpisodeAnswer(
        text,
        rollout.episode_return,
        0.0,
        (),
        rollout.target_return,
        rollout.episode_return,
        rollout.seed,
        episode.states.tolist(),
        episode.actions.tolist(),
        episode.rewards.tolist(),
    )


def _to_trajectories(rollout: Rollout, normalizer: TrajectoryNormalizer) -> Trajectories:
    """Convert one episode to trajectories."""
    episode = rollout.episode
    return Trajectories(
        normalizer.space, episode.states, episode.actions, episode.rewards, torch.tensor([rollout.length]).numpy()
    )


def _format_flags(value: Any) -> str:
    """Format the indices of the set flags; the numbers themselves if none is set or they are not flags."""
    if len(value) > 1 and value.any() and set(value.tolist()) <= {0.0, 1.0}:
        return ",".join(str(place) for place in value.nonzero()[0].tolist())
    return _format_numbers(value)


def _format_numbers(value: Any) -> str:
    """Format the first four numbers."""
    if value.ndim == 0:
        return f"{value:g}"
    return " ".join(f"{one:.3g}" for one in value[:4].tolist()) + (" ..." if len(value) > 4 else "")
