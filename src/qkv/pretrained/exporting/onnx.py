"""Models as ONNX graphs: of a decoder, one that takes the keys and values of the past and gives those of the future.

The operators are those of opset 23, in which attention is one of them (Attention, ONNX 1.18).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qkv import spec
from qkv.cache import BlockCache, KeyValues, Memory
from qkv.errors import SpecError
from qkv.layers import Attention, Placing
from qkv.models import SequenceModel
from qkv.models.transformer import Transformer
from qkv.pretrained.exporting.folders import library

_OPSET = 23
_BATCH, _LENGTH, _PAST, _SOURCES = 2, 3, 4, 5  # of the example that is traced; none equals another by accident

_FRAMES, _SAMPLES = 20, 16_000

Axes = Mapping[int, str]


@dataclass(frozen=True)
class _Graph:
    """A module without state, what it takes, by name, and the names of what it gives.

    inputs: for each argument, an example or several, each with the names of those of its axes whose size may change.
    """

    module: nn.Module
    inputs: tuple[dict[str, tuple[Tensor, Axes]], ...]
    outputs: tuple[str, ...]


def to_onnx(model: SequenceModel, folder: Path) -> None:
    """Write the graphs of a model to an existing folder.

    An encoder alone is model.onnx: source, source_mask (batch, sources) -> its answer. A decoder alone is model.onnx:
    tokens (batch, length), past.N.key, past.N.value (batch, kv_heads, past, d) -> logits (batch, length, vocab),
    present.N.key, present.N.value, the past of the next step; it begins with a past of length 0. With both,
    encoder.onnx gives memory.N.key, memory.N.value, and decoder.onnx takes them and source_mask as well. Images and
    sounds go in without a mask: source (batch, channels, height, width), (batch, mels, frames) or (batch, samples).
    Masks are bool, True = real. Raises SpecError for a model of another kind, MissingExtraError without onnxscript.
    """
    library("onnxscript", "onnx")
    if not isinstance(model, Transformer):
        raise SpecError(f"a {type(model.spec).__name__} was given; ONNX graphs are made of a Transformer alone")
    model.eval()
    _require_traceable(model.spec)
    if model.decoder is None:
        _save(_alone(model), folder / "model.onnx")
        return
    if model.encoder is None:
        _save(_decoder(model), folder / "model.onnx")
        return
    _save(_encoder(model), folder / "encoder.onnx")
    _save(_decoder(model), folder / "decoder.onnx")


class _Given(KeyValues):
    """Keys and values that are handed in and out, where the model's own cache writes into buffers."""

    def __init__(self, key: Tensor | None = None, value: Tensor | None = None) -> None:
        super().__init__()
        self._key, self._value = key, value
        self.length = 0 if key is None else key.shape[2]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As in a cache of its own: join the past and what is new (batch, kv_heads, n, d)."""
        if self._key is not None and self._value is not None:
            key, value = torch.cat([self._key, key], dim=2), torch.cat([self._value, value], dim=2)
        self._key, self._value, self.length = key, value, key.shape[2]
        return key, value


class _WholeMasks(TorchFunctionMode):
    """Gives every attention a mask with a row for each query: onnxruntime takes none that broadcasts over them."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is functional.scaled_dot_product_attention and kwargs.get("attn_mask") is not None:
            mask, query, key = kwargs["attn_mask"], args[0], args[1]
            kwargs["attn_mask"] = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])
        return function(*args, **kwargs)


class _Alone(nn.Module):
    """An encoder and its answer."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        answer: Tensor = self.model(source, source_mask=source_mask)
        return answer


class _Encoder(nn.Module):
    """An encoder, and what each attention over the memory makes of it: keys and values, one after the other."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> list[Tensor]:
        memory = self.model.encode(source, source_mask)
        assert memory is not None
        pairs: list[Tensor] = []
        for attention in _crossing(self.model):
            pairs += attention.keys_and_values(memory.states, memory.states, Placing(), None)
        return pairs


class _Decoder(nn.Module):
    """A step of a decoder that is told its past and tells the next step's."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, past: list[Tensor], memories: Sequence[Tensor] = (), source_mask: Tensor | None = None
    ) -> list[Tensor]:
        decoder = self.model.decoder
        assert decoder is not None
        pasts, rest = iter(past), iter(memories)
        caches: list[Any] = []
        for block in [*decoder.blocks] * decoder.choice.repeats:
            across = _Given() if block.cross_attention is None else _Given(next(rest), next(rest))
            caches.append(BlockCache(_Given(next(pasts), next(pasts)), across))
        memory = Memory(memories[0], source_mask) if memories else None  # its states are not looked at: keys are kept
        hidden = decoder(tokens, None, memory, caches, past=past[0].shape[2])
        present = [tensor for cache in caches for tensor in cache.self_attention.kept()]
        return [self.model.answer(hidden), *present]


def _require_traceable(choice: Any) -> None:
    """Raise SpecError for what reads no tokens, and for blocks whose computation depends on what is computed."""
    if isinstance(choice.answers, spec.PointerGenerator):
        raise SpecError("answers=PointerGenerator was given; ONNX graphs are made of models that do not copy")
    if choice.decoder is not None:
        _require_tokens(choice.decoder, "decoder")
    for name in ("encoder", "decoder"):
        stack = getattr(choice, name)
        for block in stack.blocks if stack else ():
            for part, known in (("self_attention", spec.Attention), ("feed_forward", spec.FeedForward)):
                if not isinstance(getattr(block, part), known):
                    raise SpecError(
                        f"{name} blocks have {part}={type(getattr(block, part)).__name__}; "
                        f"ONNX graphs are made of blocks whose {part} is {known.__name__}"
                    )


def _alone(model: Transformer) -> _Graph:
    """The graph of an encoder alone."""
    choice: Any = model.spec
    return _Graph(_Alone(model), _sources(choice.encoder), ("answer",))


def _encoder(model: Transformer) -> _Graph:
    choice: Any = model.spec
    return _Graph(_Encoder(model), _sources(choice.encoder), tuple(_memories(model)))


def _decoder(model: Transformer) -> _Graph:
    whole: Any = model.spec
    choice, decoder = whole.decoder, model.decoder
    assert decoder is not None
    tokens = torch.zeros(_BATCH, _LENGTH, dtype=torch.long)
    past: dict[str, tuple[Tensor, Axes]] = {}
    for number in range(decoder.depth):
        attention = choice.blocks[number % len(choice.blocks)].self_attention
        past |= _pair(f"past.{number}", attention, _PAST, "past")
    inputs: list[dict[str, tuple[Tensor, Axes]]] = [{"tokens": (tokens, {0: "batch", 1: "length"})}, past]
    if model.encoder is not None:
        mask = torch.ones(_BATCH, _SOURCES, dtype=torch.bool)
        inputs += [_memories(model), {"source_mask": (mask, {0: "batch", 1: "sources"})}]
    return _Graph(_Decoder(model), tuple(inputs), ("logits", *(name.replace("past", "present") for name in past)))


def _memories(model: Transformer) -> dict[str, tuple[Tensor, Axes]]:
    """Keys and values of each attention over the memory, by name."""
    pairs: dict[str, tuple[Tensor, Axes]] = {}
    for number, attention in enumerate(_crossing(model)):
        pairs |= _pair(f"memory.{number}", attention.choice, _SOURCES, "sources")
    return pairs


def _pair(name: str, choice: spec.Attention, length: int, axis: str) -> dict[str, tuple[Tensor, Axes]]:
    heads = choice.kv_heads or choice.heads
    axes = {0: "batch", 2: axis}
    return {
        f"{name}.key": (torch.zeros(_BATCH, heads, length, choice.d_key), axes),
        f"{name}.value": (torch.zeros(_BATCH, heads, length, choice.d_value or choice.d_key), axes),
    }


def _crossing(model: Transformer) -> Iterator[Attention]:
    """The attentions over the memory, in the order in which they look at it."""
    decoder = model.decoder
    assert decoder is not None
    for block in [*decoder.blocks] * decoder.choice.repeats:
        if isinstance(block.cross_attention, Attention):
            yield block.cross_attention


def _sources(choice: spec.Stack) -> tuple[dict[str, tuple[Tensor, Axes]], ...]:
    """What an encoder reads: tokens and which of them are real, images of the one size it has positions for, or sounds
    of equal length, which it is if there are positions for so many frames alone.
    """
    if isinstance(choice.reads, spec.Frames):
        learned = choice.positions.length if isinstance(choice.positions, spec.Learned) else None
        frames = torch.zeros(_BATCH, choice.reads.mels, 2 * (learned or _FRAMES))
        return ({"source": (frames, {0: "batch"} if learned else {0: "batch", 2: "frames"})},)
    if isinstance(choice.reads, spec.Waveform):
        return ({"source": (torch.zeros(_BATCH, _SAMPLES), {0: "batch", 1: "samples"})},)
    if isinstance(choice.reads, spec.Patches) and isinstance(choice.positions, spec.Learned):
        side = math.isqrt(choice.positions.length - choice.reads.leading) * choice.reads.size
        return ({"source": (torch.zeros(_BATCH, choice.reads.channels, side, side), {0: "batch"})},)
    _require_tokens(choice, "encoder")
    axes = {0: "batch", 1: "sources"}
    return (
        {"source": (torch.zeros(_BATCH, _SOURCES, dtype=torch.long), axes)},
        {"source_mask": (torch.ones(_BATCH, _SOURCES, dtype=torch.bool), axes)},
    )


def _require_tokens(choice: spec.Stack, name: str) -> None:
    if not isinstance(choice.reads, spec.Tokens):
        raise SpecError(
            f"the {name} reads {type(choice.reads).__name__}; ONNX graphs are made of models that read Tokens, or of "
            "encoders that read Frames, a Waveform, or Patches with Learned positions"
        )


def _save(graph: _Graph, path: Path) -> None:
    """Trace a module with its example and write the graph, with the parameters in it or, from 2 GB on, beside it."""
    example = tuple(_form([tensor for tensor, _ in one.values()]) for one in graph.inputs)
    free = tuple(
        _form([dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _, axes in one.values()]) for one in graph.inputs
    )
    named = tuple(_form([dict(axes) for _, axes in one.values()]) for one in graph.inputs)
    with torch.no_grad(), _quiet():
        # What a model asks of sizes, such as no more tokens than there are positions, must not bind the graph to
        # the example's: it is left to the operators.
        with _WholeMasks():
            traced = torch.export.export(
                graph.module, example, dynamic_shapes=free, prefer_deferred_runtime_asserts_over_guards=True
            )
        program = torch.onnx.export(
            traced,
            opset_version=_OPSET,
            input_names=[name for one in graph.inputs for name in one],
            output_names=list(graph.outputs),
            dynamic_shapes=named,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def _form(one: list[Any]) -> Any:
    return one[0] if len(one) == 1 else one


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says of itself, and of libraries it looks for, from the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
