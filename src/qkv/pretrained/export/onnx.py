"""Export to ONNX graphs. A decoder's graph takes the past keys and values and returns the new ones.

The graphs use opset 23, in which attention is an operator (Attention, ONNX 1.18).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.cache import KeyValueCache, Memory, SSRUCache
from qkv.errors import SpecError
from qkv.layers import Attention, AttentionInputs
from qkv.models import SequenceModel
from qkv.models.dual_encoder import DualEncoder
from qkv.models.recurrent import Recurrent
from qkv.models.transformer import Transformer
from qkv.outputs import PointerGeneratorHead
from qkv.pretrained.export.onnx_graph import (
    EXAMPLE_BATCH,
    EXAMPLE_LENGTH,
    EXAMPLE_PAST,
    EXAMPLE_SOURCES,
    Inputs,
    OnnxGraph,
    save_graph,
)
from qkv.pretrained.export.onnx_recurrent import build_recurrent_graphs, replace_recurrences
from qkv.pretrained.export.output_folder import import_library

_EXAMPLE_FRAMES, _EXAMPLE_SAMPLES = 20, 16_000


def to_onnx(model: SequenceModel, folder: Path) -> None:
    """Write the graphs of a model to an existing folder. Masks are bool, True = real.

    An encoder is model.onnx: source, source_mask (batch, sources) -> its output. A decoder is model.onnx: tokens
    (batch,
    length), past.N.key, past.N.value (batch, kv_heads, past, d) -> logits (batch, length, vocab), present.N.key,
    present.N.value, which are the past of the next step; the first past has length 0. A recurrent block has
    past.N.state
    (batch, d_model), first 0, and past.length () int64 where no other input implies the length.
    An encoder-decoder is encoder.onnx, which returns memory.N.key and memory.N.value, and decoder.onnx, which takes
    them
    and source_mask as well; with copying, also memory.states, memory.key and source. For a recurrent model,
    encoder.onnx
    returns the first past.N.state and past.N.cell, and, with attention, memory.states and memory.key; with additive
    attention, tokens are (batch, 1). Images and audio have no mask: source (batch, channels, height, width), (batch,
    mels, frames) or (batch, samples). Trajectories have one: (batch, steps, 2 + state + action). A dual encoder is
    source.onnx and target.onnx, each like an encoder; the logits of sources (sources, width), which include the factor,
    and targets are source @ target.T.
    Raises SpecError for other models and MissingExtraError without onnxscript.
    """
    import_library("onnxscript", "onnx")
    model.eval()
    for name, graph in _build_graphs(model).items():
        save_graph(graph, folder / name)


def _build_graphs(model: SequenceModel) -> dict[str, OnnxGraph]:
    """Return the graphs of a model by file name."""
    if isinstance(model, Recurrent):
        return build_recurrent_graphs(model)
    if isinstance(model, DualEncoder):
        [source], [target] = (_build_graphs(tower).values() for tower in (model.source, model.target))
        return {
            "source.onnx": replace(source, module=_ScaledEncoder(source.module, model.logit_scale)),
            "target.onnx": target,
        }
    if not isinstance(model, Transformer):
        raise SpecError(f"a {type(model).__name__} was given; expected a model that was built from a spec")
    _require_traceable(model.spec)
    model = replace_recurrences(model)
    if model.decoder is None:
        return {"model.onnx": _build_encoder_only_graph(model)}
    if model.encoder is None:
        return {"model.onnx": _build_decoder_graph(model)}
    return {"encoder.onnx": _build_encoder_graph(model), "decoder.onnx": _build_decoder_graph(model)}


class _ExternalKeyValues(KeyValueCache):
    """Keys and values as inputs and outputs, in place of the model's own cache, which writes into buffers."""

    def __init__(self, key: Tensor | None = None, value: Tensor | None = None) -> None:
        super().__init__()
        self._key, self._value = key, value
        self.length = 0 if key is None else key.shape[2]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Join the past and the new keys and values (batch, kv_heads, n, d), as a cache does."""
        if self._key is not None and self._value is not None:
            key, value = torch.cat([self._key, key], dim=2), torch.cat([self._value, value], dim=2)
        self._key, self._value, self.length = key, value, key.shape[2]
        return key, value


class _EncoderOnly(nn.Module):
    """An encoder and its head."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        answer: Tensor = self.model(source, source_mask=source_mask)
        return answer


class _ScaledEncoder(nn.Module):
    """The source encoder of a dual encoder, with the factor of the similarity multiplied into its vectors."""

    def __init__(self, encoder: nn.Module, log_factor: nn.Parameter) -> None:
        super().__init__()
        self.encoder, self.log_factor = encoder, log_factor

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        given = (source,) if source_mask is None else (source, source_mask)
        answer: Tensor = self.log_factor.exp() * self.encoder(*given)
        return answer


class _Encoder(nn.Module):
    """An encoder, and the keys and values that each cross-attention computes from its memory, in order.

    With copying, the memory and its keys follow.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> list[Tensor]:
        memory = self.model.encode(source, source_mask)
        assert memory is not None
        pairs: list[Tensor] = []
        for attention in _iter_cross_attentions(self.model):
            pairs += attention.compute_keys_and_values(memory.states, memory.states, AttentionInputs(), None)
        if memory.key is not None:
            pairs += [memory.states, memory.key]
        return pairs


class _Decoder(nn.Module):
    """A decoding step that takes the past as inputs and returns that of the next step."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        past: Tensor | list[Tensor],
        memories: Sequence[Tensor] = (),
        source_mask: Tensor | None = None,
        source: Tensor | None = None,
    ) -> list[Tensor]:
        decoder, answer = self.model.decoder, self.model.head
        assert decoder is not None
        pasts, rest = iter([past] if isinstance(past, Tensor) else past), iter(memories)
        caches, length = decoder.build_caches(), 0
        for block, cache in zip([*decoder.blocks] * decoder.config.repeats, caches, strict=True):
            if isinstance(cache.self_attention, SSRUCache):
                cache.self_attention.state = next(pasts)
            else:
                cache.self_attention = _ExternalKeyValues(next(pasts), next(pasts))
                length = cache.self_attention.length
            if block.cross_attention is not None:
                cache.cross_attention = _ExternalKeyValues(next(rest), next(rest))
        next_past = next(pasts, None)
        if next_past is not None:
            length = _read_length(next_past, tokens.shape[1], decoder.config.positions)
        memory = None
        if isinstance(answer, PointerGeneratorHead):
            memory = Memory(next(rest), source_mask, source, next(rest))
        elif memories:
            memory = Memory(memories[0], source_mask)  # its states are not used, only its keys
        hidden = decoder(tokens, None, memory, caches, past=length)
        found = [answer(hidden) if memory is None or memory.key is None else answer(hidden, memory)]
        for cache in caches:
            kept = cache.self_attention
            found += [kept.state] if isinstance(kept, SSRUCache) else kept.get() or ()
        return found if next_past is None else [*found, next_past + tokens.shape[1]]


def _read_length(past: Tensor, length: int, positions: object) -> int:
    """Return a length that is a number in the graph rather than the size of an axis."""
    number: Any = past.item()
    promise: Any = torch._check  # a fact for the tracer, which cannot see it
    promise(number >= 0)
    if isinstance(positions, spec.Learned):
        promise(number + length <= positions.length)
    int_length: int = number
    return int_length


def _require_traceable(config: Any) -> None:
    """Raise SpecError for models that do not read tokens and for blocks with data-dependent computation."""
    if config.decoder is not None:
        _require_tokens(config.decoder, "decoder")
    for name in ("encoder", "decoder"):
        stack = getattr(config, name)
        for block in stack.blocks if stack else ():
            if not isinstance(block.feed_forward, spec.FeedForward):
                raise SpecError(
                    f"{name} blocks have feed_forward={type(block.feed_forward).__name__}; "
                    "ONNX export supports only blocks whose feed_forward is FeedForward"
                )


def _build_encoder_only_graph(model: Transformer) -> OnnxGraph:
    """Build the graph of an encoder."""
    choice: Any = model.spec
    return OnnxGraph(_EncoderOnly(model), _build_source_inputs(choice.encoder), ("answer",))


def _build_encoder_graph(model: Transformer) -> OnnxGraph:
    choice: Any = model.spec
    return OnnxGraph(_Encoder(model), _build_source_inputs(choice.encoder), tuple(_build_memory_inputs(model)))


def _build_decoder_graph(model: Transformer) -> OnnxGraph:
    whole: Any = model.spec
    choice, decoder = whole.decoder, model.decoder
    assert decoder is not None
    tokens = torch.zeros(EXAMPLE_BATCH, EXAMPLE_LENGTH, dtype=torch.long)
    past: Inputs = {}
    for number in range(decoder.depth):
        attention = choice.blocks[number % len(choice.blocks)].self_attention
        if isinstance(attention, spec.SSRU):
            past[f"past.{number}.state"] = (torch.zeros(EXAMPLE_BATCH, choice.d_model), {0: "batch"})
        else:
            past |= _build_key_value_inputs(f"past.{number}", attention, EXAMPLE_PAST, "past")
    if choice.positions is not None and all(isinstance(block.self_attention, spec.SSRU) for block in choice.blocks):
        past["past.length"] = (torch.tensor(EXAMPLE_PAST), {})
    inputs: list[Inputs] = [{"tokens": (tokens, {0: "batch", 1: "length"})}, past]
    if model.encoder is not None:
        mask = torch.ones(EXAMPLE_BATCH, EXAMPLE_SOURCES, dtype=torch.bool)
        inputs += [_build_memory_inputs(model), {"source_mask": (mask, {0: "batch", 1: "sources"})}]
        if isinstance(model.head, PointerGeneratorHead):
            source = torch.zeros(EXAMPLE_BATCH, EXAMPLE_SOURCES, dtype=torch.long)
            inputs.append({"source": (source, {0: "batch", 1: "sources"})})
    return OnnxGraph(_Decoder(model), tuple(inputs), ("logits", *(name.replace("past", "present") for name in past)))


def _build_memory_inputs(model: Transformer) -> Inputs:
    """Return the keys and values of each cross-attention by name; with copying, the memory and its keys as well."""
    pairs: Inputs = {}
    for number, attention in enumerate(_iter_cross_attentions(model)):
        pairs |= _build_key_value_inputs(f"memory.{number}", attention.config, EXAMPLE_SOURCES, "sources")
    whole: Any = model.spec
    if isinstance(whole.head, spec.PointerGenerator):
        states = torch.zeros(EXAMPLE_BATCH, EXAMPLE_SOURCES, whole.encoder.d_model)
        pairs["memory.states"] = (states, {0: "batch", 1: "sources"})
        key = torch.zeros(EXAMPLE_BATCH, 1, EXAMPLE_SOURCES, whole.head.d_key)
        pairs["memory.key"] = (key, {0: "batch", 2: "sources"})
    return pairs


def _build_key_value_inputs(name: str, config: spec.Attention, length: int, axis: str) -> Inputs:
    heads = config.kv_heads or config.heads
    axes = {0: "batch", 2: axis}
    return {
        f"{name}.key": (torch.zeros(EXAMPLE_BATCH, heads, length, config.d_key), axes),
        f"{name}.value": (torch.zeros(EXAMPLE_BATCH, heads, length, config.d_value or config.d_key), axes),
    }


def _iter_cross_attentions(model: Transformer) -> Iterator[Attention]:
    """Yield the cross-attentions in the order in which they run."""
    decoder = model.decoder
    assert decoder is not None
    for block in [*decoder.blocks] * decoder.config.repeats:
        if isinstance(block.cross_attention, Attention):
            yield block.cross_attention


def _build_source_inputs(config: spec.Stack) -> tuple[Inputs, ...]:
    """Return the inputs of an encoder: tokens and their mask, images of the one size that it has positions for, or
    audio
    of one length, which is fixed where it has positions for only that many frames.
    """
    if isinstance(config.input, spec.Frames):
        learned = config.positions.length if isinstance(config.positions, spec.Learned) else None
        frames = torch.zeros(
            EXAMPLE_BATCH, config.input.mels, config.input.frames_per_position * (learned or _EXAMPLE_FRAMES)
        )
        return ({"source": (frames, {0: "batch"} if learned else {0: "batch", 2: "frames"})},)
    if isinstance(config.input, spec.Waveform):
        return ({"source": (torch.zeros(EXAMPLE_BATCH, _EXAMPLE_SAMPLES), {0: "batch", 1: "samples"})},)
    if isinstance(config.input, spec.Patches) and isinstance(config.positions, spec.Learned):
        side = math.isqrt(config.positions.length - config.input.class_tokens) * config.input.size
        return ({"source": (torch.zeros(EXAMPLE_BATCH, config.input.channels, side, side), {0: "batch"})},)
    axes = {0: "batch", 1: "sources"}
    if isinstance(config.input, spec.Trajectory):
        steps = torch.zeros(EXAMPLE_BATCH, EXAMPLE_SOURCES, 2 + config.input.state_dim + config.input.action_dim)
        return (
            {"source": (steps, {0: "batch", 1: "steps"})},
            {"source_mask": (torch.ones(EXAMPLE_BATCH, EXAMPLE_SOURCES, dtype=torch.bool), {0: "batch", 1: "steps"})},
        )
    _require_tokens(config, "encoder")
    return (
        {"source": (torch.zeros(EXAMPLE_BATCH, EXAMPLE_SOURCES, dtype=torch.long), axes)},
        {"source_mask": (torch.ones(EXAMPLE_BATCH, EXAMPLE_SOURCES, dtype=torch.bool), axes)},
    )


def _require_tokens(config: spec.Stack, name: str) -> None:
    if not isinstance(config.input, spec.Tokens):
        raise SpecError(
            f"the {name} reads {type(config.input).__name__}; ONNX export supports models that read Tokens, and "
            "encoders that read Frames, a Waveform, a Trajectory, or Patches with Learned positions"
        )
