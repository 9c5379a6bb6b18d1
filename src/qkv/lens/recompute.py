"""Recomputation of scores and weights for any heads, queries and keys of a recorded call, by the formula of `attend`.

Nothing is larger than the requested part: a `Mask` is evaluated for that part only, a mask or bias that is a tensor is
sliced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qkv.attention import compute_scores, masked_softmax
from qkv.lens.recorder import Call
from qkv.mask import Mask, Span


def select_kv_heads(tensor: Tensor, heads: Sequence[int], n_heads: int) -> Tensor:
    """Select the key or value (batch, kv_heads, keys, d) of each query head in `heads`, of `n_heads`.

    It copies only if heads share a key-value head or are not contiguous.
    """
    kv_heads = tensor.shape[1]
    shared = [head * kv_heads // n_heads for head in heads]
    first = shared[0] if shared else 0
    if shared == list(range(first, first + len(shared))):
        return tensor[:, first : first + len(shared)]
    return tensor[:, shared]


def compute_scores_and_visibility(
    call: Call, heads: Sequence[int], rows: Span, keys: Span
) -> tuple[Tensor, Tensor | None]:
    """Compute scores (batch, heads, rows, keys) with everything added, and which of them are visible (None: all)."""
    return _compute_scores(call, heads, rows, keys, call.score_terms.mask)


def _compute_scores(
    call: Call, heads: Sequence[int], rows: Span, keys: Span, mask: Mask | Tensor | None, scale_query: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Compute scores with another mask. scale_query: multiply the queries by the scale instead of each score."""
    terms, of = call.score_terms, call["query"].shape[1]
    query = select_kv_heads(call["query"], heads, of)[:, :, rows[0] : rows[1]]
    key = select_kv_heads(call["key"], heads, of)[:, :, keys[0] : keys[1]]
    if query.dtype in (torch.float16, torch.bfloat16):
        query, key = query.float(), key.float()
    terms = replace(terms, mask=_slice_mask(mask, heads, rows, keys), bias=_slice_tensor(terms.bias, heads, rows, keys))
    if scale_query:
        query = query * (1 / math.sqrt(query.shape[-1]) if terms.scale is None else terms.scale)
        terms = replace(terms, scale=1.0)
    return compute_scores(query, key, terms)


def compute_masked_scores(call: Call, heads: Sequence[int], rows: Span, keys: Span) -> Tensor:
    """Compute scores (batch, heads, rows, keys), -inf where a query may not attend."""
    found, visible = compute_scores_and_visibility(call, heads, rows, keys)
    return found if visible is None else found.masked_fill(~visible, -math.inf)


def compute_filled_scores(call: Call, heads: Sequence[int], rows: Span, keys: Span) -> Tensor:
    """Compute scores (batch, heads, rows, keys), the lowest finite number where a query may not attend.

    For long rows: the query is scaled instead of its scores, and a rule is evaluated only for the keys that it hides
    from some of these queries and not from all.
    """
    mask, product = call.score_terms.mask, call.score_terms.score is None
    simple = isinstance(mask, Mask) and all(one is None for one in (mask.key_mask, mask.documents, mask.allowed))
    simple = simple and isinstance(mask, Mask) and isinstance(mask.past, int)
    found, visible = _compute_scores(call, heads, rows, keys, None if simple else mask, scale_query=product)
    least = torch.finfo(found.dtype).min
    found = found if visible is None else found.masked_fill(~visible, least)
    if isinstance(mask, Mask) and simple:
        found = found if product else found.clone()
        for edge in _find_edges(mask, rows, keys):
            matrix = mask.restrict(rows, edge).to_tensor(rows[1] - rows[0], edge[1] - edge[0], found.device)
            if matrix is not None:
                found[..., edge[0] - keys[0] : edge[1] - keys[0]].masked_fill_(~matrix, least)
    return found


def _find_edges(mask: Mask, rows: Span, keys: Span) -> list[Span]:
    """Find the keys among `keys` that a causal rule or a window hides from only some queries of `rows`."""
    assert isinstance(mask.past, int)
    first, last = mask.past + rows[0], mask.past + rows[1] - 1
    before, after = mask.reach
    edges = []
    if after is not None:
        edges.append((first + after + 1, keys[1]))
    if before is not None:
        edges.append((keys[0], last - before))
    cut = [(max(begin, keys[0]), min(end, keys[1])) for begin, end in edges]
    return [(begin, end) for begin, end in cut if begin < end]


def compute_weights(call: Call, heads: Sequence[int], rows: Span, n_keys: int | None = None) -> Tensor:
    """Compute weights (batch, heads, rows, keys) over all keys, or over the first `n_keys` if these rows see no
    others."""
    found, visible = compute_scores_and_visibility(
        call, heads, rows, (0, call["key"].shape[2] if n_keys is None else n_keys)
    )
    return masked_softmax(found, visible, select_sinks(call, heads))


def compute_logsumexp(call: Call, heads: Sequence[int], rows: Span) -> Tensor:
    """Compute log sum exp(score) over the keys and the sink, (batch, heads, rows); -inf where there is neither."""
    keys = find_visible_range(call, rows)
    found = compute_masked_scores(call, heads, rows, keys)
    sink = select_sinks(call, heads)
    if sink is not None:
        found = torch.cat([found, sink[None, :, None, None].expand(*found.shape[:3], 1).to(found.dtype)], dim=-1)
    return found.logsumexp(dim=-1)


def normalize_scores(scores: Tensor, logsumexp: Tensor) -> Tensor:
    """Convert scores (..., rows, keys), hidden ones -inf, to weights with their logsumexp (..., rows)."""
    return (scores - logsumexp.masked_fill(logsumexp == -math.inf, 0.0).unsqueeze(-1)).exp()


def select_sinks(call: Call, heads: Sequence[int]) -> Tensor | None:
    """Return the sink score of each of `heads`, if there are sinks."""
    found = call.score_terms.sinks
    return None if found is None else found.detach()[list(heads)]


def find_visible_range(call: Call, rows: Span) -> Span:
    """Return the keys that a `Mask` makes visible to some query of `rows`; all of them without such a rule."""
    keys = call["key"].shape[2]
    mask = call.score_terms.mask
    return mask.visible_range(rows, keys) if isinstance(mask, Mask) else (0, keys)


def split_into_runs(numbers: Sequence[int], max_length: int) -> list[Span]:
    """Split ascending numbers into contiguous spans, none longer than `max_length`."""
    found: list[Span] = []
    begin = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1 or index - begin == max_length:
            found.append((numbers[begin], numbers[index - 1] + 1))
            begin = index
    return found


def _slice_tensor(tensor: Tensor | None, heads: Sequence[int], rows: Span, keys: Span) -> Tensor | None:
    """Slice a tensor that broadcasts to (batch, heads, queries, keys)."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    if tensor.dim() > 2 and tensor.shape[-3] > 1:
        tensor = tensor[..., list(heads), :, :]
    if tensor.dim() > 1 and tensor.shape[-2] > 1:
        tensor = tensor[..., rows[0] : rows[1], :]
    return tensor[..., keys[0] : keys[1]] if tensor.dim() > 0 and tensor.shape[-1] > 1 else tensor


def _slice_mask(mask: Mask | Tensor | None, heads: Sequence[int], rows: Span, keys: Span) -> Mask | Tensor | None:
    if not isinstance(mask, Mask):
        return _slice_tensor(mask, heads, rows, keys)
    allowed = mask.allowed
    if allowed is not None and allowed.dim() > 2 and allowed.shape[-3] > 1:
        mask = replace(mask, allowed=allowed[..., list(heads), :, :])
    return mask.restrict(rows, keys)
