"""A long attention from far away: one head's matrix as a small picture, its statistics along the tokens, and tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qkv import lens
from qkv.errors import QkvError
from qkv.lens import AttentionStatistics, AttentionTrace, Trace
from qkv.mask import Span
from qkv.view.attention import describe_attention, find_mask_rule
from qkv.view.blocks import Blocks

OVERVIEW_SIZE = 512
"""The most rows and columns of an overview."""

_MAX_WEIGHTS_PER_PAGE = 4e9  # weights, of all heads that a page begins with, hidden ones included
_N_CERTIFIED_QUERIES = 64  # queries
_MAX_WEIGHTS_AT_ONCE = 2**21  # weights made at once: 8 MiB
_MAX_MATRIX_SIZE = 2**22  # weights of a head beyond which its matrix is not made whole


StatisticsCache = dict[tuple[str, int], AttentionStatistics]
"""The statistics of single heads, by place and head."""


def overviews_to_json(trace: Trace, row: int, blocks: Blocks, cache: StatisticsCache) -> list[dict[str, Any]]:
    """All attentions for the page, with the overviews and statistics of as many heads as `_WORK` allows.

    What is counted is added to `kept`.
    """
    chosen = _choose_heads(list(trace))
    found = []
    for attention in trace:
        said = describe_attention(attention)
        said["rule"] = find_mask_rule(attention)
        last = max(0, attention.queries - _N_CERTIFIED_QUERIES), attention.queries
        said |= {"certified": certify_queries(attention, last), "certified_queries": list(last)}
        heads = chosen[attention.place]
        said["statistics"] = {name: [None] * attention.heads for name in ("entropy", "distance", "sink", "largest")}
        if heads:
            numbers = lens.compute_statistics(attention, top=1, first=1, heads=heads)
            cache |= {(attention.place, head): numbers.select_head(head) for head in heads}
            said |= overview_to_json(attention, numbers, blocks, row)
            means = {
                "entropy": numbers.entropy,
                "distance": numbers.distance,
                "sink": numbers.first + 1 - numbers.mass,
                "largest": numbers.top_weights[..., 0],
            }
            for name, values in means.items():
                for head, value in zip(heads, values[row].mean(dim=-1).tolist(), strict=True):
                    said["statistics"][name][head] = float(f"{value:.5g}")
        found.append(said)
    return found


def certify_queries(attention: AttentionTrace, queries: Span) -> list[float]:
    """The largest |weights @ value - context| of each head, for some queries."""
    worst = []
    for head in range(attention.heads):
        weights = attention.compute_weights(head, range(*queries))
        value = attention.value[:, head * attention.kv_heads // attention.heads].to(weights.dtype)
        difference = weights @ value - attention.context[:, head, queries[0] : queries[1]]
        worst.append(float(difference.abs().max()))
    return worst


def _choose_heads(attentions: Sequence[AttentionTrace]) -> dict[str, list[int]]:
    """Which heads to make overviews of: the last attention's first one, then one of each in turn."""
    chosen: dict[str, list[int]] = {one.place: [] for one in attentions}
    work = 0.0
    for head in range(max((one.heads for one in attentions), default=0)):
        for one in reversed(attentions):
            if head < one.heads and (work == 0 or work + one.queries * one.keys <= _MAX_WEIGHTS_PER_PAGE):
                chosen[one.place].append(head)
                work += one.queries * one.keys
    return chosen


def is_long(attention: AttentionTrace) -> bool:
    """Whether a head's matrix is too large to be made whole."""
    return attention.queries * attention.keys > _MAX_MATRIX_SIZE


def measure_head(attention: AttentionTrace, head: int, cache: StatisticsCache) -> AttentionStatistics:
    """The statistics of a head over all of its rows, which are kept."""
    key = attention.place, head
    if key not in cache:
        cache[key] = lens.compute_statistics(attention, top=1, first=1, heads=[head])
    return cache[key]


def overview_to_json(
    attention: AttentionTrace, statistics: AttentionStatistics, blocks: Blocks, row: int = 0
) -> dict[str, Any]:
    """Some heads for the page: the largest weights of up to 512 x 512 parts of each matrix, and numbers by token."""
    pictures = []
    for number, head in enumerate(statistics.heads):
        normaliser = statistics.logsumexp[:, [number]]
        whole = (0, attention.queries), (0, attention.keys)
        pictures.append(compute_tile(attention, head, *whole, OVERVIEW_SIZE, normaliser, row)[0])
    numbers = {
        "entropy": statistics.entropy,
        "distance": statistics.distance,
        "sink": statistics.first + 1 - statistics.mass,
        "largest": statistics.top_weights[..., 0],
        "logsumexp": statistics.logsumexp,
        "received": statistics.received.float(),
    }
    return {
        "overview": blocks.add(torch.stack(pictures), "float16"),
        "overview_heads": list(statistics.heads),
        "per_query": {name: blocks.add(value[row], "float32") for name, value in numbers.items()},
    }


def compute_tile(
    attention: AttentionTrace,
    head: int,
    rows: Span,
    columns: Span,
    size: int,
    logsumexp: Tensor | None = None,
    row: int = 0,
) -> tuple[Tensor, Span]:
    """A part of one head's weights in at most size x size entries, and how many rows and columns one stands for.

    Each is the largest weight of its rows and columns. normaliser: `AttentionStatistics.logsumexp` of this head,
    (batch, 1, queries); without it the scores of whole rows are computed. Raises QkvError for rows or columns there
    are not.
    """
    for name, span, count in (("rows", rows, attention.queries), ("columns", columns, attention.keys)):
        if not 0 <= span[0] < span[1] <= count:
            raise QkvError(f"{name} {span[0]} to {span[1]} were asked for; expected some from 0 to {count}")
    down, across = (-(-(span[1] - span[0]) // size) for span in (rows, columns))
    every = None if logsumexp is None else logsumexp.expand(-1, attention.heads, -1)
    step = max(1, _MAX_WEIGHTS_AT_ONCE // (columns[1] - columns[0]))
    rule = find_mask_rule(attention)
    wide = -(-(columns[1] - columns[0]) // across)
    found = torch.zeros(-(-(rows[1] - rows[0]) // down), wide, device=attention.key.device)
    for begin in range(rows[0], rows[1], step):
        end = min(begin + step, rows[1])
        last = rule["past"] + end if rule is not None and rule["causal"] else attention.keys
        seen = max(columns[0], min(columns[1], last))
        weights = attention.tile(head, (begin, end), (columns[0], seen), every, across)[row].float()
        parts = (torch.arange(begin, end, device=found.device) - rows[0]) // down
        # what no row may see stays 0
        found[:, : weights.shape[1]].scatter_reduce_(0, parts[:, None].expand_as(weights), weights, "amax")
    return found, (down, across)
