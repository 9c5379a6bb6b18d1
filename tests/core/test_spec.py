"""Specs: what they refuse, and that JSON keeps all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv import spec
from qkv.errors import SpecError
from qkv.models import build
from qkv.presets import encoder_decoder, transformer_base, transformer_big


def build_small_spec(**changes: Any) -> spec.Transformer:
    options: dict[str, Any] = dict(source_vocab=9, target_vocab=11, d_model=8, heads=2, d_ff=12, layers=1)
    return encoder_decoder(**{**options, **changes})


@st.composite
def draw_spec(draw: Callable[..., Any]) -> spec.Spec:
    """Any small spec."""
    if draw(st.booleans()):
        return spec.Recurrent(
            cell=draw(st.sampled_from(["gru", "lstm"])),
            d_model=2 * draw(st.integers(1, 4)),
            layers=draw(st.integers(1, 2)),
            source=spec.Tokens(draw(st.integers(4, 9))),
            target=spec.Tokens(draw(st.integers(4, 9))),
            attention=draw(st.sampled_from([None, "additive", "dot", "general"])),
        )
    norm = spec.Norm(draw(st.sampled_from(["layer", "rms"])), draw(st.sampled_from([1e-5, 1e-6])))
    kv_heads = draw(st.integers(1, 2))
    position = st.sampled_from([None, spec.Rotary(), spec.Rotary(500.0, 0.5), spec.Alibi(), spec.RelativeBias(8, 20)])

    def attention(causal: bool, position: spec.Position | None) -> spec.Attention:
        return spec.Attention(
            heads=2 * kv_heads,
            d_key=4,
            d_value=draw(st.sampled_from([None, 3])),
            kv_heads=kv_heads,
            position=position,
            causal=causal,
            window=draw(st.sampled_from([None, 3])) if causal else None,
            qk_norm=draw(st.sampled_from([None, spec.Norm("rms")])),
            softcap=draw(st.sampled_from([None, 30.0])),
            sinks=draw(st.booleans()),
            bias=draw(st.booleans()),
        )

    feed_forward = spec.FeedForward(
        6, draw(st.sampled_from(["relu", "relu_squared", "gelu", "silu"])), draw(st.booleans()), draw(st.booleans())
    )
    norm_at = draw(st.sampled_from(["pre", "post", "both"]))

    def stack(vocab: int, causal: bool, cross: bool) -> spec.Stack:
        position_choice = draw(position)
        return spec.Stack(
            d_model=8,
            blocks=tuple(
                spec.Block(
                    attention(causal, position_choice),
                    feed_forward,
                    attention(False, None) if cross else None,
                    norm,
                    norm_at,
                )
                for _ in range(draw(st.integers(1, 2)))
            ),
            input=spec.Tokens(vocab, draw(st.booleans())),
            positions=draw(st.sampled_from([None, spec.Sinusoidal(), spec.Learned(16)])),
            embed_norm=draw(st.sampled_from([None, norm])),
            final_norm=draw(st.sampled_from([None, norm])),
        )

    shape = draw(st.sampled_from(["both", "decoder", "encoder"]))
    vocabulary = spec.Vocabulary(draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([None, 20.0])))
    if shape == "both":
        shared = draw(st.booleans())
        return spec.Transformer(
            stack(9 if shared else 7, False, False), stack(9, True, True), vocabulary, shared_embedding=shared
        )
    if shape == "decoder":
        return spec.Transformer(None, stack(9, True, False), vocabulary)
    classes = spec.Classes(3, draw(st.sampled_from(["first", "mean"])))
    return spec.Transformer(stack(9, False, False), None, draw(st.sampled_from([vocabulary, classes])))


@given(draw_spec())
def test_json_keeps_every_spec(choice: spec.Spec) -> None:
    assert spec.from_json(spec.to_json(choice)) == choice


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: spec.Attention(heads=12, d_key=4, kv_heads=5), "heads=12 is not a multiple of kv_heads=5"),
        (lambda: spec.Attention(heads=0, d_key=4), "heads=0 was given; it must be greater than 0"),
        (lambda: spec.Attention(2, 5, position=spec.Rotary()), "not an even number"),
        (lambda: spec.Norm("middle"), "'layer', 'rms'"),  # type: ignore[arg-type]
        (lambda: spec.FeedForward(4, "swish"), "'relu'"),  # type: ignore[arg-type]
        (lambda: build_small_spec(d_model=9), "d_model=9 is not a multiple of heads=2"),
        (lambda: build_small_spec(shared_embedding=True), "vocab is 9 in encoder and 11 in decoder"),
        (lambda: spec.Transformer(None, None, spec.Vocabulary()), "neither encoder nor decoder"),
        (lambda: spec.Transformer(None, build_small_spec().decoder, spec.Vocabulary()), "encoder is None"),
        (
            lambda: spec.Transformer(build_small_spec().encoder, build_small_spec().encoder, spec.Vocabulary()),
            "no decoder block",
        ),
        (
            lambda: spec.Transformer(build_small_spec().encoder, build_small_spec().decoder, spec.Classes(2)),
            "Classes needs encoder alone",
        ),
        (lambda: spec.from_json("{"), "not JSON"),
        (lambda: spec.from_json('{"node": "Mystery"}'), "node='Mystery'"),
        (lambda: spec.from_json('{"node": "Norm"}'), "must be a Transformer or a Recurrent"),
        (lambda: spec.from_json('{"node": "Tokens", "vocab": "many"}'), "spec.vocab='many'"),
        (lambda: spec.from_json('{"node": "Tokens", "size": 3}'), "no field 'size'"),
        (lambda: spec.from_json('{"node": "Tokens"}'), "vocab"),
    ],
)
def test_a_contradiction_is_refused_by_name(make: Callable[[], object], words: str) -> None:
    with pytest.raises(SpecError, match=".*") as error:
        make()
    assert words in str(error.value)


def test_a_changed_field_in_a_file_is_checked_like_any_other() -> None:
    changed = json.loads(spec.to_json(build_small_spec()))
    changed["encoder"]["blocks"][0]["self_attention"]["kv_heads"] = 5
    with pytest.raises(SpecError, match="not a multiple of kv_heads=5"):
        spec.from_json(json.dumps(changed))


@pytest.mark.parametrize(("preset", "millions"), [(transformer_base, 65), (transformer_big, 213)])
def test_the_models_of_2017_have_their_published_numbers_of_parameters(
    preset: Callable[[], spec.Transformer], millions: int
) -> None:
    with torch.device("meta"):
        model = build(preset())
    # The paper rounds, and does not say its exact vocabulary ("about 37000"): 3 per cent cover both.
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
