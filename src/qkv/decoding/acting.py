"""Acting: a model that chooses actions, step by step, with the last steps before its eyes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qkv import spec
from qkv.cache import KeyValues
from qkv.data.environments import Environment
from qkv.data.steps import Shown, foretold
from qkv.data.trajectories import Episode, Numbers
from qkv.decoding.options import Acting
from qkv.errors import SpecError
from qkv.models import SequenceModel
from qkv.models.transformer import Transformer

_AT_ONCE = 100
"""Episodes that are played side by side."""


class Eyes:
    """The last steps of some episodes side by side, and what the model answers to the newest.

    As long as all steps are seen, each is computed once and kept (keys and values); once the first is out of sight,
    whatever was computed from it is worth nothing, and all steps in sight are computed anew. Law: either way the
    answers are those of the steps in sight, computed at once.
    """

    def __init__(self, model: SequenceModel, context: int) -> None:
        if not isinstance(model, Transformer) or model.encoder is None:
            raise SpecError("this model reads no steps; give a Transformer whose encoder reads a Trajectory")
        reads = model.encoder.choice.reads
        if not isinstance(reads, spec.Trajectory):
            raise SpecError(f"this model reads {type(reads).__name__}; expected one that reads a Trajectory")
        self._model, self._encoder, self._context = model, model.encoder, context
        self._each, self._action, self.longest = reads.each, reads.action, reads.longest
        self._steps: Tensor | None = None
        kept = [cache.self_attention for cache in model.encoder.caches()]
        self._caches = model.encoder.caches() if all(isinstance(one, KeyValues) for one in kept) else None

    @torch.no_grad()
    def see(self, step: Tensor) -> Tensor:
        """Take a step in, (rows, width), whose action is yet to be chosen; return what is answered, (rows, action)."""
        before = self._steps
        steps = step[:, None] if before is None else torch.cat((before, step[:, None]), dim=1)
        if steps.shape[1] > self._context:
            steps, self._caches = steps[:, -self._context :], None
        self._steps = steps
        if self._caches is None:
            return foretold(self._model(steps), self._action)[:, -1]
        new = min(steps.shape[1], 2)  # the step before now has its action
        past = self._each * (steps.shape[1] - new)
        for cache in self._caches:
            assert isinstance(cache.self_attention, KeyValues)
            cache.self_attention.cut(past)
        hidden = self._encoder(steps[:, -new:], None, None, self._caches, past)
        return foretold(self._model.answer(hidden), self._action)[:, -1]

    def act(self, action: Tensor) -> None:
        """Say which action was taken, (rows, action)."""
        assert self._steps is not None
        self._steps[:, -1, -self._action :] = action

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows alone."""
        assert self._steps is not None
        self._steps = self._steps[rows]
        for cache in self._caches or ():
            cache.self_attention.reorder(rows)


@dataclass(frozen=True)
class Performance:
    """An episode that a model played when asked for a return; see `Episode` for what is in it."""

    asked: float
    seed: int
    episode: Episode

    @property
    def left(self) -> npt.NDArray[np.float32]:
        """What was still to be reached at each step, (steps,)."""
        rewards = self.episode.rewards.astype(np.float64)
        return (self.asked - np.cumsum(rewards) + rewards).astype(np.float32)

    @property
    def achieved(self) -> float:
        """The return in the end."""
        return float(self.episode.rewards.sum(dtype=np.float64))

    @property
    def length(self) -> int:
        """How many steps it took."""
        return len(self.episode.rewards)


def perform(
    model: SequenceModel,
    shown: Shown,
    make: Callable[[], Environment],
    asked: Sequence[tuple[float, int]],
    acting: Acting,
) -> Iterator[Performance]:
    """Play an episode for each return that is asked for, with its seed (Chen et al. 2021, section 3).

    What an action brings is taken off the return that is still to be reached. The seed decides how the episode begins
    and, where actions are drawn, which; but not which other episodes are played beside it.
    """
    rest = iter(asked)
    while some := list(islice(rest, _AT_ONCE)):
        yield from _together(model, shown, [make() for _ in some], some, acting)


class _Player:
    """One episode while it is played."""

    def __init__(self, environment: Environment, asked: float, seed: int) -> None:
        self.environment, self.asked, self.seed = environment, asked, seed
        self.random = np.random.default_rng(seed)
        self.left = asked
        self.states: list[Numbers] = [environment.reset(seed)]
        self.actions: list[int | npt.NDArray[np.float32]] = []
        self.rewards: list[float] = []

    def step(self, time: int, shown: Shown) -> Numbers:
        """What is before the model's eyes, (width,), the action yet to be chosen."""
        return np.concatenate(
            ([time, self.left / shown.scale], shown.states(self.states[-1]), np.zeros(shown.sizes.action))
        ).astype(np.float32)

    def choose(self, answer: Tensor, shown: Shown, acting: Acting) -> int | npt.NDArray[np.float32]:
        """An action, of what the model answers (action,)."""
        if not shown.sizes.choices:
            return shown.taken(answer)
        if acting.choose == "best":
            return int(answer.argmax())
        likely = answer.double().softmax(dim=-1).cumsum(dim=-1)
        return min(int((likely < self.random.random() * float(likely[-1])).sum()), shown.sizes.action - 1)

    def act(self, action: int | npt.NDArray[np.float32]) -> bool:
        """Take an action; return whether the episode is over."""
        state, reward, over = self.environment.step(action)
        self.actions.append(action)
        self.rewards.append(reward)
        self.left -= reward
        if not over:
            self.states.append(state)
        return over


def _together(
    model: SequenceModel,
    shown: Shown,
    environments: Sequence[Environment],
    asked: Sequence[tuple[float, int]],
    acting: Acting,
) -> list[Performance]:
    eyes = Eyes(model, acting.context)
    players = [_Player(world, *one) for world, one in zip(environments, asked, strict=True)]
    device = next(model.parameters()).device
    playing, time = list(players), 0
    longest = min(environments[0].longest, eyes.longest)
    while playing and time < longest:
        seen = np.stack([player.step(time, shown) for player in playing])
        answers = eyes.see(torch.from_numpy(seen).to(device)).float().cpu()
        chosen = [player.choose(answer, shown, acting) for player, answer in zip(playing, answers, strict=True)]
        eyes.act(torch.from_numpy(shown.actions(np.asarray(chosen))).to(device))
        going = [not player.act(action) for player, action in zip(playing, chosen, strict=True)]
        if not all(going):
            playing = [player for player, on in zip(playing, going, strict=True) if on]
            if playing:
                eyes.keep(torch.tensor(going, device=device).nonzero()[:, 0])
        time += 1
    return [
        Performance(
            player.asked,
            player.seed,
            Episode(
                np.stack(player.states[: len(player.actions)]),
                np.asarray(player.actions),
                np.asarray(player.rewards, dtype=np.float32),
            ),
        )
        for player in players
    ]
