"""The weights of one attention in chunks of rows, computed once for all statistics of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from qkv.lens import recompute
from qkv.lens.recorder import Call
from qkv.mask import Span

_ELEMENTS = 2**18  # weights in a chunk: 1 MiB, which stays in a processor's cache
_MAX_CACHED = 2**24  # weights of an attention that are kept: 64 MiB


@dataclass(frozen=True)
class WeightChunk:
    """The weights of some queries, (batch, heads, queries, keys), up to the last key that a rule makes visible.

    call: the index of the call that they belong to. rows: its queries in this chunk. begin: the index of the first
    query in
    the whole trace.
    """

    call: int
    rows: Span
    begin: int
    weights: Tensor


class WeightChunks:
    """The chunks of an attention, in order and as often as needed: kept if they are few, recomputed each time if they
    are
    many, so that memory grows only linearly with the length.
    """

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
