"""How two specs differ is told whole: no choice of any node goes unsaid."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from qkv import presets, spec
from qkv.compare import compare_designs, compare_sizes

BLOCK = spec.Block(
    spec.Attention(4, 8, kv_heads=2, position=spec.Rotary(scaling=spec.LinearScaling(2.0)), causal=True,
                   qk_norm=spec.Norm("rms"), softcap=3.0),
    spec.Experts(6, 2, spec.FeedForward(16, "silu", gated=True, limit=7.0)), spec.Attention(4, 8),
)  # fmt: skip
ENCODING = dataclasses.replace(
    BLOCK,
    self_attention=dataclasses.replace(BLOCK.self_attention, causal=False),
    feed_forward=spec.FeedForward(16),
    cross_attention=None,
)
MODEL = spec.Transformer(
    spec.Stack(32, (ENCODING,) * 2, spec.Tokens(9, segments=spec.Segments(2, 3)), spec.Sinusoidal(), spec.Norm()),
    spec.Stack(32, (BLOCK,) * 3, spec.Tokens(11), spec.Learned(7), final_norm=spec.Norm()),
    spec.Vocabulary(dense=spec.Dense("gelu")),
)
GPT2 = spec.Transformer(
    None,
    spec.Stack(
        768,
        (spec.Block(spec.Attention(12, 64, causal=True), spec.FeedForward(3072, "gelu_tanh")),) * 12,
        spec.Tokens(50257), spec.Learned(1024), final_norm=spec.Norm(),
    ),
    spec.Vocabulary(),
)  # fmt: skip
RMS = spec.Norm("rms")
LLAMA = spec.Transformer(
    None,
    spec.Stack(
        4096,
        (
            spec.Block(
                spec.Attention(32, 128, kv_heads=8, position=spec.Rotary(5e5), causal=True, bias=False),
                spec.FeedForward(14336, "silu", gated=True, bias=False), norm=RMS,
            ),
        ) * 32,
        spec.Tokens(128256), final_norm=RMS,
    ),
    spec.Vocabulary(tied=False),
)  # fmt: skip


def test_gpt_2_becomes_llama_in_seven_changes() -> None:
    assert [change.name for change in compare_designs(GPT2, LLAMA)] == [
        "positions added to what is read",
        "norm",
        "feed-forward",
        "positions in attention",
        "heads that share keys and values",
        "biases of attention",
        "answer",
    ]
    assert {change.name: change.after for change in compare_sizes(GPT2, LLAMA)}["d_model"] == "4096"


@pytest.mark.parametrize("choice", [MODEL, GPT2, LLAMA, presets.transformer_base()])
def test_a_spec_does_not_differ_from_itself(choice: spec.Spec) -> None:
    assert compare_designs(choice, choice) == [] == compare_sizes(choice, choice)


def list_other_values(value: Any, hint: Any) -> list[Any]:
    """Some other values for a field of this kind."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 2 or 1]
    if isinstance(value, str):
        return [word for part in (hint, *typing.get_args(hint)) for word in typing.get_args(part) if word != value]
    return []


def alter_fields(node: Any) -> Iterator[tuple[str, Any]]:
    """Every spec that differs from `node` in one field of one node, where its rules allow it."""
    hints = typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            inner = [(f"{field.name}.{where}", other) for where, other in alter_fields(value)]
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            inner = [(f"{field.name}.{where}", (other, *value[1:])) for where, other in alter_fields(value[0])]
            inner.append((f"{field.name} count", (*value, value[0])))
        else:
            inner = [(field.name, other) for other in list_other_values(value, hints[field.name])]
        if value is not None and type(None) in typing.get_args(hints[field.name]):
            inner.append((f"{field.name}=None", None))
        for where, other in inner:
            try:
                yield where, dataclasses.replace(node, **{field.name: other})
            except spec.SpecError:
                continue


@pytest.mark.parametrize("where, other", list(alter_fields(MODEL)), ids=[where for where, _ in alter_fields(MODEL)])
def test_every_choice_is_told(where: str, other: spec.Spec) -> None:
    assert compare_designs(MODEL, other) or compare_sizes(MODEL, other)
