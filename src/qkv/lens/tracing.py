"""Run a model once and return a trace of every attention in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qkv.errors import QkvError
from qkv.lens.recorder import Recorder
from qkv.lens.trace import AttentionTrace, Trace
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap


def look(
    model: SequenceModel,
    source: Tensor | Sequence[int] | None = None,
    target: Tensor | Sequence[int] | None = None,
    source_mask: Tensor | None = None,
    target_mask: Tensor | None = None,
    tap: Tap = NO_TAP,
) -> Trace:
    """Run the model on its fast path, with `target` as the decoder's input, and return a trace of every attention.

    source, target: (batch, length) int64, or the token ids of one sequence; or a batch of another input of the model,
    such as images (batch, channels, height, width). Masks as in `SequenceModel.forward`.
    tap: an edit; the trace then shows the tensors that the model continued with.
    The logits equal those without a trace to the last bit. Dropout, in a model in training mode, is not recomputed:
    call model.eval() first.
    Raises QkvError for an edit of a place, site or position that does not exist.
    """
    device = next(model.parameters()).device
    source, target = _to_batch(source, "source", device), _to_batch(target, "target", device)
    recorder = Recorder(tap)
    with torch.no_grad():
        logits = model(source, target, source_mask, target_mask, tap=recorder)
    recorder.check_applied()
    return build_trace(recorder, model, logits=logits, source=source, target=target)


def build_trace(
    recorder: Recorder,
    model: nn.Module | None = None,
    *,
    logits: Tensor | None = None,
    source: Tensor | None = None,
    target: Tensor | None = None,
) -> Trace:
    """Build a trace from a recorder that was the tap of a model, e.g. in model.encode and model.step, or of `attend`.

    model: the model to read W_O from. Without it, the trace contains everything else.

    Example: `attend(query, key, value, tap=recorder.at("mine")); build_trace(recorder)["mine"].weights`
    """
    attentions = {}
    for place, calls in recorder.calls.items():
        if "query" in calls[0] and "context" in calls[0]:
            heads = calls[0]["query"].shape[1]
            output_weight = None if model is None else _get_output_weight(model, place, heads)
            attentions[place] = AttentionTrace(place, calls, output_weight)
    return Trace(recorder.calls, attentions, logits, source, target)


def _to_batch(values: Tensor | Sequence[int] | None, name: str, device: torch.device) -> Tensor | None:
    if values is None:
        return None
    measured = isinstance(values, Tensor) and values.is_floating_point()  # an image or audio rather than tokens
    batch = torch.as_tensor(values, dtype=None if measured else torch.int64, device=device)
    batch = batch[None] if batch.dim() == 1 else batch
    if (batch.dim() < 2 if measured else batch.dim() != 2) or batch.numel() == 0:
        raise QkvError(
            f"{name} of shape {tuple(batch.shape)} was given; (batch, length) with at least one token was expected: "
            "give the numbers of its tokens, e.g. tokenizer.encode(text). For images or audio, give a batch"
        )
    return batch


def find_submodule(model: nn.Module, place: str) -> object:
    """Return the part of a model at a place, such as "decoder.3.self_attention"; None if there is none."""
    part: object = model
    for name in place.split("."):
        if name.isdigit():  # a stack that repeats its blocks continues the numbering
            blocks: Sequence[object] = getattr(part, "blocks", ())
            part = blocks[int(name) % len(blocks)] if len(blocks) else None
        else:
            part = getattr(part, name, None)
        if part is None:
            return None
    return part


def _get_output_weight(model: nn.Module, place: str, heads: int) -> Tensor | None:
    """Return W_O of the attention at a place, by head: (heads, d_value, d_model), or None if it has none."""
    matrix = getattr(getattr(find_submodule(model, place), "output", None), "weight", None)  # it may be stored in int8
    if not isinstance(matrix, Tensor) or matrix.dim() != 2 or matrix.shape[1] % heads:
        return None
    return matrix.detach().reshape(matrix.shape[0], heads, -1).permute(1, 2, 0)
