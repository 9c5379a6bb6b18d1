"""A recurrence in the place of self-attention (SSRU): the formula, and the laws every decoder keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qkv import lens, spec
from qkv.decoding import Beam, DecodingConfig, LengthLimit, generate_batch
from qkv.errors import SpecError
from qkv.generation_rules import GenerationRules
from qkv.layers import SSRU, AttentionInputs
from qkv.models import build

ATTENTION, FEED_FORWARD = spec.Attention(2, 8), spec.FeedForward(24)
TOKENS = spec.Tokens(20)
ENCODER = spec.Stack(16, (spec.Block(ATTENTION, FEED_FORWARD),), TOKENS)
DECODER = spec.Stack(16, (spec.Block(spec.SSRU(), FEED_FORWARD, ATTENTION, norm_at="post"),) * 2, TOKENS)
CHOICE = spec.Transformer(ENCODER, DECODER, spec.Vocabulary())


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(CHOICE).eval()


def make_inputs(rows: int, length: int) -> Tensor:
    return torch.randint(3, 20, (rows, length), generator=torch.Generator().manual_seed(rows * length))


@torch.no_grad()
def test_the_state_is_a_running_mean_that_forgets() -> None:
    torch.manual_seed(1)
    layer, hidden = SSRU(4), torch.randn(1, 3, 4)
    torch.nn.init.normal_(layer.forget.bias)
    state = torch.zeros(4)
    for place in range(3):
        forget = torch.sigmoid(layer.forget.weight @ hidden[0, place] + layer.forget.bias)
        state = forget * state + (1 - forget) * (layer.value.weight @ hidden[0, place])
        torch.testing.assert_close(layer(hidden, AttentionInputs())[0, place], state.clamp(min=0))
    assert (state < 0).any()


@torch.no_grad()
def test_stepping_is_forward(model) -> None:
    source, target = make_inputs(2, 7), make_inputs(2, 9)
    state, steps = model.start(model.encode(source), 2), []
    for part in target.split([4, 1, 1, 3], dim=1):
        logits, state = model.step(part, state)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), model(source, target))


@torch.no_grad()
def test_rows_that_are_reordered_take_their_state_along(model) -> None:
    source, target, index = make_inputs(1, 7), make_inputs(3, 6), torch.tensor([2, 0, 2])
    memory = model.encode(source.expand(3, -1))
    _, state = model.step(target[:, :5], model.start(memory, 3))
    logits, _ = model.step(target[index, 5:], state.reorder(index))
    torch.testing.assert_close(logits, model(source.expand(3, -1), target)[index, 5:])


@torch.no_grad()
def test_what_is_hidden_might_as_well_be_absent(model) -> None:
    source, target = make_inputs(1, 7), make_inputs(1, 6)
    padded, mask = torch.cat([make_inputs(1, 2), target], 1), torch.tensor([[False] * 2 + [True] * 6])
    torch.testing.assert_close(model(source, padded, target_mask=mask)[:, 2:], model(source, target))


@torch.no_grad()
def test_the_future_does_not_matter(model) -> None:
    source, target = make_inputs(1, 7), make_inputs(1, 6)
    changed = target.clone()
    changed[:, 4:] = 3
    assert torch.equal(model(source, changed)[:, :4], model(source, target)[:, :4])
    assert not torch.equal(model(source, changed)[:, 4:], model(source, target)[:, 4:])


def test_every_parameter_learns() -> None:
    learner = build(CHOICE)
    learner(make_inputs(2, 7), make_inputs(2, 6)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in learner.parameters())


@torch.no_grad()
def test_it_is_searched_and_looked_into(model) -> None:
    source = make_inputs(2, 7)
    found = generate_batch(
        model, source, rules=GenerationRules(bos=1, eos=2), decoding=DecodingConfig(Beam(3), LengthLimit(0, 6))
    )
    one = found[0][0]
    logits = model(source[:1], torch.tensor([[1, *one.tokens[:-1]]])).log_softmax(-1)[0]
    total = sum(float(logits[place, token]) for place, token in enumerate(one.tokens))
    assert total == pytest.approx(one.log_probability, abs=1e-4)
    trace = lens.look(model, source[:1], [1, *one.tokens])
    assert list(trace.attentions) == [
        "encoder.0.self_attention",
        "decoder.0.cross_attention",
        "decoder.1.cross_attention",
    ]  # noqa: E501
    assert trace.tensor("decoder.0.self_attention", "output").shape == (1, 1 + len(one.tokens), 16)


def test_it_is_said_and_read_back() -> None:
    assert spec.from_json(spec.to_json(CHOICE)) == CHOICE
    with pytest.raises(SpecError, match="takes .*SSRU"):
        spec.from_json(spec.to_json(CHOICE).replace('"SSRU"', '"States"'))
