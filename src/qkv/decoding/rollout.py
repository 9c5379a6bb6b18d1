"""Rollouts: a model plays episodes and chooses each action from the most recent steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qkv import spec
from qkv.cache import KeyValueCache
from qkv.data.trajectories.environments import Environment
from qkv.data.trajectories.episodes import Episode, FloatArray
from qkv.data.trajectories.windows import TrajectoryNormalizer, predicted_actions
from qkv.decoding.config import RolloutConfig
from qkv.errors import SpecError
from qkv.models import SequenceModel
from qkv.models.transformer import Transformer

_EPISODES_PER_BATCH = 100
"""Episodes that are played side by side."""


class RolloutContext:
    """The most recent steps of a batch of episodes, from which the model predicts the next actions.

    While an episode is shorter than the context, the keys and values of each step are computed once and cached. As soon
    as the first step leaves the context, the cache is no longer valid, and all steps of the context are computed again.
    Both ways give the predictions of a forward pass over the context.
    """

    def __init__(self, model: SequenceModel, context_length: int) -> None:
        if not isinstance(model, Transformer) or model.encoder is None:
            raise SpecError("this model reads no steps; give a Transformer whose encoder reads a Trajectory")
        reads = model.encoder.config.input
        if not isinstance(reads, spec.Trajectory):
            raise SpecError(f"this model reads {type(reads).__name__}; expected one that reads a Trajectory")
        self._model, self._encoder, self._context_length = model, model.encoder, context_length
        self._tokens_per_step, self._action_dims, self.max_episode_steps = (
            reads.positions_per_step,
            reads.action_dim,
            reads.max_episode_steps,
        )
        self._steps: Tensor | None = None
        kept = [cache.self_attention for cache in model.encoder.build_caches()]
        self._caches = model.encoder.build_caches() if all(isinstance(one, KeyValueCache) for one in kept) else None

    @torch.no_grad()
    def predict_action(self, step: Tensor) -> Tensor:
        """Append a step without its action, (rows, width); return the predicted actions, (rows, action)."""
        before = self._steps
        steps = step[:, None] if before is None else torch.cat((before, step[:, None]), dim=1)
        if steps.shape[1] > self._context_length:
            steps, self._caches = steps[:, -self._context_length :], None
        self._steps = steps
        if self._caches is None:
            return predicted_actions(self._model(steps), self._action_dims)[:, -1]
        new = min(steps.shape[1], 2)  # the step before now has its action
        past = self._tokens_per_step * (steps.shape[1] - new)
        for cache in self._caches:
            assert isinstance(cache.self_attention, KeyValueCache)
            cache.self_attention.crop(past)
        hidden = self._encoder(steps[:, -new:], None, None, self._caches, past)
        return predicted_actions(self._model.head(hidden), self._action_dims)[:, -1]

    def set_action(self, action: Tensor) -> None:
        """Say which action was taken, (rows, action)."""
        assert self._steps is not None
        self._steps[:, -1, -self._action_dims :] = action

    def select_rows(self, rows: Tensor) -> None:
        """Go on with some of the rows alone."""
        assert self._steps is not None
        self._steps = self._steps[rows]
        for cache in self._caches or ():
            cache.self_attention.reorder(rows)


@dataclass(frozen=True)
class Rollout:
    """An episode that a model played when asked for a return; see `Episode` for what is in it."""

    target_return: float
    seed: int
    episode: Episode

    @property
    def returns_to_go(self) -> npt.NDArray[np.float32]:
        """What was still to be reached at each step, (steps,)."""
        rewards = self.episode.rewards.astype(np.float64)
        return (self.target_return - np.cumsum(rewards) + rewards).astype(np.float32)

    @property
    def episode_return(self) -> float:
        """The return in the end."""
        return float(self.episode.rewards.sum(dtype=np.float64))

    @property
    def length(self) -> int:
        """How many steps it took."""
        return len(self.episode.rewards)


def rollout(
    model: SequenceModel,
    normalizer: TrajectoryNormalizer,
    make_environment: Callable[[], Environment],
    targets: Sequence[tuple[float, int]],
    config: RolloutConfig,
) -> Iterator[Rollout]:
    """Play an episode for each target return, with its seed (Chen et al. 2021, section 3).

    The reward of an action is subtracted from the target return. The seed determines how the episode begins and which
    actions are sampled; the other episodes of a batch do not change it.
    """
    rest = iter(targets)
    while some := list(islice(rest, _EPISODES_PER_BATCH)):
        yield from _rollout_batch(model, normalizer, [make_environment() for _ in some], some, config)


class _RunningEpisode:
    """One episode while it is played."""

    def __init__(self, environment: Environment, target_return: float, seed: int) -> None:
        self.environment, self.target_return, self.seed = environment, target_return, seed
        self.rng = np.random.default_rng(seed)
        self.return_to_go = target_return
        self.states: list[FloatArray] = [environment.reset(seed)]
        self.actions: list[int | npt.NDArray[np.float32]] = []
        self.rewards: list[float] = []

    def encode_step(self, time: int, normalizer: TrajectoryNormalizer) -> FloatArray:
        """Return the current step as the model reads it, (width,), with no action yet."""
        return np.concatenate(
            (
                [time, self.return_to_go / normalizer.return_scale],
                normalizer.normalize_states(self.states[-1]),
                np.zeros(normalizer.space.action_dim),
            )
        ).astype(np.float32)

    def select_action(
        self, prediction: Tensor, normalizer: TrajectoryNormalizer, config: RolloutConfig
    ) -> int | npt.NDArray[np.float32]:
        """Return the action for a prediction of the model, (action,)."""
        if not normalizer.space.discrete:
            return normalizer.decode_action(prediction)
        if config.action_selection == "greedy":
            return int(prediction.argmax())
        likely = prediction.double().softmax(dim=-1).cumsum(dim=-1)
        return min(int((likely < self.rng.random() * float(likely[-1])).sum()), normalizer.space.action_dim - 1)

    def apply_action(self, action: int | npt.NDArray[np.float32]) -> bool:
        """Take an action; return whether the episode is over."""
        state, reward, over = self.environment.step(action)
        self.actions.append(action)
        self.rewards.append(reward)
        self.return_to_go -= reward
        if not over:
            self.states.append(state)
        return over


def _rollout_batch(
    model: SequenceModel,
    normalizer: TrajectoryNormalizer,
    environments: Sequence[Environment],
    targets: Sequence[tuple[float, int]],
    config: RolloutConfig,
) -> list[Rollout]:
    context = RolloutContext(model, config.context_length)
    players = [_RunningEpisode(world, *one) for world, one in zip(environments, targets, strict=True)]
    device = next(model.parameters()).device
    playing, time = list(players), 0
    longest = min(environments[0].max_steps, context.max_episode_steps)
    while playing and time < longest:
        steps = np.stack([player.encode_step(time, normalizer) for player in playing])
        answers = context.predict_action(torch.from_numpy(steps).to(device)).float().cpu()
        chosen = [
            player.select_action(answer, normalizer, config) for player, answer in zip(playing, answers, strict=True)
        ]
        context.set_action(torch.from_numpy(normalizer.encode_actions(np.asarray(chosen))).to(device))
        going = [not player.apply_action(action) for player, action in zip(playing, chosen, strict=True)]
        if not all(going):
            playing = [player for player, on in zip(playing, going, strict=True) if on]
            if playing:
                context.select_rows(torch.tensor(going, device=device).nonzero()[:, 0])
        time += 1
    return [
        Rollout(
            player.target_return,
            player.seed,
            Episode(
                np.stack(player.states[: len(player.actions)]),
                np.asarray(player.actions),
                np.asarray(player.rewards, dtype=np.float32),
            ),
        )
        for player in players
    ]
