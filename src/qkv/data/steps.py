"""Trajectories as what a model reads and answers: windows of steps, side by side."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qkv.data.batch import IGNORE, Batch
from qkv.data.trajectories import Numbers, Sizes, Trajectories, one_hot
from qkv.errors import ConfigError, DataError

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shown:
    """How what happens becomes numbers that a model learns from with ease, learned from trajectories.

    shown: which numbers of a state the model is given; all of them if None. mean, deviation: of these numbers, where
    they are measured and no marks of 0 and 1. scale: what returns are divided by. best: the highest return seen.
    """

    sizes: Sizes
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    scale: float
    best: float
    shown: tuple[int, ...] | None = None

    @property
    def state(self) -> int:
        """How many numbers of a state the model is given."""
        return len(self.mean)

    @property
    def marks(self) -> bool:
        """Whether every number of a state was 0 or 1 in all that was learned from, as those of a choice are."""
        return not any(self.mean) and all(one == 1 for one in self.deviation)

    @property
    def width(self) -> int:
        """How many numbers a step has: its time, its return, its state and its action."""
        return 2 + self.state + self.sizes.action

    @classmethod
    def of(cls, data: Trajectories, shown: Sequence[int] | None = None) -> Shown:
        """Learn it from trajectories. Raises ConfigError for numbers that a state does not have."""
        if shown is not None and (not shown or not all(0 <= one < data.sizes.state for one in shown)):
            raise ConfigError([f"data.shown={list(shown)}: a state has the numbers 0 to {data.sizes.state - 1}"])
        states = data.states if shown is None else data.states[:, list(shown)]
        marks = ((states == 0) | (states == 1)).all(axis=0)
        mean = np.where(marks, 0, states.mean(axis=0, dtype=np.float64))
        deviation = np.where(marks, 1, states.std(axis=0, dtype=np.float64) + 1e-6)
        returns = data.returns
        scale = float(np.abs(returns).max()) or 1.0
        chosen = None if shown is None else tuple(shown)
        return cls(data.sizes, tuple(mean.tolist()), tuple(deviation.tolist()), scale, float(returns.max()), chosen)

    def states(self, states: Numbers) -> Numbers:
        """(..., state) as they are -> (..., self.state) as the model is given them."""
        picked = states if self.shown is None else states[..., list(self.shown)]
        mean, deviation = (np.asarray(one, dtype=np.float32) for one in (self.mean, self.deviation))
        return (picked - mean) / deviation

    def actions(self, actions: npt.NDArray[np.int64] | Numbers) -> Numbers:
        """Actions -> (..., action): 1 at the choice made; of numbers, -1 at the lowest and 1 at the highest."""
        if self.sizes.choices:
            return one_hot(actions, self.sizes.action)
        low, high = self._bounds()
        scaled: Numbers = (2 * (actions - low) / (high - low) - 1).astype(np.float32)
        return scaled

    def taken(self, answer: Tensor) -> Numbers:
        """What the model answers of an action of numbers, (..., action) -> the action."""
        low, high = self._bounds()
        found: Numbers = answer.clamp(-1, 1).cpu().numpy()
        taken: Numbers = (low + (high - low) * (found + 1) / 2).astype(np.float32)
        return taken

    def _bounds(self) -> tuple[Numbers, Numbers]:
        return np.asarray(self.sizes.low, dtype=np.float32), np.asarray(self.sizes.high, dtype=np.float32)

    def steps(self, data: Trajectories) -> Numbers:
        """All steps as the model reads them, (steps, width)."""
        starts = np.repeat(data.starts, data.lengths)
        times = np.arange(len(data.rewards)) - starts
        returns = data.returns_to_go() / self.scale
        columns = (times[:, None], returns[:, None], self.states(data.states), self.actions(data.actions))
        return np.concatenate(columns, axis=1).astype(np.float32)


class StepWindows:
    """Episodes cut into windows of up to `context` steps, anew in each epoch.

    Windows are numbered through all epochs, as in `qkv.data.packing.Windows`. An epoch holds each step once: an episode
    that fits is one window, and a longer one is cut at places that depend only on (seed, epoch); the last
    window of one may then have a step again.

    With a `temperature` an epoch has as many windows, drawn in proportion to exp(return / temperature) of their
    episodes, the lowest return counted as 0 and the highest as 1 (Hong et al. 2023, "Harnessing mixed offline
    reinforcement learning datasets via trajectory weighting"): some several times, others in few epochs. `late` is the
    share of windows that begin at a random one of their steps, without those before it: what is to be done is then
    learned with less of what was before in sight, and single episodes are not so easily remembered.
    """

    def __init__(
        self,
        data: Trajectories,
        shown: Shown,
        context: int,
        seed: int = 0,
        temperature: float | None = None,
        late: float = 0.0,
    ) -> None:
        if not len(data):
            raise DataError("there are no episodes to make windows of; give at least one")
        self._given = torch.from_numpy(shown.steps(data))
        chosen = data.actions if shown.sizes.choices else np.zeros(len(data.actions), dtype=np.int64)
        self._labels = torch.from_numpy(np.ascontiguousarray(chosen))
        self._starts, self._lengths = data.starts, data.lengths
        self._seed, self.context = seed, context
        counts = np.where(self._lengths <= context, 1, -(-(self._lengths + context - 1) // context))
        self._ends = np.cumsum(counts)
        self._temperature, self._late, self._shares = temperature, late, None
        if temperature is not None:
            self._shares = np.cumsum(np.repeat(_weights(data.returns, temperature), counts))
        self._phased: tuple[int, Places, Places, npt.NDArray[np.float64]] | None = None

    @property
    def count(self) -> int:
        """How many windows make an epoch."""
        return int(self._ends[-1])

    @functools.cached_property
    def fingerprint(self) -> int:
        """A number that other steps, or other ways to draw windows of them, would not have."""
        told = (self._temperature, self._late)
        drawn = 0 if told == (None, 0) else zlib.crc32(repr(told).encode())
        return zlib.crc32(self._given.numpy().tobytes(), self.context ^ drawn)

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Lay windows side by side, padded after their end, where no causal model sees it.

        source (batch, steps, width) float, its last numbers the action; labels (batch, steps) int64, the choice made, 0
        for actions that are numbers; IGNORE where padded.
        """
        starts, ends = self._spans(np.asarray(numbers, dtype=np.int64))
        places = starts[:, None] + np.arange((ends - starts).max())
        real = torch.from_numpy(places < ends[:, None])
        steps = torch.from_numpy(np.minimum(places, ends[:, None] - 1))
        source = self._given[steps].masked_fill_(~real[..., None], 0.0)
        labels = self._labels[steps].masked_fill_(~real, IGNORE)
        return Batch(source, None, None, labels, torch.as_tensor(list(numbers), dtype=torch.int64))

    def _spans(self, numbers: Places) -> tuple[Places, Places]:
        """The first step of each window, and the one after its last."""
        epochs, numbered = np.divmod(numbers, self.count)
        drawn = [(*self._epoch(epoch), number) for epoch, number in zip(epochs.tolist(), numbered, strict=True)]
        windows = np.array([chosen[number] for _, chosen, _, number in drawn])
        left_out = np.array([late[number] for _, _, late, number in drawn])
        episodes = np.searchsorted(self._ends, windows, side="right")
        starts, lengths = self._starts[episodes], self._lengths[episodes]
        place = windows - np.where(episodes > 0, self._ends[episodes - 1], 0)
        phases = np.array([one[0][episode] for one, episode in zip(drawn, episodes, strict=True)])
        cut = np.minimum(phases - self.context + 1 + place * self.context, lengths - 1)
        first = np.where(lengths <= self.context, 0, cut)
        first, last = np.maximum(first, 0), np.minimum(first + self.context, lengths)
        first = first + (left_out * (last - first)).astype(np.int64)
        return starts + first, starts + last

    def _epoch(self, epoch: int) -> tuple[Places, Places, npt.NDArray[np.float64]]:
        """Where each episode is cut first, (episodes,), which windows there are, and what share of each is left out at
        its beginning, both (count,)."""
        if self._phased is None or self._phased[0] != epoch:
            random = np.random.PCG64([self._seed, epoch, 2]).random_raw(len(self._starts) + 1)
            phases = (random[:-1] % np.uint64(self.context)).astype(np.int64)
            chosen = np.arange(self.count)
            if self._shares is not None:  # as even as can be: each so often as its share says, rounded down or up
                places = (chosen + float(random[-1]) / 2**64) / self.count * self._shares[-1]
                chosen = np.minimum(np.searchsorted(self._shares, places, side="right"), self.count - 1)
            even = np.random.PCG64([self._seed, epoch, 3]).random_raw(self.count) / 2.0**64
            left_out = np.where(even < self._late, even / (self._late or 1.0), 0.0)
            self._phased = (epoch, phases, chosen, left_out)
        return self._phased[1:]


def _weights(returns: Numbers, temperature: float) -> npt.NDArray[np.float64]:
    """How often episodes of these returns are drawn, beside each other."""
    lowest, highest = float(returns.min()), float(returns.max())
    scaled = (returns.astype(np.float64) - highest) / ((highest - lowest) or 1.0)
    weights: npt.NDArray[np.float64] = np.exp(scaled / temperature)
    return weights


def foretold(answers: Tensor, action: int) -> Tensor:
    """Of what a model answers to steps, (batch, steps, 1 + state + action), the part that is about actions."""
    return answers[..., -action:]
