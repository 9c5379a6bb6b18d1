"""Attention: every query scores the keys that it may attend to and averages their values.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d_key)) V                     [Vaswani et al. 2017, equation 1]

`attend` has two implementations, and a test compares their values and gradients: the explicit one proceeds step by
step, so that scores and weights exist and a tap may replace them; the fused one is a kernel that never builds them.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from qkv.mask import MAX_MASK_ELEMENTS, Mask
from qkv.score_terms import ScoreFunction, ScoreTerms
from qkv.tap import NO_TAP, Tap

_QUERY_CHUNK = 512  # queries in a chunk where the mask of all of them would be too large


def attend(
    query: Float[Tensor, "batch heads queries d_key"],
    key: Float[Tensor, "batch kv_heads keys d_key"],
    value: Float[Tensor, "batch kv_heads keys d_value"],
    *,
    mask: Mask | Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    score: ScoreFunction | None = None,
    dropout: float = 0.0,
    tap: Tap = NO_TAP,
) -> Float[Tensor, "batch heads queries d_value"]:
    """Return a weighted sum of the values for each query, with weights from the scores of its keys.

    The conventions are those of the ONNX Attention operator. Query heads share key and value heads in groups of
    heads / kv_heads neighbours. A query that may see no key gets 0, forward and backward.

    mask: a `Mask`, or a bool tensor (True = may attend) or a float tensor (added) that broadcasts to
        (batch, heads, queries, keys).
    bias: added to the scores after softcap; broadcasts likewise.
    scale: a factor of the dot product, by default 1 / sqrt(d_key).
    softcap: limits the scaled scores to softcap * tanh(scores / softcap), before bias and mask.
    sinks: an additional score for each head, whose weight is discarded.
    score: replaces the scaled dot product, e.g. by the additive score of Bahdanau et al. 2015.
    dropout: the probability with which a weight is dropped (and the others are scaled up).
    """
    query, key, value, bias = _apply_tap(query, key, value, bias, tap)
    terms = ScoreTerms(mask, bias, scale, softcap, sinks, score)
    tap.score_terms(terms)
    explicit = score is not None or softcap is not None or sinks is not None
    large = query.shape[0] * query.shape[2] * key.shape[2] > MAX_MASK_ELEMENTS
    if explicit or tap.replaces("scores") or tap.replaces("weights"):
        context, _ = _explicit_attention(query, key, value, terms, dropout, tap)
    elif large and isinstance(mask, Mask) and not mask.is_only_causal and bias is None:
        context = _attend_by_rows(query, key, value, mask, scale, dropout)
    else:
        context = _fused_attention(query, key, value, mask, bias, scale, dropout)
    return tap("context", context)


def attend_with_weights(
    query: Float[Tensor, "batch heads queries d_key"],
    key: Float[Tensor, "batch kv_heads keys d_key"],
    value: Float[Tensor, "batch kv_heads keys d_value"],
    *,
    mask: Mask | Tensor | None = None,
    tap: Tap = NO_TAP,
) -> tuple[Float[Tensor, "batch heads queries d_value"], Float[Tensor, "batch heads queries keys"]]:
    """Return the context of `attend` and the attention weights, for a caller that needs the weights."""
    query, key, value, bias = _apply_tap(query, key, value, None, tap)
    terms = ScoreTerms(mask, bias)
    tap.score_terms(terms)
    context, weights = _explicit_attention(query, key, value, terms, 0.0, tap)
    return tap("context", context), weights


def _apply_tap(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, tap: Tap
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    key, value, query = tap("key", key), tap("value", value), tap("query", query)
    # the query comes last: by then a tap knows the number of keys
    if (more := tap.score_bias(query, key)) is not None:
        bias = more if bias is None else bias + more
    return query, key, value, bias


def _explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, terms: ScoreTerms, dropout: float, tap: Tap
) -> tuple[Tensor, Tensor]:
    group = query.shape[1] // key.shape[1]
    key, value = _repeat_heads(key, group), _repeat_heads(value, group)
    found, visible = compute_scores(query, key, terms)
    weights = masked_softmax(tap("scores", found), visible, terms.sinks)
    weights = tap("weights", weights)
    return apply_dropout(weights, dropout) @ value, weights


def compute_scores(
    query: Float[Tensor, "batch heads queries d_key"],
    key: Float[Tensor, "batch heads keys d_key"],
    terms: ScoreTerms,
) -> tuple[Float[Tensor, "batch heads queries keys"], Tensor | None]:
    """Compute the scores before the softmax, with everything added, and which keys are visible (None: all)."""
    if terms.score is None:
        factor = 1 / math.sqrt(query.shape[-1]) if terms.scale is None else terms.scale
        if factor == 1.0:
            found = query @ key.mT
        elif query.dtype == torch.float16:  # their products overflow before they are scaled
            found = (query * factor) @ key.mT
        else:
            found = query @ key.mT * factor
    else:
        found = terms.score(query, key)
    if terms.softcap is not None:
        found = terms.softcap * torch.tanh(found / terms.softcap)
    added, visible = split_mask_and_bias(terms.mask, terms.bias, query, key)
    return found if added is None else found + added, visible


def split_mask_and_bias(
    mask: Mask | Tensor | None, bias: Tensor | None, query: Tensor, key: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Split mask and bias into a finite bias of the scores and a mask of the visible keys (None: no bias, all keys)."""
    if isinstance(mask, Mask):
        mask = mask.to_tensor(query.shape[-2], key.shape[-2], query.device)
    added, visible = bias, None
    if mask is not None and mask.dtype == torch.bool:
        visible = mask
    elif mask is not None:
        added = mask if added is None else added + mask
    if added is not None:
        # A float mask hides keys with -inf; added as a number, it would turn a query without visible keys into NaN.
        hidden = added == -math.inf
        visible = ~hidden if visible is None else visible & ~hidden
        added = added.masked_fill(hidden, 0.0).to(query.dtype)
    return added, visible


def masked_softmax(
    scores: Float[Tensor, "batch heads queries keys"],
    visible: Tensor | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """Turn scores into weights over the visible keys: they sum to 1, to less with sinks, to 0 where none is visible."""
    if visible is not None:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks[None, :, None, None].expand(scores.shape[0], -1, scores.shape[2], 1).to(scores.dtype)
        weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return weights if visible is None else weights.masked_fill(~visible, 0.0)


def _attend_by_rows(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float | None, dropout: float
) -> Tensor:
    """Run the kernel on chunks of queries, each over the keys that its queries may attend to."""
    parts = []
    for begin in range(0, query.shape[2], _QUERY_CHUNK):
        rows = begin, min(begin + _QUERY_CHUNK, query.shape[2])
        first, end = mask.visible_range(rows, key.shape[2])
        keys = min(first, key.shape[2] - 1), max(end, 1)  # at least one key, even a hidden one
        visible = mask.restrict(rows, keys)
        own = query[:, :, rows[0] : rows[1]], key[:, :, keys[0] : keys[1]], value[:, :, keys[0] : keys[1]]
        parts.append(_fused_attention(*own, visible, None, scale, dropout))
    return torch.cat(parts, dim=2)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    dropout: float,
) -> Tensor:
    causal = isinstance(mask, Mask) and mask.is_only_causal and bias is None
    if isinstance(mask, Mask):
        mask = None if causal else mask.to_tensor(query.shape[-2], key.shape[-2], query.device)
    if bias is not None:
        if mask is None:
            mask = bias
        else:
            mask = bias.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else bias + mask
    given = query.dtype
    # In half precision the kernel's backward pass is up to ten times slower on a CPU than in float32.
    learns = torch.is_grad_enabled() and query.requires_grad and query.device.type == "cpu"
    if wide := learns and given in (torch.bfloat16, torch.float16):
        query, key, value = query.float(), key.float(), value.float()
    if mask is not None and mask.dim() < 2:  # the kernel accepts no mask of keys alone
        mask = mask.expand(query.shape[-2], key.shape[-2])
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    with torch.autocast("cpu", enabled=False) if wide else nullcontext():
        context = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return context.to(given)


def _repeat_heads(tensor: Tensor, group: int) -> Tensor:
    return tensor if group == 1 else tensor.repeat_interleave(group, dim=1)


def apply_dropout(tensor: Tensor, rate: float) -> Tensor:
    """Set elements to 0 with probability `rate` and scale the others up (Srivastava et al. 2014).

    On a CPU the mask is made of random bytes, several times cheaper than one float each, so the rate is rounded
    to a multiple of 1/256; the scale is that of the rounded rate, and the mean stays exact.
    """
    if rate == 0.0:
        return tensor
    if tensor.device.type != "cpu":
        return functional.dropout(tensor, rate)
    threshold = round(rate * 256)
    words = torch.empty((tensor.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.uint8)[: tensor.numel()].view(tensor.shape) >= threshold
    return tensor * keep * (256 / (256 - threshold))
