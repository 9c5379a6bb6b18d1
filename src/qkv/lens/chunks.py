"""All weights of one attention a few rows at a time, made once for all that is counted in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from qkv.lens import recompute
from qkv.lens.recorder import Call
from qkv.mask import Span

_ELEMENTS = 2**18  # weights of a piece: 1 MiB, which stays in a processor's cache
_MAX_CACHED = 2**24  # weights of an attention that are kept: 64 MiB


@dataclass(frozen=True)
class WeightChunk:
    """The weights of some queries, (batch, heads, queries, keys), up to the last key that a rule lets them see.

    call: the number of the call that they are of. rows: which of its queries. begin: the first one's number of all.
    """

    call: int
    rows: Span
    begin: int
    weights: Tensor


class WeightChunks:
    """All pieces of an attention, one after the other, as often as asked: kept where they are few, and made anew each
    time where they are many, so that memory grows with the length alone."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        sizes = (call["query"].shape[:3].numel() * call["key"].shape[2] for call in calls)
        self._cached: list[WeightChunk] | None = [] if sum(sizes) <= _MAX_CACHED else None

    def __iter__(self) -> Iterator[WeightChunk]:
        if self._cached is None:
            return self._compute()
        if not self._cached:
            self._cached.extend(self._compute())
        return iter(self._cached)

    def _compute(self) -> Iterator[WeightChunk]:
        offset = 0
        for number, call in enumerate(self._calls):
            batch, heads, queries = call["query"].shape[:3]
            step = max(1, _ELEMENTS // max(1, batch * heads * call["key"].shape[2]))
            for begin in range(0, queries, step):
                rows = begin, min(begin + step, queries)
                visible = recompute.find_visible_range(call, rows)[1]
                yield WeightChunk(
                    number, rows, offset + begin, recompute.compute_weights(call, range(heads), rows, visible)
                )
            offset += queries
