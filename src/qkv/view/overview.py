"""A long attention: the matrix of a head as a small image, its statistics along the tokens, and tiles of it."""

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

_MAX_WEIGHTS_PER_PAGE = 4e9  # weights of all heads that a page begins with, masked ones included
_N_CERTIFIED_QUERIES = 64
_MAX_WEIGHTS_AT_ONCE = 2**21  # weights computed at once: 8 MiB
_MAX_MATRIX_SIZE = 2**22  # weights of a head beyond which its whole matrix is not computed


StatisticsCache = dict[tuple[str, int], AttentionStatistics]
"""The statistics of single heads, by place and head."""


def overviews_to_json(trace: Trace, row: int, blocks: Blocks, cache: StatisticsCache) -> list[dict[str, Any]]:
    """Describe all attentions for the page, with overviews and statistics of as many heads as take a few seconds.

    The statistics are added to `cache`.
    """
    chosen = _choose_heads(list(trace))
    descriptions = []
    for attention in trace:
        entry = describe_attention(attention)
        entry["rule"] = find_mask_rule(attention)
        last = max(0, attention.queries - _N_CERTIFIED_QUERIES), attention.queries
        entry |= {"certified": certify_queries(attention, last), "certified_queries": list(last)}
        heads = chosen[attention.place]
        entry["statistics"] = {name: [None] * attention.heads for name in ("entropy", "distance", "sink", "largest")}
        if heads:
            numbers = lens.compute_statistics(attention, top=1, first=1, heads=heads)
            cache |= {(attention.place, head): numbers.select_head(head) for head in heads}
            entry |= overview_to_json(attention, numbers, blocks, row)
            means = {
                "entropy": numbers.entropy,
                "distance": numbers.distance,
                "sink": numbers.first + 1 - numbers.mass,
                "largest": numbers.top_weights[..., 0],
            }
            for name, values in means.items():
                for head, value in zip(heads, values[row].mean(dim=-1).tolist(), strict=True):
                    entry["statistics"][name][head] = float(f"{value:.5g}")
        descriptions.append(entry)
    return descriptions


def certify_queries(attention: AttentionTrace, queries: Span) -> list[float]:
    """Return the largest |weights @ value - context| of each head, for some queries."""
    worst = []
    for head in range(attention.heads):
        weights = attention.compute_weights(head, range(*queries))
        value = attention.value[:, head * attention.kv_heads // attention.heads].to(weights.dtype)
        difference = weights @ value - attention.context[:, head, queries[0] : queries[1]]
        worst.append(float(difference.abs().max()))
    return worst


def _choose_heads(attentions: Sequence[AttentionTrace]) -> dict[str, list[int]]:
    """Choose the heads that get overviews: the first of the last attention, then one of each attention in turn."""
    chosen: dict[str, list[int]] = {one.place: [] for one in attentions}
    work = 0.0
    for head in range(max((one.heads for one in attentions), default=0)):
        for one in reversed(attentions):
            if head < one.heads and (work == 0 or work + one.queries * one.keys <= _MAX_WEIGHTS_PER_PAGE):
                chosen[one.place].append(head)
                work += one.queries * one.keys
    return chosen


def is_long(attention: AttentionTrace) -> bool:
    """Return whether the matrix of a head is too large to be computed as a whole."""
    return attention.queries * attention.keys > _MAX_MATRIX_SIZE


def measure_head(attention: AttentionTrace, head: int, cache: StatisticsCache) -> AttentionStatistics:
    """Return the statistics of a head over all of its rows, from the cache if they are there."""
    key = attention.place, head
    if key not in cache:
        cache[key] = lens.compute_statistics(attention, top=1, first=1, heads=[head])
    return cache[key]


def overview_to_json(
    attention: AttentionTrace, statistics: AttentionStatistics, blocks: Blocks, row: int = 0
) -> dict[str, Any]:
    """Describe some heads for the page: each matrix max-pooled to 512 x 512 at most, and statistics by token."""
    images = []
    for number, head in enumerate(statistics.heads):
        normaliser = statistics.logsumexp[:, [number]]
        whole = (0, attention.queries), (0, attention.keys)
        images.append(compute_tile(attention, head, *whole, OVERVIEW_SIZE, normaliser, row)[0])
    numbers = {
        "entropy": statistics.entropy,
        "distance": statistics.distance,
        "sink": statistics.first + 1 - statistics.mass,
        "largest": statistics.top_weights[..., 0],
        "logsumexp": statistics.logsumexp,
        "received": statistics.received.float(),
    }
    return {
        "overview": blocks.add(torch.stack(images), "float16"),
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
    """Return a part of one head's weights, max-pooled to size x size at most, and how many rows and columns are pooled.

    logsumexp: `AttentionStatistics.logsumexp` of this head, (batch, 1, queries); without it the scores of whole rows
    are computed. Raises QkvError for rows or columns that do not exist.
    """
    for name, span, count in (("rows", rows, attention.queries), ("columns", columns, attention.keys)):
        if not 0 <= span[0] < span[1] <= count:
            raise QkvError(f"{name} {span[0]} to {span[1]} were requested; expected a span within 0 to {count}")
    down, across = (-(-(span[1] - span[0]) // size) for span in (rows, columns))
    every = None if logsumexp is None else logsumexp.expand(-1, attention.heads, -1)
    step = max(1, _MAX_WEIGHTS_AT_ONCE // (columns[1] - columns[0]))
    rule = find_mask_rule(attention)
    wide = -(-(columns[1] - columns[0]) // across)
    found = torch.zeros(-(-(rows[1] - rows[0]) // down), wide, device=attention.key.device)
    for begin in range(rows[0], rows[1], step):
        end = min(begin + step, rows[1])
        last = rule["past"] + end if rule is not None and rule["causal"] else attention.keys
        n_visible = max(columns[0], min(columns[1], last))
        weights = attention.tile(head, (begin, end), (columns[0], n_visible), every, across)[row].float()
        parts = (torch.arange(begin, end, device=found.device) - rows[0]) // down
        # what no row may attend to stays 0
        found[:, : weights.shape[1]].scatter_reduce_(0, parts[:, None].expand_as(weights), weights, "amax")
    return found, (down, across)
