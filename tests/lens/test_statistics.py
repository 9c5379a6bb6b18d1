"""Statistics that stream: equal to the full matrix's, whatever the scores are made of, and linear in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv.attention import attend
from qkv.errors import QkvError
from qkv.lens import AttentionStatistics, AttentionTrace, Recorder, build_trace, compute_statistics, statistics
from qkv.mask import Mask


def make_attention_trace(calls: list[tuple[Tensor, Tensor, Tensor, dict[str, Any]]]) -> AttentionTrace:
    recorder = Recorder()
    for query, key, value, terms in calls:
        attend(query, key, value, tap=recorder.at("here"), **terms)
    return build_trace(recorder, torch.nn.Module())["here"]


def make_mask(kind: str, queries: int, keys: int, heads: int, past: int) -> Mask | Tensor | None:
    return {
        "none": None,
        "bool": torch.rand(2, heads, queries, keys) < 0.5,
        "row": torch.rand(2, 1, 1, keys) < 0.5,
        "float": torch.randn(heads, queries, keys).masked_fill(torch.rand(heads, queries, keys) < 0.5, -torch.inf),
        "causal": Mask(causal=True, past=past),
        "window": Mask(causal=True, window=2, past=past),
        "both ways": Mask(window=3, past=past),
        "padding": Mask(causal=True, past=past, key_mask=torch.rand(2, keys) < 0.5),
        "documents": Mask(documents=(torch.randint(2, (2, queries)), torch.randint(2, (2, keys)))),
    }[kind]


@st.composite
def attentions(draw: Any) -> AttentionTrace:
    """One attention, of one call or of several that see more and more keys."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads, lengths = kv_heads * group, draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    total = sum(lengths) + draw(st.integers(0, 4))
    key, value = torch.randn(2, kv_heads, total, 4), torch.randn(2, kv_heads, total, 3)
    kind = draw(
        st.sampled_from(["none", "bool", "row", "float", "causal", "window", "both ways", "padding", "documents"])
    )
    bias, softcap = draw(st.booleans()), draw(st.sampled_from([None, 2.0]))
    sinks = torch.randn(heads) if draw(st.booleans()) else None
    score = draw(st.booleans())
    calls = []
    for number, length in enumerate(lengths):
        past = sum(lengths[:number])
        keys = total if number == len(lengths) - 1 else past + length
        terms: dict[str, Any] = {
            "mask": make_mask(kind, length, keys, heads, past),
            "bias": torch.randn(1, heads, length, keys) if bias else None,
            "softcap": softcap,
            "sinks": sinks,
            "score": (lambda query, key: -torch.cdist(query, key)) if score else None,
        }
        calls.append((4 * torch.randn(2, heads, length, 4), key[:, :, :keys], value[:, :, :keys], terms))
    return make_attention_trace(calls)


def expected_statistics(attention: AttentionTrace, top: int, first: int) -> AttentionStatistics:
    """The same from the matrix."""
    weights, scores = attention.compute_weights(), attention.compute_scores()
    if (sinks := attention.score_terms.sinks) is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    mass = weights.sum(dim=-1)
    away = (torch.arange(attention.queries)[:, None] - torch.arange(attention.keys)).abs().float()
    best = weights.topk(min(top, attention.keys))
    return AttentionStatistics(
        tuple(range(attention.heads)),
        scores.logsumexp(dim=-1),
        mass,
        weights[..., :first].sum(dim=-1),
        torch.special.entr(weights).sum(dim=-1),
        torch.where(mass > 0, (weights * away).sum(dim=-1) / mass, 0.0),
        best.indices,
        best.values,
        weights.sum(dim=-2).double(),
    )


def assert_same(attention: AttentionTrace, found: AttentionStatistics, right: AttentionStatistics) -> None:
    for name in ("mass", "first", "entropy", "distance", "top_weights", "received", "logsumexp"):
        torch.testing.assert_close(
            getattr(found, name),
            getattr(right, name),
            rtol=1e-4,
            atol=2e-5,
            msg=lambda why, name=name: f"{name}: {why}",
        )
    weights = torch.nn.functional.pad(attention.compute_weights(), (0, 1))  # -1 names the 0 at the end
    named = weights.gather(-1, found.top_keys.long() % weights.shape[-1])
    torch.testing.assert_close(named, right.top_weights, rtol=1e-4, atol=2e-5)


@settings(max_examples=20)
@given(attentions(), st.integers(1, 30), st.integers(1, 4), st.integers(0, 3))
def test_equal_to_the_whole_matrix(attention: AttentionTrace, top: int, first: int, small: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(statistics, "_ELEMENTS", 10**small)  # few rows, or all, at a time
        patched.setattr(statistics, "_COUNTED_AT_ONCE", 10 ** max(0, small - 1))
        found = compute_statistics(attention, top=top, first=first)
        assert_same(attention, found, expected_statistics(attention, top, first))
        one = compute_statistics(attention, top=top, first=first, heads=[attention.heads - 1])
        torch.testing.assert_close(one.entropy[:, 0], found.entropy[:, -1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.received[:, 0], found.received[:, -1], rtol=1e-4, atol=1e-5)


def test_the_largest_of_long_rows() -> None:
    torch.manual_seed(0)
    heads, length = 2, 1500
    query, key, value = torch.randn(3, 1, heads, length, 8).unbind(0)
    attention = make_attention_trace([(3 * query, key, value, {"mask": Mask(causal=True)})])
    assert_same(attention, compute_statistics(attention, top=5), expected_statistics(attention, 5, 4))


@settings(max_examples=20)
@given(attentions(), st.data())
def test_a_tile_is_a_part_of_the_matrix(attention: AttentionTrace, data: st.DataObject) -> None:
    head = data.draw(st.integers(0, attention.heads - 1))
    rows = sorted(data.draw(st.tuples(*2 * [st.integers(0, attention.queries)])))
    keys = sorted(data.draw(st.tuples(*2 * [st.integers(0, attention.keys)])))
    across = data.draw(st.integers(1, 5))
    right = attention.compute_weights(head)[:, slice(*rows), slice(*keys)]
    every = compute_statistics(attention)
    normaliser, alone = every.logsumexp, every.select_head(head)
    assert alone.heads == (head,) and torch.equal(alone.top_keys, every.top_keys[:, [head]])
    assert torch.equal(alone.received, every.received[:, [head]])
    for given_normaliser in (None, normaliser):
        tile = attention.tile(head, (rows[0], rows[1]), (keys[0], keys[1]), given_normaliser)
        torch.testing.assert_close(tile, right, rtol=1e-4, atol=1e-5)
        largest = attention.tile(head, (rows[0], rows[1]), (keys[0], keys[1]), given_normaliser, across)
        wanted = [part.amax(dim=-1) for part in right.split(across, dim=-1) if part.shape[-1]]
        torch.testing.assert_close(largest.unbind(-1), tuple(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 9, 8).to(dtype).unbind(0)
    attention = make_attention_trace([(query, key, value, {"mask": Mask(causal=True)})])
    torch.testing.assert_close(compute_statistics(attention).mass, torch.ones(1, 2, 9))


def test_memory_grows_with_length_and_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_ELEMENTS", 2**12)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, Tensor):
                largest = max(largest, found.numel())
            return found

    for rule in (Mask(causal=True, window=99), Mask(window=9)):
        attention = make_attention_trace([(*torch.randn(3, 1, 2, 600, 4).unbind(0), {"mask": rule})])
        largest = 0
        with Watch():
            compute_statistics(attention, top=2)
            attention.tile(1, (300, 320), (500, 600))
        assert largest <= 20 * 600


def test_mistakes_are_named() -> None:
    attention = make_attention_trace([(*torch.randn(3, 1, 2, 4, 4).unbind(0), {})])
    with pytest.raises(QkvError, match="heads 0 to 1"):
        compute_statistics(attention, heads=[2])
    with pytest.raises(QkvError, match="keys 2 to 5 were requested; it has 0 to 4"):
        attention.tile(0, (0, 1), (2, 5))
