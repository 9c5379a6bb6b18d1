"""Run a model once with a recorder and hand back what it saw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qkv.errors import QkvError
from qkv.lens.recorder import Recorder
from qkv.lens.trace import AttentionTrace, Trace
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap, check_patterns


def look(
    model: SequenceModel,
    source: Tensor | Sequence[int] | None = None,
    target: Tensor | Sequence[int] | None = None,
    source_mask: Tensor | None = None,
    target_mask: Tensor | None = None,
    tap: Tap = NO_TAP,
) -> Trace:
    """Run the model on its fast path, teacher forcing `target`, and keep what every attention saw.

    source, target: (batch, length) int64, or the numbers of one sequence; or a batch of what else the model reads,
    such as images (batch, channels, height, width). Masks as in `SequenceModel.forward`.
    tap: one that intervenes; the trace then shows what the model went on with.
    The logits are the same to the bit as without looking. Dropout, in a model in training mode, is not part of what
    is recomputed: call model.eval() first.
    """
    check_patterns(tap, list_places(model))
    device = next(model.parameters()).device
    source, target = _to_batch(source, "source", device), _to_batch(target, "target", device)
    recorder = Recorder(tap)
    with torch.no_grad():
        logits = model(source, target, source_mask, target_mask, tap=recorder)
    return build_trace(recorder, model, logits=logits, source=source, target=target)


def build_trace(
    recorder: Recorder,
    model: nn.Module,
    *,
    logits: Tensor | None = None,
    source: Tensor | None = None,
    target: Tensor | None = None,
) -> Trace:
    """Make a trace of what a recorder heard, e.g. through model.encode and model.step; looks W_O up in the model."""
    attentions = {}
    for place, calls in recorder.calls.items():
        if "query" in calls[0] and "context" in calls[0]:
            heads = calls[0]["query"].shape[1]
            attentions[place] = AttentionTrace(place, calls, _get_output_weight(model, place, heads))
    return Trace(recorder.calls, attentions, logits, source, target)


def _to_batch(values: Tensor | Sequence[int] | None, name: str, device: torch.device) -> Tensor | None:
    if values is None:
        return None
    measured = isinstance(values, Tensor) and values.is_floating_point()  # an image or a sound, and no tokens
    batch = torch.as_tensor(values, dtype=None if measured else torch.int64, device=device)
    batch = batch[None] if batch.dim() == 1 else batch
    if (batch.dim() < 2 if measured else batch.dim() != 2) or batch.numel() == 0:
        raise QkvError(
            f"{name} of shape {tuple(batch.shape)} was given; (batch, length) with at least one token was expected: "
            "give the numbers of its tokens, e.g. tokenizer.encode(text). Of images or sounds, give a batch"
        )
    return batch


def list_places(model: nn.Module) -> list[str]:
    """Return the names of all places of a model, such as "encoder.0.self_attention", as taps are told them."""
    places = []
    for name, module in model.named_modules():
        parts = name.split(".")
        place = ".".join(part for part in parts if part != "blocks")
        if parts[-1] == "blocks" or not place:
            continue
        places.append(place)
        places += [f"{place}.{part}" for part in getattr(module, "attention_places", ())]
        owner = model.get_submodule(".".join(parts[: parts.index("blocks")])) if "blocks" in parts else module
        blocks, repeats = getattr(owner, "blocks", ()), getattr(getattr(owner, "config", None), "repeats", 1)
        if "blocks" in parts and repeats > 1:  # a stack that repeats its blocks counts on
            at = parts.index("blocks")
            for turn in range(1, repeats):
                number = str(int(parts[at + 1]) + turn * len(blocks))
                places.append(".".join([*parts[:at], number, *parts[at + 2 :]]))
    return places


def find_submodule(model: nn.Module, place: str) -> object:
    """The part of a model that calls a place by its name ("decoder.3.self_attention"); None if there is none."""
    part: object = model
    for name in place.split("."):
        if name.isdigit():  # a stack that repeats its blocks counts on
            blocks: Sequence[object] = getattr(part, "blocks", ())
            part = blocks[int(name) % len(blocks)] if len(blocks) else None
        else:
            part = getattr(part, name, None)
        if part is None:
            return None
    return part


def _get_output_weight(model: nn.Module, place: str, heads: int) -> Tensor | None:
    """W_O of the attention at a place, by head: (heads, d_value, d_model), or None if it has none."""
    matrix = getattr(getattr(find_submodule(model, place), "output", None), "weight", None)  # it may be kept in int8
    if not isinstance(matrix, Tensor) or matrix.dim() != 2 or matrix.shape[1] % heads:
        return None
    return matrix.detach().reshape(matrix.shape[0], heads, -1).permute(1, 2, 0)
