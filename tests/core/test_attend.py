"""The laws of attention, each over many small shapes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv.attention import apply_dropout, attend, masked_softmax
from qkv.errors import QkvError
from qkv.lens import Recorder, build_trace
from qkv.mask import Mask
from qkv.tap import Site, Tap

INPUTS = ("query", "key", "value")


class Explicit(Tap):
    """Asks for the explicit rendering and keeps the weights."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def replaces(self, site: Site) -> bool:
        return site == "weights"

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        self.seen[site] = tensor
        return tensor


@st.composite
def problems(draw: Callable[..., Any]) -> dict[str, Any]:
    """Queries, keys and values in float64, with every kind of mask and bias."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    batch, queries, keys = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    d_key, d_value = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    heads = kv_heads * group
    mask = draw(
        st.sampled_from(
            [
                None,
                Mask(causal=True),
                Mask(causal=True, past=max(0, keys - queries)),
                Mask(window=2),
                Mask(causal=True, window=2, key_mask=torch.rand(batch, keys, generator=generator) > 0.5),
                Mask(key_mask=torch.rand(batch, keys, generator=generator) > 0.5),
                torch.rand(batch, 1, queries, keys, generator=generator) > 0.5,
                torch.where(torch.rand(queries, keys, generator=generator) > 0.5, 0.0, -math.inf).double(),
                Mask(documents=(torch.arange(queries)[None] // 2, torch.arange(keys)[None] // 2)),
                Mask(window=(1, 0)),
                Mask(window=(0, 2), past=torch.randint(0, 4, (batch,), generator=generator)),
                Mask(causal=True, past=torch.randint(0, keys, (batch,), generator=generator)),
                Mask(causal=True) & (torch.rand(heads, queries, keys, generator=generator) > 0.5),
                torch.rand(keys, generator=generator) > 0.5,
            ]
        )
    )
    return {
        "query": normal(batch, heads, queries, d_key),
        "key": normal(batch, kv_heads, keys, d_key),
        "value": normal(batch, kv_heads, keys, d_value),
        "mask": mask,
        "bias": draw(st.sampled_from([None, normal(1, heads, queries, keys)])),
        "scale": draw(st.sampled_from([None, 0.5])),
    }


@given(problems(), st.booleans())
def test_what_learns_in_half_precision_is_blended_in_single(problem: dict[str, Any], autocast: bool) -> None:
    found = []
    for wide in (False, True):
        given = {name: problem[name].bfloat16().to(torch.float32 if wide else torch.bfloat16) for name in INPUTS}
        inputs = {name: tensor.requires_grad_() for name, tensor in given.items()}
        bias = None if problem["bias"] is None else problem["bias"].float()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and not wide):
            context = attend(**{**problem, **inputs, "bias": bias})
        context.bfloat16().sum().backward()
        found.append([context.bfloat16(), *(tensor.grad.bfloat16() for tensor in inputs.values())])
    assert all(torch.equal(half, single) for half, single in zip(*found, strict=True))


@settings(max_examples=200)
@given(problems())
def test_both_renderings_agree_in_value_and_gradient(problem: dict[str, Any]) -> None:
    gradients = []
    for tap in (Tap(), Explicit()):
        inputs = {name: problem[name].clone().requires_grad_() for name in INPUTS}
        context = attend(**{**problem, **inputs}, tap=tap)
        (context * torch.arange(context.numel(), dtype=torch.float64).view_as(context)).sum().backward()
        gradients.append([context, *(tensor.grad for tensor in inputs.values())])
    for fused, explicit in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, explicit, rtol=1e-9, atol=1e-9)
        assert explicit.isfinite().all()


@settings(max_examples=100)
@given(problems(), st.integers(1, 3))
def test_a_rule_too_large_for_a_matrix_is_taken_by_rows(problem: dict[str, Any], rows: int) -> None:
    assume(isinstance(problem["mask"], Mask))
    inputs = [problem[name].clone().requires_grad_() for name in ("query", "key", "value")]
    found = []
    for largest in (2**26, 0):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("qkv.attention.MAX_MASK_ELEMENTS", largest)
            patched.setattr("qkv.attention._QUERY_CHUNK", rows)
            context = attend(*inputs, mask=problem["mask"], scale=problem["scale"])
        found.append([context, *torch.autograd.grad(context.square().sum(), inputs)])
    for whole, by_rows in zip(*found, strict=True):
        torch.testing.assert_close(by_rows, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", [Mask(causal=True, window=40), Mask(window=40), Mask(causal=True, past=1000)])
def test_no_matrix_of_a_large_rule_is_ever_made(rule: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkv.attention.MAX_MASK_ELEMENTS", 10_000)
    monkeypatch.setattr("qkv.attention._QUERY_CHUNK", 16)
    length, largest, matrix = 500, 0, Mask.to_tensor

    def watched(mask: Mask, *given: Any) -> Tensor | None:
        nonlocal largest
        found = matrix(mask, *given)
        largest = max(largest, 0 if found is None else found.numel())
        return found

    monkeypatch.setattr(Mask, "to_tensor", watched)
    query, key, value = torch.randn(1, 2, length, 4), *torch.randn(2, 1, 2, rule.past + length, 4)
    attend(query, key, value, mask=rule)
    assert 0 < largest <= 16 * (rule.past + length)


@given(problems())
def test_rows_of_weights_sum_to_one_or_to_nothing(problem: dict[str, Any]) -> None:
    tap = Explicit()
    context = attend(**problem, tap=tap)
    sums = tap.seen["weights"].sum(-1)
    assert ((sums - 1).abs().lt(1e-12) | (sums == 0)).all()
    assert (context[(sums == 0)] == 0).all()


@given(problems(), st.randoms(use_true_random=False))
def test_keys_with_their_values_may_come_in_any_order(problem: dict[str, Any], random: Any) -> None:
    order = list(range(problem["key"].shape[2]))
    random.shuffle(order)
    problem = {**problem, "mask": None, "bias": None}
    shuffled = {**problem, "key": problem["key"][:, :, order], "value": problem["value"][:, :, order]}
    torch.testing.assert_close(attend(**problem), attend(**shuffled))


@given(problems())
def test_a_hidden_key_is_as_good_as_absent(problem: dict[str, Any]) -> None:
    problem = {**problem, "mask": None, "bias": None}
    keys = problem["key"].shape[2]
    hidden = torch.arange(keys + 1) < keys
    longer = {
        **problem,
        "key": torch.cat([problem["key"], 1e3 * problem["key"][:, :, :1]], dim=2),
        "value": torch.cat([problem["value"], 1e3 * problem["value"][:, :, :1]], dim=2),
        "mask": Mask(key_mask=hidden.expand(len(problem["key"]), -1)),
    }
    torch.testing.assert_close(attend(**longer), attend(**problem))


@given(problems())
def test_grouped_heads_equal_repeated_heads(problem: dict[str, Any]) -> None:
    group = problem["query"].shape[1] // problem["key"].shape[1]
    repeated = {name: problem[name].repeat_interleave(group, dim=1) for name in ("key", "value")}
    torch.testing.assert_close(attend(**problem), attend(**{**problem, **repeated}))


def test_the_formula_by_hand() -> None:
    query, key = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    value = torch.tensor([[[[10.0], [20.0]]]])
    first = math.exp(1 / math.sqrt(2))
    expected = (first * 10 + 20) / (first + 1)
    assert attend(query, key, value).item() == pytest.approx(expected)


def test_causal_is_aligned_top_left_without_a_cache_and_bottom_right_with_one() -> None:
    seen = Mask(causal=True).to_tensor(2, 4, torch.device("cpu"))
    assert seen is not None and seen.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    seen = Mask(causal=True, past=2).to_tensor(2, 4, torch.device("cpu"))
    assert seen is not None and seen.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_one_query_without_a_cache_sees_the_first_key_alone() -> None:
    query, key = torch.ones(1, 1, 1, 2), torch.ones(1, 1, 3, 2)
    value = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1)
    for tap in (Tap(), Explicit()):
        assert attend(query, key, value, mask=Mask(causal=True), tap=tap).item() == pytest.approx(1.0)


def test_softcap_comes_before_the_mask() -> None:
    query = key = torch.full((1, 1, 2, 1), 100.0)
    value = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    context = attend(query, key, value, softcap=5.0, mask=Mask(causal=True))
    assert context.flatten().tolist() == pytest.approx([1.0, 1.5])


def test_sinks_take_weight_and_give_nothing() -> None:
    tap = Explicit()
    query = key = torch.zeros(1, 2, 1, 3)
    context = attend(query, key, torch.ones(1, 2, 1, 1), sinks=torch.tensor([0.0, math.log(3)]), tap=tap)
    assert context.flatten().tolist() == pytest.approx([0.5, 0.25])


def test_a_score_of_ones_own_replaces_the_dot_product() -> None:
    value = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
    zeros = torch.zeros(1, 1, 3, 1)
    context = attend(zeros[:, :, :1], zeros, value, score=lambda query, key: (query + key.mT) * 7)
    assert context.item() == pytest.approx(3.0)


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    torch.manual_seed(1)
    dropped = apply_dropout(torch.ones(200_001), 0.1)
    assert (dropped == 0).float().mean().item() == pytest.approx(26 / 256, abs=0.003)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.005)
    assert apply_dropout(torch.ones(3), 0.0).tolist() == [1, 1, 1]


def test_softmax_of_nothing_has_a_gradient_of_nothing() -> None:
    scores = torch.randn(1, 1, 2, 3, requires_grad=True)
    masked_softmax(scores, torch.tensor([[True, True, False], [False, False, False]])).square().sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and (scores.grad[..., 1, :] == 0).all()


@settings(max_examples=100)
@given(problems())
def test_a_recorder_of_attend_alone_recomputes_its_weights(problem: dict[str, Any]) -> None:
    recorder, explicit = Recorder(), Explicit()
    attend(**problem, tap=recorder.at("mine"))
    attend(**problem, tap=explicit)
    trace = build_trace(recorder)["mine"]
    torch.testing.assert_close(trace.weights, explicit.seen["weights"], rtol=1e-9, atol=1e-9)
    assert trace.certify().max() < 1e-9
    rows = [problem["query"].shape[2] - 1]
    torch.testing.assert_close(trace.compute_weights(0, rows), trace.weights[:, 0, rows], rtol=1e-9, atol=1e-9)


def test_a_window_may_reach_further_to_one_side() -> None:
    queries, keys = torch.arange(5)[:, None], torch.arange(5)
    found = Mask(window=(2, 1)).to_tensor(5, 5, torch.device("cpu"))
    assert found is not None and torch.equal(found, (keys >= queries - 2) & (keys <= queries + 1))
    causal = Mask(causal=True, window=(2, 1)).to_tensor(5, 5, torch.device("cpu"))
    assert causal is not None and torch.equal(causal, (keys >= queries - 2) & (keys <= queries))


def test_each_row_may_have_a_past_of_its_own() -> None:
    past, keys = [0, 3], 6
    found = Mask(causal=True, past=torch.tensor(past)).to_tensor(2, keys, torch.device("cpu"))
    assert found is not None
    for row, number in enumerate(past):
        single = Mask(causal=True, past=number).to_tensor(2, keys, torch.device("cpu"))
        assert single is not None and torch.equal(found[row, 0], single)


def test_a_mask_joins_with_a_tensor_and_refuses_numbers() -> None:
    prefix = torch.rand(4, 4) > 0.5
    joined = (Mask(causal=True) & prefix & prefix.T).to_tensor(4, 4, torch.device("cpu"))
    assert joined is not None and torch.equal(joined, torch.ones(4, 4).tril().bool() & prefix & prefix.T)
    with pytest.raises(QkvError, match="expected bool"):
        Mask() & torch.ones(4, 4)


def test_half_precision_does_not_overflow_before_it_is_scaled() -> None:
    query = torch.full((1, 1, 2, 64), 100.0, dtype=torch.float16)  # the products are 640,000, scaled 80,000 / 8
    context = attend(query, query, torch.ones(1, 1, 2, 4, dtype=torch.float16), scale=1e-3, tap=Explicit())
    assert context.isfinite().all()


@pytest.mark.parametrize(
    "program",
    [
        "import qkv.attention; from qkv import attend; import qkv; assert qkv.attend is attend and callable(attend)",
        "import qkv; qkv.attend; import qkv.attention; assert callable(qkv.attend)",
        "import qkv; assert callable(qkv.train) and callable(qkv.evaluate) and callable(qkv.load)",
        "import qkv; qkv.lens.ablate; qkv.spec.Attention; qkv.presets.encoder_decoder; assert 'lens' in dir(qkv)",
    ],
)
def test_names_of_the_package_are_what_they_say_in_any_order_of_imports(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)
