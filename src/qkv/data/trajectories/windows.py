"""Trajectories as the inputs and labels of a model: windows of steps in batches."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qkv.data.batch import IGNORE_INDEX, Batch
from qkv.data.trajectories.episodes import FloatArray, SpaceSpec, Trajectories, one_hot
from qkv.errors import ConfigError, DataError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrajectoryNormalizer:
    """The normalization of states and returns, fitted to trajectories.

    observed_dims: the dimensions of a state that the model receives; all of them if None. mean, std: of these
    dimensions,
    for measurements, not for zeros and ones. return_scale: the divisor of returns. max_return: the highest return in
    the
    data.
    """

    space: SpaceSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    return_scale: float
    max_return: float
    observed_dims: tuple[int, ...] | None = None

    @property
    def state_dim(self) -> int:
        """The number of state dimensions that the model receives."""
        return len(self.mean)

    @property
    def is_binary(self) -> bool:
        """Whether every state in the training data consisted of zeros and ones, such as one-hot vectors."""
        return not any(self.mean) and all(one == 1 for one in self.std)

    @property
    def step_dim(self) -> int:
        """The size of an encoded step: its time, its return, its state and its action."""
        return 2 + self.state_dim + self.space.action_dim

    @classmethod
    def fit(cls, data: Trajectories, observed_dims: Sequence[int] | None = None) -> TrajectoryNormalizer:
        """Fit the statistics to trajectories. Raises ConfigError for dimensions that a state does not have."""
        if observed_dims is not None and (
            not observed_dims or not all(0 <= one < data.space.state_dim for one in observed_dims)
        ):
            raise ConfigError(
                [f"data.observed_dims={list(observed_dims)}: a state has the numbers 0 to {data.space.state_dim - 1}"]
            )
        states = data.states if observed_dims is None else data.states[:, list(observed_dims)]
        marks = ((states == 0) | (states == 1)).all(axis=0)
        mean = np.where(marks, 0, states.mean(axis=0, dtype=np.float64))
        deviation = np.where(marks, 1, states.std(axis=0, dtype=np.float64) + 1e-6)
        returns = data.returns
        scale = float(np.abs(returns).max()) or 1.0
        chosen = None if observed_dims is None else tuple(observed_dims)
        return cls(data.space, tuple(mean.tolist()), tuple(deviation.tolist()), scale, float(returns.max()), chosen)

    def normalize_states(self, states: FloatArray) -> FloatArray:
        """Normalize states (..., state) -> (..., state_dim)."""
        picked = states if self.observed_dims is None else states[..., list(self.observed_dims)]
        mean, deviation = (np.asarray(one, dtype=np.float32) for one in (self.mean, self.std))
        return (picked - mean) / deviation

    def encode_actions(self, actions: npt.NDArray[np.int64] | FloatArray) -> FloatArray:
        """Encode actions -> (..., action): one-hot for choices; for numbers, -1 at the lowest and 1 at the highest."""
        if self.space.discrete:
            return one_hot(actions, self.space.action_dim)
        low, high = self._bounds()
        scaled: FloatArray = (2 * (actions - low) / (high - low) - 1).astype(np.float32)
        return scaled

    def decode_action(self, prediction: Tensor) -> FloatArray:
        """Decode the predicted action (..., action), in the range of the environment's numbers."""
        low, high = self._bounds()
        found: FloatArray = prediction.clamp(-1, 1).cpu().numpy()
        taken: FloatArray = (low + (high - low) * (found + 1) / 2).astype(np.float32)
        return taken

    def _bounds(self) -> tuple[FloatArray, FloatArray]:
        return np.asarray(self.space.low, dtype=np.float32), np.asarray(self.space.high, dtype=np.float32)

    def encode_steps(self, data: Trajectories) -> FloatArray:
        """Encode all steps as the model reads them, (steps, step_dim)."""
        starts = np.repeat(data.starts, data.lengths)
        times = np.arange(len(data.rewards)) - starts
        returns = data.compute_returns_to_go() / self.return_scale
        columns = (
            times[:, None],
            returns[:, None],
            self.normalize_states(data.states),
            self.encode_actions(data.actions),
        )
        return np.concatenate(columns, axis=1).astype(np.float32)


class StepWindows:
    """Episodes cut into windows of up to `context` steps, differently in each epoch.

    Windows are numbered through all epochs, as in `qkv.data.text.packing`. An epoch contains each step once: an episode
    that fits is one window, and a longer one is cut at places that depend only on (seed, epoch); the last window of an
    episode may repeat steps.

    With a `temperature` an epoch has as many windows, drawn in proportion to exp(return / temperature) of their
    episodes, with returns scaled to 0 for the lowest and 1 for the highest (Hong et al. 2023, "Harnessing mixed offline
    reinforcement learning datasets via trajectory weighting"): some several times, others in few epochs.
    `random_start_fraction` is the fraction of windows that begin at a random one of their steps, without the steps
    before
    it: actions are then learned with less history, and single episodes are harder to memorise.
    """

    def __init__(
        self,
        data: Trajectories,
        normalizer: TrajectoryNormalizer,
        context: int,
        seed: int = 0,
        temperature: float | None = None,
        random_start_fraction: float = 0.0,
    ) -> None:
        if not len(data):
            raise DataError("there are no episodes to split into windows; give at least one")
        self._inputs = torch.from_numpy(normalizer.encode_steps(data))
        chosen = data.actions if normalizer.space.discrete else np.zeros(len(data.actions), dtype=np.int64)
        self._labels = torch.from_numpy(np.ascontiguousarray(chosen))
        self._starts, self._lengths = data.starts, data.lengths
        self._seed, self.context = seed, context
        counts = np.where(self._lengths <= context, 1, -(-(self._lengths + context - 1) // context))
        self._ends = np.cumsum(counts)
        self._temperature, self._random_start_fraction, self._cumulative_weights = (
            temperature,
            random_start_fraction,
            None,
        )
        if temperature is not None:
            self._cumulative_weights = np.cumsum(np.repeat(_return_weights(data.returns, temperature), counts))
        self._epoch_cache: tuple[int, Indices, Indices, npt.NDArray[np.float64]] | None = None

    @property
    def count(self) -> int:
        """Return the number of windows in an epoch."""
        return int(self._ends[-1])

    @functools.cached_property
    def fingerprint(self) -> int:
        """Return a hash that differs for other steps and for other ways to draw windows."""
        settings = (self._temperature, self._random_start_fraction)
        settings_hash = 0 if settings == (None, 0) else zlib.crc32(repr(settings).encode())
        return zlib.crc32(self._inputs.numpy().tobytes(), self.context ^ settings_hash)

    def collate(self, indices: Sequence[int]) -> Batch:
        """Collate windows into a batch, padded after their end, where no causal model attends to it.

        source (batch, steps, width) float, with the action last; labels (batch, steps) int64, the choice, 0 for actions
        that
        are numbers; IGNORE at padding.
        """
        starts, ends = self._spans(np.asarray(indices, dtype=np.int64))
        places = starts[:, None] + np.arange((ends - starts).max())
        real = torch.from_numpy(places < ends[:, None])
        steps = torch.from_numpy(np.minimum(places, ends[:, None] - 1))
        source = self._inputs[steps].masked_fill_(~real[..., None], 0.0)
        labels = self._labels[steps].masked_fill_(~real, IGNORE_INDEX)
        return Batch(source, None, None, labels, torch.as_tensor(list(indices), dtype=torch.int64))

    def _spans(self, numbers: Indices) -> tuple[Indices, Indices]:
        """Return the first step of each window, and the one after its last."""
        epochs, numbered = np.divmod(numbers, self.count)
        epochs_drawn = [
            (*self._draw_epoch(epoch), number) for epoch, number in zip(epochs.tolist(), numbered, strict=True)
        ]
        windows = np.array([chosen[number] for _, chosen, _, number in epochs_drawn])
        left_out = np.array([late[number] for _, _, late, number in epochs_drawn])
        episodes = np.searchsorted(self._ends, windows, side="right")
        starts, lengths = self._starts[episodes], self._lengths[episodes]
        place = windows - np.where(episodes > 0, self._ends[episodes - 1], 0)
        phases = np.array([one[0][episode] for one, episode in zip(epochs_drawn, episodes, strict=True)])
        cut = np.minimum(phases - self.context + 1 + place * self.context, lengths - 1)
        first = np.where(lengths <= self.context, 0, cut)
        first, last = np.maximum(first, 0), np.minimum(first + self.context, lengths)
        first = first + (left_out * (last - first)).astype(np.int64)
        return starts + first, starts + last

    def _draw_epoch(self, epoch: int) -> tuple[Indices, Indices, npt.NDArray[np.float64]]:
        """Draw an epoch: the first cut of each episode, (episodes,), the windows, and the fraction that is left out at
        the
        start of each, both (count,).
        """
        if self._epoch_cache is None or self._epoch_cache[0] != epoch:
            random = np.random.PCG64([self._seed, epoch, 2]).random_raw(len(self._starts) + 1)
            phases = (random[:-1] % np.uint64(self.context)).astype(np.int64)
            chosen = np.arange(self.count)
            if (
                self._cumulative_weights is not None
            ):  # as evenly as possible: each as often as its share says, rounded down or up
                places = (chosen + float(random[-1]) / 2**64) / self.count * self._cumulative_weights[-1]
                chosen = np.minimum(np.searchsorted(self._cumulative_weights, places, side="right"), self.count - 1)
            even = np.random.PCG64([self._seed, epoch, 3]).random_raw(self.count) / 2.0**64
            left_out = np.where(even < self._random_start_fraction, even / (self._random_start_fraction or 1.0), 0.0)
            self._epoch_cache = (epoch, phases, chosen, left_out)
        return self._epoch_cache[1:]


def _return_weights(returns: FloatArray, temperature: float) -> npt.NDArray[np.float64]:
    """Weight episodes by their returns."""
    lowest, highest = float(returns.min()), float(returns.max())
    scaled = (returns.astype(np.float64) - highest) / ((highest - lowest) or 1.0)
    weights: npt.NDArray[np.float64] = np.exp(scaled / temperature)
    return weights


def predicted_actions(predictions: Tensor, action_dim: int) -> Tensor:
    """Select the actions from the predictions for steps, (batch, steps, 1 + state + action)."""
    return predictions[..., -action_dim:]
