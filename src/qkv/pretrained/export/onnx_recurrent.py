"""Recurrent models in ONNX: its operators GRU and LSTM in place of ours, and the graphs of a recurrent model.

The operators take the length of each row and skip padding. Their gates have another order than torch's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.cache import Memory, SSRUCache
from qkv.layers import SSRU, AttentionInputs, Block
from qkv.models.recurrent import Recurrent, RecurrentState
from qkv.pretrained.export.onnx_graph import (
    EXAMPLE_BATCH,
    EXAMPLE_LENGTH,
    EXAMPLE_SOURCES,
    OPSET,
    Axes,
    Inputs,
    OnnxGraph,
)
from qkv.tap import NO_TAP, Tap

_GATE_ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
"""The index of torch's gate for each gate of ONNX: update, reset, new; and input, output, forget, new."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def replace_recurrences(model: ModuleT) -> ModuleT:
    """Return a copy of a model with the same parameters whose recurrent loops are replaced by operators."""
    copied = copy.deepcopy(model, {id(one): one for one in model.parameters()})
    for module in list(copied.modules()):
        if isinstance(module, Block) and isinstance(module.self_attention, SSRU):
            module.self_attention = _Recurrence(module.self_attention)  # type: ignore[assignment]
        elif isinstance(module, nn.ModuleList):
            for number, layer in enumerate(module):
                if isinstance(layer, nn.GRU | nn.LSTM):
                    module[number] = _RecurrentLayer(layer)
    return copied


class _RecurrentOperator(nn.Module):
    """The operator GRU or LSTM with its parameters, each (directions, ...), gates in the order of ONNX."""

    weight: Tensor
    recurrent: Tensor
    bias: Tensor

    def __init__(self, name: str, weight: Tensor, recurrent: Tensor, bias: Tensor, **attributes: Any) -> None:
        super().__init__()
        self.name, self.directions, self.width = name, recurrent.shape[0], recurrent.shape[2]
        direction = "bidirectional" if self.directions == 2 else "forward"
        self.attributes = {"hidden_size": self.width, "direction": direction, **attributes}
        for part, tensor in (("weight", weight), ("recurrent", recurrent), ("bias", bias)):
            self.register_buffer(part, tensor.detach())

    def forward(
        self, inputs: Tensor, first: Sequence[Tensor] = (), lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the operator on inputs (batch, n, d), first states (directions, batch, width) and lengths (batch,).

        Returns (batch, n, directions * width), 0 beyond a row's length, and the last states.
        """
        batch, length = inputs.shape[:2]
        given = [inputs.transpose(0, 1), self.weight, self.recurrent, self.bias]
        states = (self.directions, batch, self.width)
        shapes = [(length, *states), states, *([states] if self.name == "LSTM" else [])]
        found = torch.onnx.ops.symbolic_multi_out(
            self.name,
            [*given, None if lengths is None else lengths.int(), *first],
            self.attributes,
            dtypes=[inputs.dtype] * len(shapes),
            shapes=shapes,
            version=OPSET,
        )
        return found[0].permute(2, 0, 1, 3).flatten(2), tuple(found[1:])


class _RecurrentLayer(nn.Module):
    """A recurrent layer, called as torch's."""

    def __init__(self, layer: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        name = "GRU" if isinstance(layer, nn.GRU) else "LSTM"
        ends = ["", "_reverse"] if layer.bidirectional else [""]

        def whole(*parts: str) -> Tensor:
            """Concatenate some parameters for each direction."""
            chosen = [[getattr(layer, f"{part}_l0{end}") for part in parts] for end in ends]
            return torch.stack([torch.cat([_reorder_gates(one, name) for one in parts]) for parts in chosen])

        # torch applies the reset gate after the recurrent product, not before
        more: dict[str, Any] = {"linear_before_reset": 1} if name == "GRU" else {}
        weights = whole("weight_ih"), whole("weight_hh"), whole("bias_ih", "bias_hh")
        self.operator = _RecurrentOperator(name, *weights, **more)

    def forward(
        self, inputs: Tensor, first: Tensor | tuple[Tensor, ...] = (), lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        states, last = self.operator(inputs, (first,) if isinstance(first, Tensor) else first, lengths)
        return states, last if len(last) > 1 else last[0]


def _reorder_gates(parameter: Tensor, name: str) -> Tensor:
    gates = parameter.chunk(len(_GATE_ORDER[name]))
    return torch.cat([gates[number] for number in _GATE_ORDER[name]])


class _Recurrence(nn.Module):
    """A recurrence in place of attention: a GRU whose gates do not see the state, and without tanh on the new state."""

    def __init__(self, layer: SSRU) -> None:
        super().__init__()
        forget, value = layer.forget.weight, layer.value.weight
        bias = torch.cat([layer.forget.bias, forget.new_zeros(5 * len(forget))])
        self.operator = _RecurrentOperator(
            "GRU",
            torch.cat([forget, torch.zeros_like(forget), value])[None],
            forget.new_zeros(1, 3 * len(forget), len(forget)),
            bias[None],
            activations=["Sigmoid", "Affine"],
            activation_alpha=[1.0],
            activation_beta=[0.0],
        )

    def forward(
        self,
        hidden: Tensor,
        placing: AttentionInputs,
        memory: None = None,
        cache: SSRUCache | None = None,
        tap: Tap = NO_TAP,
    ) -> Tensor:
        first = () if cache is None or cache.state is None else (cache.state[None],)
        states, last = self.operator(hidden, first)  # padding follows, where it changes nothing before it
        if cache is not None:
            cache.state = last[0][0]
        return functional.relu(states)


class _Encoder(nn.Module):
    """The memory and, with attention, its keys, and the first state of each decoder layer."""

    def __init__(self, model: Recurrent) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, source_mask: Tensor) -> list[Tensor]:
        encoder, decoder = self.model.encoder, self.model.decoder
        lengths = source_mask.sum(dim=1)
        states = encoder.embedding(source)
        for layer in encoder.layers:
            states, _ = layer(states, lengths=lengths)
        memory = Memory(states, source_mask)
        first = [part for layer in decoder.start(memory) for part in layer]
        return (
            first if decoder.cross_attention is None else [states, decoder.cross_attention.compute_keys(memory), *first]
        )


class _Decoder(nn.Module):
    """Decoding steps that take the states of the layers and return those of the next step."""

    def __init__(self, model: Recurrent) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        past: Tensor | list[Tensor],
        memories: Sequence[Tensor] = (),
        source_mask: Tensor | None = None,
    ) -> list[Tensor]:
        decoder = self.model.decoder
        parts = decoder.parts
        past = [past] if isinstance(past, Tensor) else past
        hidden = tuple(tuple(past[begin : begin + parts]) for begin in range(0, len(past), parts))
        # without attention, the memory is not used
        states, key = memories or (past[0][:, None], None)
        state = RecurrentState(torch.zeros(0), Memory(states, source_mask), key, hidden)
        result, after = decoder(tokens, state)
        return [self.model.head(result), *(part for layer in after.hidden for part in layer)]


def build_recurrent_graphs(model: Recurrent) -> dict[str, OnnxGraph]:
    """Return the graphs of a recurrent model by file name."""
    choice: Any = model.spec
    assert isinstance(choice, spec.Recurrent)
    model = replace_recurrences(model)
    mask: Inputs = {
        "source_mask": (torch.ones(EXAMPLE_BATCH, EXAMPLE_SOURCES, dtype=torch.bool), {0: "batch", 1: "sources"})
    }
    source: Inputs = {
        "source": (torch.zeros(EXAMPLE_BATCH, EXAMPLE_SOURCES, dtype=torch.long), {0: "batch", 1: "sources"})
    }
    # attention before each step needs one token at a time
    steps = 1 if choice.attention == "additive" else EXAMPLE_LENGTH
    axes: Axes = {0: "batch"} if steps == 1 else {0: "batch", 1: "length"}
    tokens: Inputs = {"tokens": (torch.zeros(EXAMPLE_BATCH, steps, dtype=torch.long), axes)}
    parts = ("state", "cell") if choice.cell == "lstm" else ("state",)
    past: Inputs = {
        f"past.{number}.{part}": (torch.zeros(EXAMPLE_BATCH, choice.d_model), {0: "batch"})
        for number in range(choice.layers)
        for part in parts
    }
    memory: Inputs = {}
    if choice.attention is not None:
        memory = {
            "memory.states": (torch.zeros(EXAMPLE_BATCH, EXAMPLE_SOURCES, choice.d_model), {0: "batch", 1: "sources"}),
            "memory.key": (torch.zeros(EXAMPLE_BATCH, 1, EXAMPLE_SOURCES, choice.d_model), {0: "batch", 2: "sources"}),
        }
    present = (name.replace("past", "present") for name in past)
    return {
        "encoder.onnx": OnnxGraph(_Encoder(model), (source, mask), (*memory, *past)),
        "decoder.onnx": OnnxGraph(
            _Decoder(model), (tokens, past, *((memory, mask) if memory else ())), ("logits", *present)
        ),
    }
