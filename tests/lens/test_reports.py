"""Head reports, attributions and circuits: sums that must add up, and heads made to be of one kind."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv import spec
from qkv.attention import attend
from qkv.errors import QkvError
from qkv.lens import Intervention, Recorder, Trace, build_trace, chunks, look
from qkv.lens.attributions import (
    attention_rollout,
    direct_logit_attribution,
    gradient_times_weight,
    logit_lens,
    value_zeroing,
)
from qkv.lens.circuits import LowRankMatrix, composition_scores, copying_score, ov_circuit, qk_circuit, token_circuit
from qkv.lens.head_reports import find_dead_heads, head_similarity, report_attention, report_heads
from qkv.models import build
from qkv.models.transformer import Transformer
from tests.core.test_spec import build_small_spec, draw_spec
from tests.lens.test_trace import tokens
from tests.view.test_document import make_traces


def assert_close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def make_trace(patterns: list[Tensor], target: Tensor | None = None) -> Trace:
    """Self-attention whose heads look as patterns (queries, keys) of 0 and 1 say."""
    scores = 40 * torch.stack(patterns).float()[None]
    recorder = Recorder()
    inside = recorder.at("decoder").at("0").at("self_attention")
    zero = torch.zeros(1, len(patterns), len(patterns[0]), 2)
    attend(zero, zero, zero, bias=scores, tap=inside)
    return build_trace(recorder, torch.nn.Module(), target=target)


def test_heads_of_each_kind_are_told_apart() -> None:
    target = torch.tensor([[3, 5, 7, 3, 5, 7, 3, 5, 7]])
    away = torch.arange(9)[:, None] - torch.arange(9)
    kinds = {"previous": away == 1, "sink": torch.arange(9) == 0 * away, "duplicate": away == 3, "induction": away == 2}
    found = report_heads(make_trace([pattern for pattern in kinds.values()], target))
    for number, name in enumerate(kinds):
        scores = {kind: getattr(found[number], kind) for kind in kinds}
        assert max(scores, key=lambda kind: scores[kind]) == name and scores[name] > 0.6
    by_place, by_token = make_trace([away == 2, torch.rand(9, 9) < 0.3], target), None
    placed, other = report_heads(by_place)
    assert placed.positional > 0.7 > other.positional
    assert by_token is None and report_heads(make_trace([away == 1]))[0].induction is None


@pytest.mark.parametrize("kept", [2**24, 0])
def test_weights_made_once_for_all_that_count_them_tell_what_each_one_tells(
    monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    for name, trace in make_traces().items():
        monkeypatch.undo()
        alone = {one.place: (one.certify(), one.compute_weights().detach()) for one in trace}
        told = report_heads(trace)
        monkeypatch.setattr(chunks, "_ELEMENTS", 30)  # a few rows
        monkeypatch.setattr(chunks, "_MAX_CACHED", kept)
        again = []
        for one in trace:
            worst, weights = alone[one.place]
            parts = one.compute_chunks()
            assert_close(one.certify(parts), worst)
            again += report_attention(trace, one, parts)
            assert sum(part.weights.shape[2] for part in parts) == one.queries > 1, name
            for part in parts:
                rows = weights[:, :, part.begin : part.begin + part.weights.shape[2]]
                width = part.weights.shape[3]
                assert_close(part.weights.detach(), rows[..., :width])
                assert not rows[..., width:].any()
            assert kept == 0 or [id(part) for part in parts] == [id(part) for part in parts]
        for one, other in zip(told, again, strict=True):
            numbers = [[-1.0 if number is None else number for number in astuple(it)[2:]] for it in (one, other)]
            assert astuple(one)[:2] == astuple(other)[:2]
            assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-6)


def test_similar_and_dead_heads() -> None:
    away = torch.arange(5)[:, None] - torch.arange(5)
    attention = make_trace([away == 0, away == 0, away == 4 - 2 * torch.arange(5)])["decoder.0.self_attention"]
    shared = head_similarity(attention, attention)
    assert shared[0, 1] == pytest.approx(1, abs=1e-4) and torch.allclose(shared, shared.T)
    assert shared[0, 2] < 0.7
    torch.manual_seed(0)
    model = build(build_small_spec(heads=4)).eval()
    given_tokens = tokens(model.spec)
    assert find_dead_heads(look(model, **given_tokens).heads) == []
    place = "decoder.0.cross_attention"

    def without(context: Tensor) -> Tensor:
        return torch.cat([context[:, :2], 0 * context[:, 2:3], context[:, 3:]], dim=1)

    dead = find_dead_heads(look(model, **given_tokens, tap=Intervention(place, "context", without)).heads)
    assert [(one.place, one.head) for one in dead] == [(place, 2)]


@settings(max_examples=12)
@given(draw_spec(), st.integers(0, 2**31))
def test_parts_add_up_to_the_logits(choice: spec.Spec, seed: int) -> None:
    assume(isinstance(choice, spec.Transformer) and isinstance(choice.head, spec.Vocabulary))
    torch.manual_seed(seed)
    model = build(choice).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms that do something
    trace = look(model, **tokens(choice))
    assert trace.logits is not None
    parts = direct_logit_attribution(model, trace, 2, row=1)
    total = torch.stack(list(parts.values())).sum(dim=0)
    if model.head.softcap:  # type: ignore[union-attr]
        total = model.head.softcap * torch.tanh(total / model.head.softcap)  # type: ignore[union-attr, operator]
    assert_close(total, trace.logits[1, 2])
    assert {name.rpartition(".")[0] for name in parts if name.split(".")[-1].isdigit()} <= set(trace.attentions)
    assert_close(logit_lens(model, trace)[-1], trace.logits)


def build_decoder(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    attention = spec.Attention(heads=4, d_key=3, kv_heads=2, causal=True, bias=False, **changes)
    blocks = (spec.Block(attention, spec.FeedForward(8)),) * 2
    choice = spec.Transformer(None, spec.Stack(12, blocks, spec.Tokens(9)), spec.Vocabulary(tied=False))
    model = build(choice).eval()
    assert isinstance(model, Transformer)
    return model


def test_circuits_are_what_heads_do() -> None:
    model, place = build_decoder(), "decoder.0.self_attention"
    target = torch.randint(9, (1, 6))
    trace = look(model, target=target)
    assert model.decoder is not None
    read = model.decoder.blocks[0].self_attention_residual.before(trace.tensor("decoder", "embedding"))[0].detach()
    attention = trace[place]
    for head in range(4):
        asks, moves = qk_circuit(model, place, head), ov_circuit(model, place, head)
        scores = (read @ asks.left) @ (asks.right @ read.T) * attention.scale
        seen = attention.compute_scores(head)[0]
        assert_close(scores[seen > -torch.inf], seen[seen > -torch.inf])
        assert_close(attention.compute_weights(head)[0] @ (read @ moves.left @ moves.right), attention.output(head)[0])
    whole = token_circuit(model, place, 1, "output_value")
    assert whole.shape == (9, 9) and whole.left.shape[1] == 3
    assert_close(whole.get_rows(torch.tensor([4])), (whole.left @ whole.right)[4:5])
    assert -1 <= copying_score(model, place, 1) <= 1


def test_a_head_that_copies() -> None:
    model, place = build_decoder(), "decoder.1.self_attention"
    assert model.decoder is not None
    tokens_in = model.decoder.embedding.tokens.weight.data
    moves = ov_circuit(model, place, 0)
    model.head.weight.data = (tokens_in @ moves.left) @ moves.right  # type: ignore[union-attr]
    assert_close(torch.tensor(copying_score(model, place, 0)), torch.tensor(1.0))
    model.head.weight.data *= -1  # type: ignore[union-attr]
    assert_close(torch.tensor(copying_score(model, place, 0)), torch.tensor(-1.0))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_low_rank_products_are_those_of_the_matrices(first: int, second: int, seed: int) -> None:
    torch.manual_seed(seed)
    left = LowRankMatrix(torch.randn(5, first).double(), torch.randn(first, 5).double())
    right = LowRankMatrix(torch.randn(5, second).double(), torch.randn(second, 6).double())
    one, two = left.left @ left.right, right.left @ right.right
    product = left @ right
    assert_close(product.left @ product.right, one @ two)
    assert product.left.shape[1] <= min(first, second)
    assert product.norm() == pytest.approx(float((one @ two).norm()))
    assert_close(left.T.left @ left.T.right, one.T)
    assert_close(left.singular_values(), torch.linalg.svdvals(one)[:first])
    assert_close(left.eigenvalues().real.sum(), one.trace())


def test_composition_is_found_where_it_was_put() -> None:
    model = build_decoder()
    first, second = ("decoder.0.self_attention", 1), ("decoder.1.self_attention", 2)
    before = composition_scores(model, first, second)
    # The second head's key now reads just what the first writes.
    key = model.get_submodule("decoder.blocks.1.self_attention.key")
    key.weight.data[3:6] = ov_circuit(model, *first).right
    after = composition_scores(model, first, second)
    assert after["key"] > before["key"] + 0.1 and after["value"] == pytest.approx(before["value"])
    for name, value in after.items():
        assert 0 <= value <= 1, name


def test_rollout_and_value_zeroing() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec(heads=2, layers=2)).eval()
    source, target = torch.randint(9, (1, 5)), torch.randint(11, (1, 4))
    trace = look(model, source, target)
    flowing = attention_rollout(trace)
    assert_close(flowing.sum(dim=-1), torch.ones(1, 5))
    first, second = (
        0.5 * trace[f"encoder.{number}.self_attention"].compute_weights().mean(dim=1) + 0.5 * torch.eye(5)
        for number in (0, 1)
    )
    assert_close(flowing, second @ first)
    assert (attention_rollout(trace, "decoder").triu(1) == 0).all()
    for place, shape in (("decoder.1.self_attention", (4, 4)), ("decoder.0.cross_attention", (4, 5))):
        turned = value_zeroing(model, place, source, target, batch_size=3)
        assert turned.shape == shape and torch.allclose(turned.sum(dim=1)[1:], torch.ones(3), atol=1e-4)
    assert (value_zeroing(model, "decoder.1.self_attention", source, target).triu(1) < 1e-4).all()


def test_gradient_times_weight_is_what_a_small_change_does() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec(heads=2, layers=1)).double().eval()
    source, target = torch.randint(9, (1, 5)), torch.randint(11, (1, 4))
    place = "decoder.0.cross_attention"
    found = gradient_times_weight(model, source, target, 3, 7)
    assert set(found) == set(look(model, source, target).attentions)
    assert all(parameter.grad is None for parameter in model.parameters())

    def changed(by: float) -> Tensor:
        def scale(weights: Tensor) -> Tensor:
            weights = weights.clone()
            weights[:, 1, 3, 2] *= 1 + by
            return weights

        with torch.no_grad():
            return model(source, target, tap=Intervention(place, "weights", scale))[0, 3, 7]

    assert_close((changed(1e-4) - changed(-1e-4)) / 2e-4, found[place][0, 1, 3, 2])
    assert found[place][0, 1, 3, 2].abs() > 1e-6


def test_mistakes_are_named() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec()).eval()
    trace = look(model, [1, 2], [1, 2, 3])
    with pytest.raises(QkvError, match="expected an attention of this model"):
        qk_circuit(model, "decoder.0.feed_forward", 0)
    with pytest.raises(QkvError, match="heads 0 to 1"):
        ov_circuit(model, "decoder.0.self_attention", 2)
    with pytest.raises(QkvError, match="same tokens"):
        head_similarity(trace["decoder.0.self_attention"], trace["decoder.0.cross_attention"])
    with pytest.raises(QkvError, match="no self-attention of stack='middle'"):
        attention_rollout(trace, "middle")
    with pytest.raises(QkvError, match="do not add up"):
        bent = look(model, [1, 2], [1, 2, 3], tap=Intervention("decoder.0", "residual", torch.neg))
        direct_logit_attribution(model, bent, 0)
    encoder = build(spec.Transformer(build_small_spec().encoder, None, spec.Classes(2))).eval()
    with pytest.raises(QkvError, match="Transformer with a plain vocabulary head"):
        direct_logit_attribution(encoder, look(encoder, [1, 2]), 0)
