"""Which examples go into which batch: a budget of tokens, like lengths together, the same for the same seed."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from qkv.errors import DataError

Lengths = npt.NDArray[np.int64]
_BANDS = (1, 2, 3, 4, 6, 8, 12, 16)


class BatchSampler:
    """Yields lists of example numbers for ever, epoch after epoch, each at most `budget_tokens` when padded.

    A batch of r examples costs r * (longest source + longest target) tokens, padding included: what it takes in
    memory and time. `lengths` is (examples,) or (examples, 2), source and target, each with its special tokens
    (`TokenPairs.lengths`). Every epoch holds each example once, in an order that depends only on
    (seed, epoch). Raises DataError if there is no example, or one that is longer than the budget.
    """

    def __init__(self, lengths: npt.ArrayLike, max_tokens: int, seed: int = 0) -> None:
        table = np.asarray(lengths, dtype=np.int64)
        self._lengths: Lengths = table if table.ndim == 2 else table[:, None]
        self._budget = max_tokens
        self._seed = seed
        self._check()
        self._epoch = 0
        self._position = 0
        self._plan: list[list[int]] | None = None

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next batch belongs to."""
        return self._epoch

    @property
    def position(self) -> int:
        """How many batches of this epoch were given out."""
        return self._position

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[int]:
        if self._plan is None:
            self._plan = self.batches(self._epoch)
        batch = self._plan[self._position]
        self._position += 1
        if self._position == len(self._plan):
            self._epoch, self._position, self._plan = self._epoch + 1, 0, None
        return batch

    def batches(self, epoch: int) -> list[list[int]]:
        """Give all batches of one epoch, in their order, without moving the sampler."""
        bits = np.random.PCG64([self._seed, epoch])
        members = self._members(epoch)
        order, bounds = self._arrange(members, self._band, bits)
        numbers = members[order].tolist()
        parts = [numbers[start:end] for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
        return [parts[number] for number in _permutation(bits, len(parts))]

    def padding_fraction(self, epoch: int | None = None) -> float:
        """Return the fraction of padding, 0 to 1, among the tokens of an epoch, the current one by default."""
        return _padding_fraction(self._lengths, self.batches(self._epoch if epoch is None else epoch))

    def state(self) -> dict[str, Any]:
        """Give the place in the stream as plain numbers, for a checkpoint."""
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "max_tokens": self._budget,
            "examples": len(self._lengths),
            "fingerprint": self._fingerprint(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave; DataError if it was taken on other data, another seed or budget."""
        check_resumable(self.state(), state, "data, seed and budget")
        epoch, position = state["epoch"], state["position"]
        plan = self.batches(epoch)
        if position >= len(plan):
            raise DataError(f"a checkpoint is at batch {position} of an epoch of {len(plan)}; start a new run")
        self._epoch, self._position, self._plan = epoch, position, plan

    def _check(self) -> None:
        if not len(self._lengths):
            raise DataError("there are no examples to make batches of; give at least one")
        totals = self._lengths.sum(axis=1)
        longest = int(totals.argmax())
        if totals[longest] > self._budget:
            raise DataError(
                f"example {longest} takes {totals[longest]:,} tokens and a batch may take {self._budget:,}: "
                f"raise that budget (data.batch_tokens of a recipe), or truncate or drop long examples with max_length "
                f"(data.cleaning.max_length)"
            )

    def _fingerprint(self) -> int:
        return zlib.crc32(np.ascontiguousarray(self._lengths).tobytes())

    def _members(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the examples of an epoch, in any order."""
        return np.arange(len(self._lengths))

    @functools.cached_property
    def _band(self) -> int:
        """The width of a band of target lengths that leaves the least padding."""
        members = self._members(0)
        best, least = 1, float("inf")
        for band in _BANDS if self._lengths.shape[1] > 1 else _BANDS[:1]:
            order, bounds = self._arrange(members, band, np.random.PCG64(0))
            positions = _count_padded_tokens(self._lengths[members[order]], bounds)
            if positions < least:
                best, least = band, positions
        return best

    def _arrange(self, members: npt.NDArray[np.int64], band: int, bits: np.random.PCG64) -> tuple[Lengths, list[int]]:
        """Put like lengths side by side and cut them into batches: (order of members, bounds of batches).

        Targets are sorted into bands and sources within a band, upwards and downwards in turn, so that neighbours
        are alike across the border of two bands as well. Equal lengths are shuffled, and the first batch gets a
        part of the budget drawn at random, so that the same examples do not meet in every epoch.
        """
        lengths = self._lengths[members]
        keys: list[npt.NDArray[Any]] = [bits.random_raw(len(members))]
        bands = lengths[:, -1] // band
        if lengths.shape[1] > 1:
            rising = np.where(bands % 2 == 0, 1, -1)
            keys += [lengths[:, -1], rising * lengths[:, 0]]
        order = np.lexsort([*keys, bands])
        first = int(bits.random_raw()) % self._budget
        return order, _split_into_batches(lengths[order], self._budget, first)


class MixtureSampler(BatchSampler):
    """Yields batches from several corpora together, each example drawn from corpus c with share weights[c].

    The numbers count through the corpora one after the other, as `Joined` does. An epoch holds as many
    examples as all corpora together; the shares are exact to one example, and every corpus is gone through
    evenly: none of its examples comes again before all have come. Raises DataError for weights that do not fit.
    """

    def __init__(
        self, lengths: Sequence[npt.ArrayLike], weights: Sequence[float], max_tokens: int, seed: int = 0
    ) -> None:
        if len(lengths) != len(weights) or not all(0 < weight < float("inf") for weight in weights):
            raise DataError(f"weights {list(weights)} for {len(lengths)} corpora: expected one above 0 for each")
        sizes = [len(np.asarray(part)) for part in lengths]
        if not all(sizes):
            raise DataError(f"corpus {sizes.index(0)} of the mixture has no examples; leave it out")
        self._sizes = sizes
        self._counts = _apportion(weights, sum(sizes))
        super().__init__(np.concatenate([np.asarray(part) for part in lengths]), max_tokens, seed)

    def _fingerprint(self) -> int:
        return zlib.crc32(repr((self._sizes, self._counts)).encode(), super()._fingerprint())

    def _members(self, epoch: int) -> npt.NDArray[np.int64]:
        offsets = np.cumsum([0, *self._sizes])
        return np.concatenate(
            [
                offsets[corpus] + self._corpus_members(corpus, epoch * count, (epoch + 1) * count)
                for corpus, count in enumerate(self._counts)
            ]
        )

    def _corpus_members(self, corpus: int, start: int, end: int) -> npt.NDArray[np.int64]:
        """Return a part of the endless sequence of shuffles of one corpus."""
        size = self._sizes[corpus]
        rounds = range(start // size, -(-end // size))
        shuffles = [_permutation(np.random.PCG64([self._seed, corpus, turn]), size) for turn in rounds]
        row = np.array(shuffles, dtype=np.int64).reshape(-1)
        return row[start - rounds.start * size : end - rounds.start * size]


def _apportion(weights: Sequence[float], total: int) -> list[int]:
    """Split a total by weight, to whole numbers, the largest remainders rounded up."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    for corpus in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[corpus] += 1
    return counts.tolist()  # type: ignore[no-any-return]


def _permutation(bits: np.random.PCG64, count: int) -> list[int]:
    """Shuffle by sorting raw bits, which NumPy keeps the same in all its versions."""
    return np.argsort(bits.random_raw(count), kind="stable").tolist()  # type: ignore[no-any-return]


def _split_into_batches(lengths: Lengths, max_tokens: int, first_budget: int) -> list[int]:
    """Cut rows into the longest runs that fit the budget when padded; the first run into `first` tokens."""
    if len(lengths) * int(lengths.max(axis=0).sum()) <= max_tokens:
        return [0, len(lengths)]
    bounds = [0]
    room = max(first_budget, int(lengths[0].sum()))
    ahead = 64
    while bounds[-1] < len(lengths):
        start = bounds[-1]
        window = lengths[start : start + ahead]
        padded = np.maximum.accumulate(window, axis=0).sum(axis=1) * np.arange(1, len(window) + 1)
        rows = int(np.searchsorted(padded, room, side="right"))
        if rows == len(window) < len(lengths) - start:
            ahead *= 2
            continue
        bounds.append(start + rows)
        room, ahead = max_tokens, 2 * rows + 1
    return bounds


def _count_padded_tokens(lengths: Lengths, bounds: Sequence[int]) -> int:
    """Count the tokens of all batches, padding included."""
    longest = np.maximum.reduceat(lengths, bounds[:-1], axis=0).sum(axis=1)
    return int((longest * np.diff(bounds)).sum())


def _padding_fraction(lengths: Lengths, batches: Sequence[Sequence[int]]) -> float:
    order = np.concatenate([np.asarray(batch) for batch in batches])
    bounds = np.cumsum([0, *map(len, batches)]).tolist()
    return 1.0 - int(lengths[order].sum()) / _count_padded_tokens(lengths[order], bounds)


def check_resumable(current: dict[str, Any], saved: dict[str, Any], what: str) -> None:
    """Raise DataError if a checkpoint's `state` was taken on other data than those `here`; places may differ."""
    for key in ("epoch", "position"):
        if type(saved.get(key)) is not int or not 0 <= saved[key] < 2**31:
            raise DataError(
                f"a checkpoint has {key}={str(saved.get(key))[:60]}; expected a whole number from 0 on: start a new run"
            )
    differing = [key for key in current if key not in ("epoch", "position") and current[key] != saved.get(key)]
    if differing:
        raise DataError(
            "this run cannot continue from the checkpoint, because its data differ: "
            + ", ".join(f"{key} was {saved.get(key)} and is {current[key]}" for key in differing)
            + f"; give the same {what}, or start a new run"
        )
