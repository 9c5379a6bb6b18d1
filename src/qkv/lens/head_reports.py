"""Reports on heads: what each one does on an input, which ones do the same, and which do nothing.

Scores are computed over some rows of the matrix at a time; each is a mean weight, or a share, between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qkv.errors import QkvError
from qkv.lens.chunks import WeightChunks
from qkv.lens.statistics import compute_statistics
from qkv.lens.trace import AttentionTrace, Trace


@dataclass(frozen=True)
class HeadReport:
    """The behaviour of one head, averaged over queries.

    previous: the weight of the previous token. sink: the weight of the first token and of the head's attention sink.
    entropy in nats, distance in tokens. positional: the share of a query's weights that the head's average weight at
    each
    distance explains. duplicate: the weight of earlier occurrences of the current token. induction: the weight of the
    tokens after those (Olsson et al. 2022, "prefix matching"). Both are None if tokens are unknown or none occurs
    twice.
    share: the norm of what the head adds to the residual, relative to all heads of its attention; None without W_O.
    """

    place: str
    head: int
    previous: float
    sink: float
    entropy: float
    distance: float
    positional: float
    duplicate: float | None
    induction: float | None
    share: float | None


def report_heads(trace: Trace, row: int | None = None) -> list[HeadReport]:
    """Report on every head of a trace: for all rows of its batch together, or for one.

    The trace's own source and target are the tokens. A trace of a batch with padding includes the padding.
    """
    found: list[HeadReport] = []
    for attention in trace:
        found += report_attention(trace, attention, attention.compute_chunks(), row)
    return found


@torch.no_grad()
def report_attention(
    trace: Trace, attention: AttentionTrace, chunks: WeightChunks, row: int | None = None
) -> list[HeadReport]:
    """Report on the heads of one attention of a trace; chunks: its weights, which other statistics may share."""
    chosen = slice(None) if row is None else slice(row, row + 1)
    return list(_report_each_head(attention, chunks, _get_tokens(trace, attention), chosen))


def head_similarity(left: AttentionTrace, right: AttentionTrace) -> Tensor:
    """Compute how much of their weights the heads of two attentions share, (heads, heads).

    It is the mean over queries of the sum over keys of min(weight, weight), 1 for equal weights. Raises QkvError for
    different queries or keys.
    """
    if (left.queries, left.keys) != (right.queries, right.keys):
        raise QkvError(
            f"{left.place} has {left.queries} queries and {left.keys} keys, {right.place} {right.queries} and "
            f"{right.keys}; expected two attentions over the same tokens"
        )
    shared = torch.zeros(left.heads, right.heads)
    for begin, weights in _iterate_weights(left.compute_chunks()):
        others = (
            right.compute_weights(rows=range(begin, begin + weights.shape[2])).float().cpu()[..., : weights.shape[3]]
        )
        for head in range(left.heads):
            shared[head] += torch.minimum(weights[:, head : head + 1], others).sum(dim=-1).mean(dim=0).sum(dim=-1)
    return shared / left.queries


def find_dead_heads(reports: Iterable[HeadReport], threshold: float = 0.05) -> list[HeadReport]:
    """Return the heads that add next to nothing to the residual on this input.

    threshold: the largest `share` of such a head, of all that the heads of its attention add.

    Example: `find_dead_heads(trace.heads)`
    """
    return [report for report in reports if report.share is not None and report.share < threshold]


def _report_each_head(
    attention: AttentionTrace, chunks: WeightChunks, tokens: Tensor | None, chosen: slice
) -> Iterator[HeadReport]:
    statistics = compute_statistics(attention, top=1, first=1)
    profile = _compute_distance_profile(attention, chunks, chosen)
    # in descending distance, so that each query's part of it runs from its first key to its last
    expected = profile.flip(1).unfold(1, attention.keys, 1)
    heads, queries = attention.heads, attention.queries
    previous, positional = torch.zeros(heads), torch.zeros(heads)
    matched = {"duplicate": torch.zeros(heads), "induction": torch.zeros(heads)}
    counts = dict.fromkeys(matched, 0)
    for begin, weights in _iterate_weights(chunks):
        weights = weights[chosen]
        query, key = torch.arange(begin, begin + weights.shape[2]), torch.arange(weights.shape[3])
        previous += weights.diagonal(begin - 1, dim1=2, dim2=3).sum(dim=-1).mean(dim=0)
        usual = expected[:, queries - query, : len(key)]
        positional += torch.minimum(weights, usual).sum(dim=(2, 3)).mean(dim=0)
        if tokens is None:
            continue
        given, away = tokens[chosen].expand(len(weights), -1), query[:, None] - key
        same = (given[:, query, None] == given[:, None, key]) & (away > 0)
        after = torch.cat([torch.zeros_like(same[..., :1]), same[..., :-1]], dim=-1) & (away > 0)
        for name, where in (("duplicate", same), ("induction", after)):
            row, asking, key_positions = where.nonzero(as_tuple=True)  # few of all pairs of tokens
            matched[name] += weights[row, :, asking, key_positions].sum(dim=0)
            counts[name] += int(where.any(dim=-1).sum())
    shares = _compute_output_shares(attention, chosen)
    sink = 1 - statistics.mass + statistics.first
    for head in range(heads):
        known = {name: float(total[head]) / counts[name] if counts[name] else None for name, total in matched.items()}
        yield HeadReport(
            attention.place,
            head,
            float(previous[head]) / max(1, queries - 1),
            float(sink[chosen, head].mean()),
            float(statistics.entropy[chosen, head].mean()),
            float(statistics.distance[chosen, head].mean()),
            float(positional[head]) / queries,
            known["duplicate"],
            known["induction"],
            None if shares is None else shares[head],
        )


def _compute_distance_profile(attention: AttentionTrace, chunks: WeightChunks, chosen: slice) -> Tensor:
    """Compute the mean weight at each distance, (heads, distances), starting with key - query = keys - 1."""
    queries, keys = attention.queries, attention.keys
    totals = torch.zeros(attention.heads, queries + keys)
    counts = torch.zeros(queries + keys)
    for begin, weights in _iterate_weights(chunks):
        query = torch.arange(begin, begin + weights.shape[2])
        index = (query[:, None] - torch.arange(weights.shape[3]) + keys - 1).flatten()
        totals.index_add_(1, index, weights[chosen].mean(dim=0).flatten(1))
        counts.index_add_(0, index, torch.ones(len(index)))
    return totals / counts.clamp(min=1)


def _compute_output_shares(attention: AttentionTrace, chosen: slice) -> list[float] | None:
    if attention.output_weight is None:
        return None
    sizes = torch.stack([attention.output(head)[chosen].norm(dim=-1).mean() for head in range(attention.heads)])
    return (sizes / sizes.sum().clamp(min=torch.finfo(sizes.dtype).tiny)).tolist()


def _get_tokens(trace: Trace, attention: AttentionTrace) -> Tensor | None:
    """Return the tokens, (batch, length), of the queries and keys of a self-attention."""
    given = trace.source if attention.side == "source" else trace.target
    if not attention.place.endswith("self_attention") or given is None or given.is_floating_point():
        return None
    return given.cpu() if given.shape[1] == attention.queries == attention.keys else None


def _iterate_weights(chunks: WeightChunks) -> Iterator[tuple[int, Tensor]]:
    """Yield all weights, (batch, heads, some queries, keys), with the index of the first query."""
    for piece in chunks:
        yield piece.begin, piece.weights.float().cpu()
