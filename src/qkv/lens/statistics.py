"""Exact statistics of a whole attention at any length, in memory that grows linearly with the length.

A few rows of the matrix at a time are computed over all their visible keys, counted, and discarded. Whole rows need no
second pass: the weight that a key receives is known only once the rows of its queries are normalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from qkv.errors import QkvError
from qkv.lens import recompute
from qkv.lens.recorder import Call
from qkv.lens.trace import AttentionTrace
from qkv.mask import Mask, Span

_ELEMENTS = 2**21  # scores computed by one product, which is slow for few rows: 8 MiB
_COUNTED_AT_ONCE = 2**20  # of these, how many are counted at once: 4 MiB, which stay in a processor's cache
_WINDOWED_ROWS = 128  # rows computed by one product if a rule hides distant keys
_GROUP = 64  # neighbouring keys of which only the largest is compared at first, to find the top ones


@dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of one attention by head, (batch, heads, queries) unless stated. A query without visible keys has 0.

    heads: the heads of these statistics. logsumexp: log of the sum of exp(score), sinks included; -inf without visible
    keys.
    mass: the sum of the weights: 1, or less where a sink takes a share. first: the weight of the first tokens.
    entropy: -sum of w log w, in nats. distance: the mean of |query's position - key's position| in tokens, weighted by
    attention; a trace's first query has the first position, unless a rule says otherwise (`Mask.past`).
    top_keys, top_weights: (batch, heads, queries, top), highest first; -1 and 0 if fewer are visible.
    received: (batch, heads, keys), the sum of the weights that each key receives from all queries.
    """

    heads: tuple[int, ...]
    logsumexp: Tensor
    mass: Tensor
    first: Tensor
    entropy: Tensor
    distance: Tensor
    top_keys: Tensor
    top_weights: Tensor
    received: Tensor

    def select_head(self, head: int) -> AttentionStatistics:
        """Return the statistics of a single head."""
        at = self.heads.index(head)
        parts = {one.name: getattr(self, one.name)[:, at : at + 1] for one in fields(self) if one.name != "heads"}
        return AttentionStatistics((head,), **parts)


@torch.no_grad()
def compute_statistics(
    attention: AttentionTrace, *, top: int = 8, first: int = 4, heads: Sequence[int] | None = None
) -> AttentionStatistics:
    """Compute an attention's statistics, for all heads or some; `first` is the number of leading keys that are summed.

    This costs one product of queries and keys, as the attention itself did. Raises QkvError for a head that does not
    exist.
    """
    chosen = tuple(range(attention.heads) if heads is None else heads)
    for head in chosen:
        if not 0 <= head < attention.heads:
            raise QkvError(f"{attention.place}: head={head} was given; it has heads 0 to {attention.heads - 1}")
    top = min(top, attention.keys)
    batch, queries, device = attention.key.shape[0], attention.queries, attention.key.device
    normaliser, mass, computed, entropy, distance = torch.zeros(5, batch, len(chosen), queries, device=device).unbind(0)
    found = AttentionStatistics(
        chosen,
        normaliser,
        mass,
        computed,
        entropy,
        distance,
        top_keys=torch.full((batch, len(chosen), queries, top), -1, dtype=torch.int32, device=device),
        top_weights=torch.zeros(batch, len(chosen), queries, top, device=device),
        # many small shares of many queries, which float32 would lose
        received=torch.zeros(batch, len(chosen), attention.keys, dtype=torch.float64, device=device),
    )
    offset = 0
    for call in attention.calls:
        for part, rows, keys, scores in _iterate_scores(call, chosen, batch):
            _accumulate(found, call, scores, (part, rows, keys), offset, first)
        offset += call["query"].shape[2]
    return found


def _iterate_scores(call: Call, heads: Sequence[int], batch: int) -> Iterator[tuple[Span, Span, Span, Tensor]]:
    """Yield the scores of a few of `heads` and queries at a time, with the spans of heads, queries and keys.

    Long rows come in chunks of one head.
    """
    queries = call["query"].shape[2]
    numbers = call["query"].shape[3] if call.score_terms.score is not None else 1  # an additive score builds d_key each
    width, longest = call["key"].shape[2], queries
    mask = call.score_terms.mask
    if isinstance(mask, Mask) and mask.window is not None:  # few rows attend to little more than their windows
        longest = _WINDOWED_ROWS
        width = min(width, _WINDOWED_ROWS + sum(reach or 0 for reach in mask.reach))
    room = max(1, _ELEMENTS // (batch * numbers * max(width, 1)))
    together = max(1, min(len(heads), room // min(queries, 64)))
    length = max(1, min(longest, room // together))
    counted = max(1, _COUNTED_AT_ONCE // (batch * together * max(width, 1)))
    for head in range(0, len(heads), together):
        part = head, min(head + together, len(heads))
        for begin in range(0, queries, length):
            rows = begin, min(begin + length, queries)
            keys = recompute.find_visible_range(call, rows)
            scores = recompute.compute_filled_scores(call, heads[slice(*part)], rows, keys)
            for first in range(*rows, counted):
                last = min(first + counted, rows[1])
                yield part, (first, last), keys, scores[..., first - begin : last - begin, :]


def _accumulate(
    statistics: AttentionStatistics, call: Call, scores: Tensor, where: tuple[Span, Span, Span], offset: int, first: int
) -> None:
    """Accumulate the statistics of some heads and queries of a call whose first query has the index `offset` in the
    trace."""
    part, rows, keys = where
    at = (slice(None), slice(*part), slice(offset + rows[0], offset + rows[1]))
    if keys[0] == keys[1]:
        statistics.logsumexp[at] = -math.inf
        return
    largest = scores.amax(dim=-1, keepdim=True)
    blind = largest == torch.finfo(scores.dtype).min
    sink = recompute.select_sinks(call, statistics.heads[slice(*part)])
    if sink is not None:
        sink = sink[None, :, None, None].to(scores.dtype)
        largest = torch.maximum(largest, sink)
    scores = scores - largest  # below 0, so that no exponential overflows
    shares = scores.exp()
    if sink is None and bool(blind.any()):
        shares.masked_fill_(blind, 0.0)
    far, total = _sum_distances(shares, offset, rows, keys, call)
    seen = total
    if sink is not None:
        total = total + (sink - largest).exp()
    share = torch.where(total > 0, 1 / total, 0.0)  # a query without visible keys contributes nothing
    mass = seen * share
    surprise = torch.where(mass > 0, total.log() * mass, 0.0) - scores.mul_(shares).sum(dim=-1, keepdim=True) * share
    for name, value in (
        ("logsumexp", total.log() + torch.where(total > 0, largest, 0.0)),
        ("mass", mass),
        ("first", shares[..., : max(0, first - keys[0])].sum(dim=-1, keepdim=True) * share),
        ("entropy", surprise),
        ("distance", torch.where(mass > 0, far * share / mass, 0.0)),
    ):
        getattr(statistics, name)[at] = value.squeeze(-1)
    given = share.mT @ shares
    statistics.received[:, part[0] : part[1], keys[0] : keys[1]] += given.squeeze(-2)
    values, places = _find_top(shares, statistics.top_keys.shape[-1])
    count = values.shape[-1]
    statistics.top_weights[at][..., :count] = values * share
    statistics.top_keys[at][..., :count] = torch.where(values > 0, places + keys[0], -1).to(torch.int32)


def _sum_distances(weights: Tensor, offset: int, rows: Span, keys: Span, call: Call) -> tuple[Tensor, Tensor]:
    """Sum share * |query's position - key's position|, and share alone, each (..., rows, 1).

    Before the first of these queries and after the last, the distance is the sum of a term by query and a term by key,
    so
    that a product with one vector replaces a matrix of distances.
    """
    mask, past = call.score_terms.mask, offset
    if isinstance(mask, Mask) and isinstance(mask.past, int) and (mask.causal or mask.window is not None):
        past = mask.past
    begin, end = past + rows[0], past + rows[1]  # the positions of these queries
    query = torch.arange(begin, end, device=weights.device, dtype=weights.dtype)
    key = torch.arange(*keys, device=weights.device, dtype=weights.dtype)
    before, after = (min(max(place - keys[0], 0), len(key)) for place in (begin, end))
    between = weights[..., before:after]
    total = between.sum(dim=-1)
    far = (between * (query[:, None] - key[before:after]).abs()).sum(dim=-1)
    for part, distance, more in (
        (slice(0, before), begin - key, query - begin),
        (slice(after, None), key - (end - 1), (end - 1) - query),
    ):
        if len(key[part]):
            mass = weights[..., part].sum(dim=-1)
            far += weights[..., part] @ distance[part] + more * mass
            total += mass
    return far.unsqueeze(-1), total.unsqueeze(-1)


def _find_top(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the largest elements along the last axis and their indices, highest first.

    In a long row the `count` groups with the largest maxima are found first: no others can contain one of the largest.
    """
    length = weights.shape[-1]
    count = min(count, length)
    groups = length // _GROUP
    if groups < 4 * count:
        return torch.topk(weights, count, dim=-1)
    grouped = weights[..., : groups * _GROUP].view(*weights.shape[:-1], groups, _GROUP)
    best = grouped.amax(dim=-1).topk(count, dim=-1).indices
    inside = torch.arange(_GROUP, device=weights.device)
    places = (best.unsqueeze(-1) * _GROUP + inside).flatten(-2)
    rest = torch.arange(groups * _GROUP, length, device=weights.device)  # the remainder after the last full group
    places = torch.cat([places, rest.expand(*places.shape[:-1], -1)], dim=-1)
    values, order = weights.gather(-1, places).topk(count, dim=-1)
    return values, places.gather(-1, order)
