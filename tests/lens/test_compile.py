"""Looking into a compiled model changes no bit of it, and interventions are compiled with it, without a break."""

from __future__ import annotations

import pytest
import torch

from qkv import spec
from qkv.lens import Compose, Recorder, ablate, build_trace, knock_out, look, patch, swap_values
from qkv.models import SequenceModel, build
from tests.core.test_spec import build_small_spec

CROSS, SELF = "decoder.0.cross_attention", "decoder.1.self_attention"


def compiled(model: SequenceModel) -> SequenceModel:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")  # type: ignore[return-value]


@pytest.mark.compile
@torch.no_grad()
def test_looking_changes_no_bit_of_a_compiled_model() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec(heads=4, layers=2)).eval()
    source, target = torch.randint(9, (2, 5)), torch.randint(11, (2, 4))
    recorder = Recorder()
    run = compiled(model)
    assert torch.equal(run(source, target, tap=recorder), run(source, target))
    seen, eager = build_trace(recorder, model), look(model, source, target)
    assert set(seen.attentions) == set(eager.attentions)
    for attention in seen:
        assert attention.certify().max() < 1e-5
        torch.testing.assert_close(attention.compute_weights(), eager[attention.place].compute_weights())


@pytest.mark.compile
@torch.no_grad()
def test_interventions_compile_with_the_model() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec(heads=4, layers=2)).eval()
    source, target = torch.randint(9, (2, 5)), torch.randint(11, (2, 4))
    of = look(model, torch.randint(9, (1, 5)), torch.randint(11, (1, 4)))
    tap = Compose(
        ablate(CROSS, [1]),
        ablate(SELF, None, "resample", of[SELF]),
        knock_out("decoder.*.cross_attention", [1, 3], [2], [0]),
        patch(CROSS, "query", of[CROSS], positions=[1]),
        swap_values(CROSS, 0, 2),
    )
    torch.testing.assert_close(compiled(model)(source, target, tap=tap), model(source, target, tap=tap))


@pytest.mark.compile
@pytest.mark.parametrize("position", [spec.Rotary(), spec.RelativeBias(8, 16), spec.Alibi()], ids=str)
@torch.no_grad()
def test_a_compiled_decoder_alone(position: spec.Rotary | spec.RelativeBias | spec.Alibi) -> None:
    torch.manual_seed(0)
    attention = spec.Attention(heads=2, d_key=4, causal=True, position=position, softcap=9.0)
    stack = spec.Stack(8, (spec.Block(attention, spec.FeedForward(8)),) * 2, spec.Tokens(9))
    model = build(spec.Transformer(None, stack, spec.Vocabulary())).eval()
    target = torch.randint(9, (2, 6))
    run = compiled(model)
    assert torch.equal(run(target=target, tap=Recorder()), run(target=target))
