"""Why: the probabilities are those of the model with just that taken away, and the cost is what is said."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import qkv
from qkv import spec
from qkv.errors import QkvError, SpecError
from qkv.lens import Compose, explain, knock_out
from qkv.lens.interventions import Intervention
from qkv.models import SequenceModel, build
from qkv.tap import NO_TAP, Tap
from tests.core.test_spec import build_small_spec
from tests.lens.test_trace import causal_model

SOURCE, TARGET = [1, 2, 3, 4], [1, 4, 5, 6]


def build_models() -> list[SequenceModel]:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(cell="gru", d_model=8, layers=1, source=spec.Tokens(9), target=spec.Tokens(11))
    return [
        build(build_small_spec(heads=4, layers=2)).eval(),
        build(spec.Recurrent(attention="additive", **sizes)).eval(),
        build(spec.Recurrent(attention="dot", **sizes)).eval(),
    ]


def compute_probability(model: SequenceModel, position: int, token: int, tap: Tap = NO_TAP) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([SOURCE]), torch.tensor([TARGET[:position]]), tap=tap)
    return float(logits[0, -1].softmax(dim=-1)[token])


def mean_of_others(position: int) -> Any:
    def change(tensor: Tensor) -> Tensor:
        others = [number for number in range(tensor.shape[2]) if number != position]
        changed = tensor.clone()
        changed[:, :, position] = tensor[:, :, others].mean(dim=2)
        return changed

    return change


@pytest.mark.parametrize("number", range(3))
def test_each_probability_is_that_of_the_model_without(number: int) -> None:
    model = build_models()[number]
    found = explain(model, SOURCE, TARGET, 3, heads=2, batch_size=5)
    assert found.token == 6 and found.probability == pytest.approx(compute_probability(model, 3, 6), abs=1e-6)
    sides = {"source": "cross_attention", "past": "self_attention"}
    assert len(found.effects) == (7 if number == 0 else 4)
    for reason in found.effects:
        place = f"decoder.{'*.' if number == 0 else ''}{sides[reason.side]}"
        for value, tap in (
            (reason.probability_without, knock_out(place, [reason.position])),
            (reason.probability_without_match, Intervention(place, "key", mean_of_others(reason.position))),
            (reason.probability_without_content, Intervention(place, "value", mean_of_others(reason.position))),
        ):
            assert value == pytest.approx(compute_probability(model, 3, 6, tap), abs=1e-5)
        for effect in reason.heads:
            tap = knock_out(effect.place, [reason.position], heads=[effect.head])
            assert effect.probability == pytest.approx(compute_probability(model, 3, 6, tap), abs=1e-5)
    after = [reason.probability_without for reason in found.effects]
    assert after == sorted(after) and [len(one.heads) for one in found.effects[:3]] == [8 if number == 0 else 1] * 2 + [
        0
    ]
    rows = [1, 3 * len(found.effects), 2 * len(found.effects[0].heads)]
    assert found.forward_passes == sum(math.ceil(count / 5) for count in rows)


def test_what_comes_next_and_a_decoder_alone() -> None:
    model = causal_model()
    found = explain(model, None, [1, 2, 3], 3)
    with torch.no_grad():
        probabilities = model(target=torch.tensor([[1, 2, 3]]))[0, -1].softmax(dim=-1)
    assert found.token == int(probabilities.argmax())
    assert [reason.token for reason in sorted(found.effects, key=lambda one: one.position)] == [1, 2, 3]
    assert explain(model, None, [1, 2, 3], 3, token=0).probability == pytest.approx(float(probabilities[0]), abs=1e-6)


def test_a_sound_is_there_because_of_its_letters() -> None:
    runner = qkv.load("pronunciation")
    looked = runner.look("ship")
    begin = [runner.target_tokenizer.bos, *looked.answer.tokens]
    names = runner.token_names(begin)
    found = explain(runner.module.eval(), runner.validate_inputs(["ship"])[0], begin, names.index("SH"))
    assert found.probability > 0.9
    assert {looked.source_tokens[reason.position] for reason in found.effects[:2]} == {"s", "h"}
    assert found.effects[0].probability_without < found.probability - 0.1
    line = found.to_lines(looked.source_tokens, names)[0]
    assert f"{found.probability:.2f} -> {found.effects[0].probability_without:.2f} without it" in line


def test_mistakes_are_named() -> None:
    model = build_models()[0]
    for position in (0, 5):
        with pytest.raises(QkvError, match="expected 1 to 4"):
            explain(model, SOURCE, TARGET, position)
    with pytest.raises(QkvError, match="one sequence"):
        explain(model, [SOURCE, SOURCE], TARGET, 1)  # type: ignore[list-item]
    with pytest.raises(SpecError, match="only an encoder"):
        explain(build(spec.Transformer(build_small_spec().encoder, None, spec.Classes(2))), SOURCE, TARGET, 1)
    assert not explain(model, SOURCE, TARGET, 1, heads=0).effects[0].heads
    assert Compose().at("decoder").score_bias(torch.ones(1), torch.ones(1)) is None
