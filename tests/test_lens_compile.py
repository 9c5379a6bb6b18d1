"""Looking into a compiled model changes no bit of it and breaks no graph."""

from __future__ import annotations

import pytest
import torch

from qkv.lens import Recorder, look, trace_of
from qkv.models import SequenceModel, build
from test_spec import small


def compiled(model: SequenceModel) -> SequenceModel:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")  # type: ignore[return-value]


@pytest.mark.compile
@torch.no_grad()
def test_looking_changes_no_bit_of_a_compiled_model() -> None:
    torch.manual_seed(0)
    model = build(small(heads=4, layers=2)).eval()
    source, target = torch.randint(9, (2, 5)), torch.randint(11, (2, 4))
    recorder = Recorder()
    run = compiled(model)
    assert torch.equal(run(source, target, tap=recorder), run(source, target))
    seen, eager = trace_of(recorder, model), look(model, source, target)
    assert set(seen.attentions) == set(eager.attentions)
    for attention in seen:
        assert attention.certify().max() < 1e-5
        torch.testing.assert_close(attention.weights(), eager[attention.place].weights())
