"""One attention for the page: its tensors, its score terms, and statistics of each of its heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qkv.attention import split_mask_and_bias
from qkv.lens import AttentionTrace, HeadReport, Trace, recompute
from qkv.lens.chunks import WeightChunks
from qkv.lens.head_reports import report_attention
from qkv.lens.recorder import Call
from qkv.mask import Mask
from qkv.view.blocks import Blocks, StorageDtype, round_trip

MaskRule = dict[str, Any]
"""Which keys every query may attend to: {"causal", "window", "past"}; see `find_mask_rule`."""

_REPORT_METRICS = ("previous", "sink", "entropy", "distance", "positional", "duplicate", "induction", "share")


def attentions_to_json(trace: Trace, row: int, blocks: Blocks, contexts: bool) -> list[dict[str, Any]]:
    """Describe all attentions for the page, with the statistics of every head."""
    descriptions = []
    for one in trace:
        chunks = one.compute_chunks()  # the weights of one attention at a time
        entry = attention_to_json(one, chunks, row, blocks, contexts)
        entry["error"] = max_weight_error(one, chunks, row, blocks.dtype)
        entry["statistics"] = compute_head_statistics(one, chunks, row, report_attention(trace, one, chunks, row))
        descriptions.append(entry)
    return descriptions


def describe_attention(attention: AttentionTrace) -> dict[str, Any]:
    """Describe an attention without its tensors."""
    parts = attention.place.split(".")
    is_cross = parts[-1] == "cross_attention"
    side = attention.side
    return {
        "place": attention.place,
        "stack": parts[0],
        "layer": next((int(part) for part in parts if part.isdigit()), 0),
        "kind": "cross" if is_cross else "self",
        "queries": side,
        "keys": "source" if is_cross else side,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "n_queries": attention.queries,
        "n_keys": attention.keys,
        "scale": attention.scale,
        "softcap": attention.score_terms.softcap,
    }


def attention_to_json(
    attention: AttentionTrace, pieces: WeightChunks, row: int, blocks: Blocks, contexts: bool
) -> dict[str, Any]:
    """Describe an attention for the page, with its tensors for one row of the batch."""
    found = describe_attention(attention)
    found["certified"] = [round(float(one), 12) for one in attention.certify(pieces)]
    for site in ("query", "key", "value"):
        found[site] = blocks.add(getattr(attention, site)[row])
    if contexts:
        found["context"] = blocks.add(attention.context[row])
    rule = find_mask_rule(attention)
    if attention.score_terms.score is not None or rule is None or _has_bias(attention):
        added, visible = _score_bias_and_visibility(attention, row)
        rule = rule or _infer_mask_rule(visible)
        if rule is None:
            found["visible"] = blocks.add(visible)
        if attention.score_terms.score is not None:
            # Not a dot product: the page cannot recompute the scores, so it gets them.
            scores = attention.compute_scores()[row]
            found["scores"] = blocks.add(scores.masked_fill(scores == -torch.inf, 0.0), "float32")
        elif added is not None:
            distances = compress_by_distance(added)
            found["score_bias" if distances is None else "score_bias_by_distance"] = blocks.add(
                added if distances is None else distances, "float32"
            )
    if rule is not None:
        found["rule"] = rule
    if (sinks := attention.score_terms.sinks) is not None:
        found["sinks"] = blocks.add(sinks, "float32")
    found["value_norms"] = blocks.add(
        compute_value_norms(attention, row), "float16" if blocks.dtype == "int8" else None
    )
    return found


def compute_value_norms(attention: AttentionTrace, row: int) -> Tensor:
    """Return how much each key can contribute, |value @ W_O| or, without W_O, |value|: (heads, keys)."""
    value = attention.value[row].float().repeat_interleave(attention.heads // attention.kv_heads, dim=0)
    if attention.output_weight is not None:
        value = value @ attention.output_weight.float()
    found: Tensor = torch.linalg.vector_norm(value, dim=-1)
    return found


def find_mask_rule(attention: AttentionTrace) -> MaskRule | None:
    """Return the rule that says which keys every query may attend to, if there is one: {"causal", "window", "past"}.

    A query is at position `past` + its number. causal: it attends to keys up to there. window: only to nearer ones.
    """
    rules: set[tuple[bool, int | None, int]] = set()
    offset = 0
    for call in attention.calls:
        mask = call.score_terms.mask
        if mask is None and call["key"].shape[2] == attention.keys:
            rules.add((False, None, 0))
        elif isinstance(mask, Mask) and mask.documents is None and (mask.key_mask is None or bool(mask.key_mask.all())):
            if isinstance(mask.window, tuple) or isinstance(mask.past, Tensor) or mask.allowed is not None:
                return None  # the page gets the matrix
            past = mask.past - offset if mask.causal or mask.window is not None else 0
            rules.add((mask.causal, mask.window, past))
        else:
            return None
        offset += call["query"].shape[2]
    if len(rules) != 1 or _bias_hides_keys(attention):
        return None
    causal, window, past = rules.pop()
    return {"causal": causal, "window": window, "past": past}


def _infer_mask_rule(visible: Tensor) -> MaskRule | None:
    """Return the rule that is equivalent to a matrix (heads or 1, queries, keys), if there is one."""
    queries, keys = visible.shape[1:]
    visible_keys = visible[0, -1].nonzero()
    if len(visible) > 1 or not len(visible_keys):
        return None
    first, last = int(visible_keys[0]), int(visible_keys[-1])
    past = last - queries + 1
    for causal, window in ((False, None), (True, None), (True, last - first + 1)):
        rule = Mask(causal, window, past if causal else 0)
        matrix = rule.to_tensor(queries, keys, visible.device)
        if past >= 0 and bool((visible[0] == (True if matrix is None else matrix)).all()):
            return {"causal": causal, "window": window, "past": rule.past}
    return None


def compress_by_distance(score_bias: Tensor) -> Tensor | None:
    """Return a bias of scores (heads, queries, keys) as (heads, distances), if it depends on key - query alone.

    The distance of key 0 from the last query comes first.
    """
    if bool((score_bias[:, 1:, 1:] != score_bias[:, :-1, :-1]).any()):
        return None
    return torch.cat([score_bias[:, :, 0].flip(1), score_bias[:, 0, 1:]], dim=1)


def compute_head_statistics(
    attention: AttentionTrace, pieces: WeightChunks, row: int, reports: Sequence[HeadReport]
) -> dict[str, list[float | None]]:
    """Return the statistics of each head by name: those of `lens.report_heads`, the mean of the largest weights, and
    the mean weight on the diagonal."""
    found = {name: [_round_to_5_digits(getattr(one, name)) for one in reports] for name in _REPORT_METRICS}
    largest, diagonal = torch.zeros(attention.heads), torch.zeros(attention.heads)
    for piece in pieces:
        weights = piece.weights[row].float().cpu()
        largest += weights.amax(dim=-1).sum(dim=-1)
        diagonal += weights.diagonal(piece.begin, dim1=-2, dim2=-1).sum(dim=-1)
    found["largest"] = [_round_to_5_digits(float(one)) for one in largest / attention.queries]
    found["diagonal"] = [_round_to_5_digits(float(one)) for one in diagonal / min(attention.queries, attention.keys)]
    return found


def max_weight_error(attention: AttentionTrace, pieces: WeightChunks, row: int, dtype: StorageDtype) -> float:
    """Return the largest error of any weight that is recomputed from queries and keys stored in a dtype."""
    worst = 0.0
    if dtype == "float32" or attention.score_terms.score is not None:
        return worst
    calls = []
    for call in attention.calls:
        kept = Call(recorded_terms=call.recorded_terms)
        for site in ("query", "key", "value", "context"):
            own = call[site][row : row + 1]
            kept.tensors[site] = round_trip(own, dtype) if site in ("query", "key") else own
        calls.append(kept)
    for piece in pieces:
        own = piece.weights[row : row + 1]
        other = recompute.compute_weights(calls[piece.call], range(attention.heads), piece.rows, own.shape[-1])
        worst = max(worst, float((other - own).abs().max()))
    return worst


def _has_bias(attention: AttentionTrace) -> bool:
    return any(call.score_terms.bias is not None for call in attention.calls)


def _bias_hides_keys(attention: AttentionTrace) -> bool:
    """Return whether a bias hides keys, as an intervention does."""
    biases = [call.score_terms.bias for call in attention.calls]
    return any(bias is not None and bool(torch.isneginf(bias).any()) for bias in biases)


def _score_bias_and_visibility(attention: AttentionTrace, row: int) -> tuple[Tensor | None, Tensor]:
    """Return the bias of the scores and what is visible, each (heads or 1, queries, keys), over all calls."""
    added_parts: list[Tensor] = []
    visible_parts: list[Tensor] = []
    for call in attention.calls:
        query, key = call["query"], call["key"]
        added, visible = split_mask_and_bias(call.score_terms.mask, call.score_terms.bias, query, key)
        shape, absent = (query.shape[0], attention.heads, query.shape[2], key.shape[2]), attention.keys - key.shape[2]
        added = torch.zeros(()) if added is None else added.detach()
        visible = torch.ones((), dtype=torch.bool) if visible is None else visible
        added_parts.append(torch.nn.functional.pad(added.expand(shape)[row], (0, absent)))
        visible_parts.append(torch.nn.functional.pad(visible.expand(shape)[row], (0, absent), value=False))
    added, visible = torch.cat(added_parts, dim=1), torch.cat(visible_parts, dim=1)
    return (_collapse_equal_heads(added) if added.any() else None), _collapse_equal_heads(visible)


def _collapse_equal_heads(tensor: Tensor) -> Tensor:
    return tensor[:1] if bool((tensor == tensor[:1]).all()) else tensor


def _round_to_5_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
