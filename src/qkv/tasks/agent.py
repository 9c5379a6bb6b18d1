"""A model that acts, with everything it needs to: asked for a return, it plays an episode."""

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
from qkv.data.environments import Environment, make
from qkv.data.steps import Shown, foretold
from qkv.data.trajectories import Episode, Gathered, Numbers, Trajectories, read_npz
from qkv.decoding import Decoding, Greedy
from qkv.decoding.acting import Performance, perform
from qkv.decoding.options import Acting
from qkv.errors import CheckpointError, DataError
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap
from qkv.tasks import folders
from qkv.tasks.kinds import TASKS, Task
from qkv.tasks.runner import Answer, Looked, Steps

_AT_ONCE = 100


@dataclass(frozen=True)
class PlayedAnswer(Answer):
    """An answer that is an episode: what was asked for and achieved, and every step of it."""

    asked: float = 0.0
    achieved: float = 0.0
    seed: int = 0
    states: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Kept:
    """The part of a card that says where and how the model acts."""

    environment: str | None
    shown: Shown
    acting: Acting


@dataclass(frozen=True)
class Agent:
    """A model that acts: where, what it is shown of it, and how it chooses."""

    model: SequenceModel
    shown: Shown
    environment: str | None
    acting: Acting = Acting()
    task: Task = TASKS["act"]
    card: dict[str, Any] | None = None
    decoding: Decoding = Decoding(Greedy())  # there is one way to act

    def open(self) -> Environment:
        """Open the environment. Raises DataError if there is none, or it is another than the model learned about."""
        if self.environment is None:
            raise DataError(
                "this model has no environment and cannot play; give it recorded steps (episodes.npz), or train one "
                "with data.environment=NAME"
            )
        found = make(self.environment)
        if found.sizes != self.shown.sizes:
            raise DataError(
                f"{self.environment} has {found.sizes}, and the model learned about {self.shown.sizes}; take the "
                "version of the environment that the data came from"
            )
        return found

    def play(self, asked: Iterable[tuple[float, int]]) -> Iterator[Performance]:
        """Play an episode for each return that is asked for, with its seed; in their order."""
        rest = iter(asked)
        while some := list(islice(rest, _AT_ONCE)):
            yield from perform(self.model, self.shown, self.open, some, self.acting)

    def run(self, lines: Iterable[str], decoding: Decoding | None = None) -> Iterator[list[Answer]]:
        """Play an episode for each line, a return that is asked for; line n begins as seed n says. Of a line that names
        a recorded episode (see `look`), say the action of its last step instead, or of the one it names.

        Raises DataError for a line that is neither. An empty line answers itself.
        """
        if decoding is not None and not isinstance(decoding.method, Greedy):
            raise DataError("a beam or several answers were asked for; an agent plays one episode for each line")
        rest = enumerate(lines)
        while some := list(islice(rest, _AT_ONCE)):
            full = [(wanted(line), number) for number, line in some if line.strip() and not _recorded(line)]
            played = self.play(full)
            for _, line in some:
                if _recorded(line):
                    yield [self._foretold(*self._steps(line))]
                else:
                    yield [_answer(next(played)) if line.strip() else Answer("", 0.0, 0.0, ())]

    def read(self, lines: Sequence[str], before: int = 0) -> list[list[int]]:
        """Nothing but a look at each line; DataError, with its number, for one that is no return."""
        for number, line in enumerate(lines, before + 1):
            if line.strip() and not _recorded(line):
                wanted(line, f"line {number}: ")
        return []

    def unknown(self, line: str) -> list[str]:
        """Nothing: every number is known."""
        return []

    def unread(self, line: str) -> int:
        """None: every line is read whole (see `Runner.unread`)."""
        return 0

    def names(self, numbers: Sequence[int]) -> list[str]:
        """What to call its choices."""
        return [f"action {number}" for number in numbers]

    def look(self, line: str, answer: str | Answer | None = None, tap: Tap = NO_TAP) -> Looked:
        """Play an episode and look at every attention that led to one of its actions: the last, unless told.

        line: a return, or a return and a step, as in "500@120"; or a recorded episode, "episodes.npz", of several
        "episodes.npz#3", counted from 0, then "@" and a step, then a tab and the return that was asked for; what it
        brought, unless given. tap: one that intervenes in what is looked at, and not in what was played.
        Raises DataError for what is neither.
        """
        if answer is not None:
            raise DataError(f"answer={answer!r} was given; an agent plays by itself: leave it out")
        played, steps, last = self._steps(line)
        first = last - len(steps)
        trace = lens.look(self.model.eval(), steps[None], tap=tap)
        held = Steps({kind: torch.from_numpy(one[first:last]) for kind, one in self.held(played).items()}, first)
        named = self.positions(played, first, last)
        answer = self._foretold(played, steps, last) if _recorded(line) else _answer(played)
        return Looked(line, answer, named, [], replace(trace, logits=None), perceived=held)

    def _steps(self, line: str) -> tuple[Performance, Tensor, int]:
        """The episode that a line plays or names, its steps in sight as the model reads them, and the last's number."""
        line, _, asked = line.strip().partition("\t")
        name, mark, place = line.rpartition("@")
        name, place = (name, place) if mark else (line, "")
        [played] = [_read(name, asked, self.shown)] if _recorded(line) else self.play([(wanted(name), 0)])
        if place and not (place.strip().isdigit() and 1 <= int(place) <= played.length):
            raise DataError(f"step {place!r} was asked for; the episode has steps 1 to {played.length}")
        last = int(place) if place else played.length
        steps = torch.from_numpy(self.shown.steps(_alone(played, self.shown)))
        steps[:, 1] = torch.from_numpy(played.left) / self.shown.scale
        return played, steps[max(0, last - self.acting.context) : last], last

    @torch.no_grad()
    def _foretold(self, played: Performance, steps: Tensor, last: int) -> Answer:
        """The action that the model chooses in the last of some steps, whose own it does not see."""
        shape = self.model.spec
        assert isinstance(shape, spec.Transformer) and isinstance(shape.answers, spec.Actions)
        answer = foretold(self.model.eval()(steps[None]), self.shown.sizes.action)[0, -1].float()
        if self.shown.sizes.choices:
            chance, best = answer.log_softmax(-1).max(dim=-1)
            return Answer(str(int(best)), float(chance), float(chance), (int(best),))
        numbers = self.shown.taken(answer) if shape.answers.bounded else answer.numpy()
        return Answer(" ".join(f"{number:.6g}" for number in numbers.tolist()), 0.0, 0.0, ())

    def held(self, played: Performance) -> dict[str, Numbers]:
        """What each position of an episode holds, as it was, (steps, numbers) by kind, in their order within a step."""
        episode = played.episode
        states = episode.states if self.shown.shown is None else episode.states[:, list(self.shown.shown)]
        returns = {"return": played.left} if _reads(self.model).returns else {}
        found = {**returns, "state": states, "action": episode.actions}
        return {kind: one.reshape(played.length, -1).astype("float32") for kind, one in found.items()}

    def positions(self, played: Performance, first: int, last: int) -> list[str]:
        """What to call the positions of some steps: what is still to be reached, what is seen, what is done."""
        named = []
        for step in range(first, last):
            if _reads(self.model).returns:
                named.append(f"{step + 1}: return {played.left[step]:g}")
            state = played.episode.states[step]
            state = state if self.shown.shown is None else state[list(self.shown.shown)]
            named.append(f"{step + 1}: state {_marks(state) if self.shown.marks else _numbers(state)}")
            named.append(f"{step + 1}: action {_numbers(played.episode.actions[step])}")
        return named

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model folder, as `Runner.save` does."""
        kept = _Kept(self.environment, self.shown, self.acting)
        card = {**(self.card or {}), "task": self.task.name, **config.write(kept)}
        folders.write(Path(folder), self.model, card, {}, dtype)

    @classmethod
    def of_folder(cls, place: Path, opened: folders.Opened) -> Agent:
        """The agent of a folder. Raises CheckpointError or ConfigError for a card that does not fit the model."""
        card, where = dict(opened.card), f"{place}/card.json"
        kept = config.read(_Kept, {name: card.pop(name, None) for name in ("environment", "shown", "acting")}, where)
        reads = _reads(opened.model)
        if (kept.shown.state, kept.shown.sizes.action) != (reads.state, reads.action):
            raise CheckpointError(
                f"{where}: a step has {kept.shown.state} numbers of a state and {kept.shown.sizes.action} of an "
                f"action, and the model reads {reads.state} and {reads.action}; take both files from the same run"
            )
        return cls(opened.model, kept.shown, kept.environment, kept.acting, opened.task, card)


@dataclass(frozen=True)
class Achieved:
    """What came of asking for one return, over several episodes."""

    asked: float
    returns: tuple[float, ...]
    steps: float

    @property
    def mean(self) -> float:
        """The mean of the achieved returns."""
        return sum(self.returns) / len(self.returns)

    @property
    def deviation(self) -> float:
        """Their standard deviation, of a sample."""
        spread = sum((one - self.mean) ** 2 for one in self.returns)
        return math.sqrt(spread / (len(self.returns) - 1)) if len(self.returns) > 1 else 0.0

    @property
    def error(self) -> float:
        """Half of the 95% confidence interval of the mean, as if the mean were normally distributed."""
        return 1.96 * self.deviation / math.sqrt(len(self.returns))


@dataclass(frozen=True)
class Playing:
    """How an agent played: what it achieved for each return that was asked for."""

    achieved: tuple[Achieved, ...]
    episodes: int
    seed: int
    environment: str

    def __str__(self) -> str:
        lines = ["   asked   achieved  +- 95%   deviation    lowest   highest     steps"]
        lines += [
            f"{one.asked:8g} {one.mean:10.2f} {one.error:7.2f} {one.deviation:11.2f} {min(one.returns):9g} "
            f"{max(one.returns):9g} {one.steps:9.1f}"
            for one in self.achieved
        ]
        last = self.seed + self.episodes - 1
        return "\n".join(
            [*lines, f"{self.episodes:,} episodes of {self.environment} each, seeds {self.seed} to {last}"]
        )


def measure(agent: Agent, asked: Sequence[float] = (), episodes: int = 100, seed: int = 10_000) -> Playing:
    """Play episodes for each return that is asked for, the highest that the agent learned from unless told.

    They begin as the seeds from `seed` on say, the same for each return; validating uses those from 0 on.
    """
    if episodes < 1:
        raise DataError(f"episodes={episodes} was given; expected at least 1")
    found = []
    for one in asked or (agent.shown.best,):
        played = list(agent.play(zip([one] * episodes, count(seed), strict=False)))
        steps = sum(each.length for each in played) / len(played)
        found.append(Achieved(one, tuple(each.achieved for each in played), steps))
    return Playing(tuple(found), episodes, seed, agent.environment or "")


def asked_of(returns: Sequence[object], options: Sequence[str]) -> tuple[list[float], dict[str, int]]:
    """What `measure` is told on a command line: returns, and assignments to episodes or seed.

    Raises DataError for anything else.
    """
    told = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in ("episodes", "seed") or not value.isdigit():
            raise DataError(f"--with {option} was given; expected episodes=NUMBER or seed=NUMBER for a model that acts")
        told[name] = int(value)
    return [wanted(str(one)) for one in returns], told


def wanted(line: str, where: str = "") -> float:
    """The return that a line asks for; DataError if it is no number."""
    try:
        number = float(line)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{where}{line.strip()[:30]!r} was given; expected the return to ask for, a number such as 500, "
            "or recorded steps such as episodes.npz#3"
        )
    return number


def _recorded(line: str) -> bool:
    """Whether a line names a recorded episode."""
    return ".npz" in line


def _read(name: str, asked: str, shown: Shown) -> Performance:
    """An episode of a file; DataError for one that is not there, or does not fit the model."""
    path, mark, number = name.rpartition("#")
    path, number = (path, number) if mark else (name, "0")
    episodes = read_npz(Path(path)).episodes
    if not (number.isdigit() and int(number) < len(episodes)):
        raise DataError(f"episode {number!r} of {path} was asked for; it has episodes 0 to {len(episodes) - 1}")
    chosen = Gathered(path, [episodes[int(number)]]).together(shown.sizes)
    brought = wanted(asked) if asked.strip() else float(chosen.returns[0])
    return Performance(brought, 0, Episode(chosen.states, chosen.actions, chosen.rewards))


def _reads(model: SequenceModel) -> spec.Trajectory:
    """What a model of steps reads."""
    shape = model.spec
    assert isinstance(shape, spec.Transformer) and shape.encoder is not None
    assert isinstance(shape.encoder.reads, spec.Trajectory)  # it answers with actions
    return shape.encoder.reads


def _answer(played: Performance) -> PlayedAnswer:
    episode = played.episode
    text = f"achieved {played.achieved:g} in {played.length} steps"
    return PlayedAnswer(
        text,
        played.achieved,
        0.0,
        (),
        played.asked,
        played.achieved,
        played.seed,
        episode.states.tolist(),
        episode.actions.tolist(),
        episode.rewards.tolist(),
    )


def _alone(played: Performance, shown: Shown) -> Trajectories:
    """One episode as trajectories."""
    episode = played.episode
    return Trajectories(
        shown.sizes, episode.states, episode.actions, episode.rewards, torch.tensor([played.length]).numpy()
    )


def _marks(value: Any) -> str:
    """Which of some marks of 0 and 1 are set; their numbers where none is or they are others."""
    if len(value) > 1 and value.any() and set(value.tolist()) <= {0.0, 1.0}:
        return ",".join(str(place) for place in value.nonzero()[0].tolist())
    return _numbers(value)


def _numbers(value: Any) -> str:
    """Some numbers in short: the first four."""
    if value.ndim == 0:
        return f"{value:g}"
    return " ".join(f"{one:.3g}" for one in value[:4].tolist()) + (" ..." if len(value) > 4 else "")
