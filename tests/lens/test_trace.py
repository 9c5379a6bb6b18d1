"""The lens: it changes no bit, what it recomputes is what the kernel did, and it keeps nothing quadratic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv import spec
from qkv.attention import attend
from qkv.errors import QkvError
from qkv.lens import AttentionTrace, Intervention, Recorder, Trace, build_trace, look
from qkv.mask import Mask
from qkv.models import SequenceModel, build
from qkv.tap import Site, Tap
from tests.core.test_spec import build_small_spec, draw_spec


def tokens(choice: spec.Spec, rows: int = 2, sources: int = 5, targets: int = 6) -> dict[str, Any]:
    """Random inputs for whatever the spec reads, the second row's source padded."""
    found = {}
    if isinstance(choice, spec.Recurrent):
        source, target = choice.source.vocab, choice.target.vocab
    else:
        source = choice.encoder.input.vocab if choice.encoder else 0
        target = choice.decoder.input.vocab if choice.decoder else 0
    if source:
        found["source"] = torch.randint(source, (rows, sources))
        found["source_mask"] = torch.ones(rows, sources, dtype=torch.bool)
        found["source_mask"][1, 3:] = False
    if target:
        found["target"] = torch.randint(target, (rows, targets))
    return found


def step_through(model: SequenceModel, given_tokens: dict[str, Any], tap: Tap | None = None) -> Tensor:
    """The logits of teacher forcing, made one token at a time."""
    taps: dict[str, Any] = {} if tap is None else {"tap": tap}
    with torch.no_grad():
        source = given_tokens.get("source")
        memory = None if source is None else model.encode(source, given_tokens["source_mask"], **taps)
        state, logits = model.start(memory, 2), []
        for token in torch.split(given_tokens["target"], 1, dim=1):
            answered, state = model.step(token, state, **taps)
            logits.append(answered)
    return torch.cat(logits, dim=1)


class Explicit(Tap):
    """Makes every attention build its weights, and keeps them: what the recomputed ones are held against."""

    def __init__(self, seen: dict[str, Tensor], place: str = "") -> None:
        self.seen, self.place = seen, place

    def replaces(self, site: Site) -> bool:
        return site == "weights"

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        if site == "weights":
            before = self.seen.get(self.place)
            self.seen[self.place] = tensor if before is None else torch.cat([before, tensor], dim=2)
        return tensor

    def at(self, place: str) -> Explicit:
        return Explicit(self.seen, f"{self.place}.{place}".lstrip("."))


@settings(max_examples=40)
@given(draw_spec(), st.integers(0, 2**31))
def test_looking_changes_no_bit_and_is_certified(choice: spec.Spec, seed: int) -> None:
    torch.manual_seed(seed)
    model = build(choice).eval()
    given_tokens = tokens(choice)
    with torch.no_grad():
        expected = model(**given_tokens)
    trace = look(model, **given_tokens)
    assert trace.logits is not None and torch.equal(trace.logits, expected)
    weights_used: dict[str, Tensor] = {}
    with torch.no_grad():
        model(**given_tokens, tap=Explicit(weights_used))
    assert set(weights_used) == set(trace.attentions)
    for attention in trace:
        assert attention.certify().max() < 1e-5
        torch.testing.assert_close(attention.compute_weights(), weights_used[attention.place], rtol=1e-4, atol=1e-5)


@settings(max_examples=30)
@given(draw_spec(), st.integers(0, 2**31))
def test_decoding_is_not_changed_and_reads_as_one_pass(choice: spec.Spec, seed: int) -> None:
    assume(isinstance(choice, spec.Recurrent) or choice.decoder is not None)
    torch.manual_seed(seed)
    model = build(choice).eval()
    given_tokens = tokens(choice)
    recorder = Recorder()
    assert torch.equal(step_through(model, given_tokens, recorder), step_through(model, given_tokens))
    stepped, whole = build_trace(recorder, model), look(model, **given_tokens)
    assert set(stepped.attentions) == set(whole.attentions)
    for attention in stepped:
        assert attention.certify().max() < 1e-5
        other = whole[attention.place]
        torch.testing.assert_close(attention.compute_weights(), other.compute_weights(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(attention.context, other.context, rtol=1e-4, atol=1e-5)


def traced(query: Tensor, key: Tensor, value: Tensor, **terms: Any) -> AttentionTrace:
    recorder = Recorder()
    attend(query, key, value, tap=recorder.at("here"), **terms)
    return build_trace(recorder, torch.nn.Module())["here"]


@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.integers(1, 7),
    keys=st.integers(1, 7),
    kind=st.sampled_from(["none", "bool", "float", "causal", "window", "padding", "documents"]),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 2.0]),
    sinks=st.booleans(),
    score=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_rows_heads_and_blind_queries(
    kv_heads: int, group: int, queries: int, keys: int, kind: str, bias: bool, softcap: float | None, sinks: bool,
    score: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    heads = kv_heads * group
    hidden = torch.rand(2, heads, queries, keys) < 0.5
    masks: dict[str, Mask | Tensor | None] = {
        "none": None,
        "bool": ~hidden,
        "float": torch.randn(2, heads, queries, keys).masked_fill(hidden, -torch.inf),
        "causal": Mask(causal=True, past=max(0, keys - queries)),
        "window": Mask(causal=True, window=2, past=max(0, keys - queries)),
        "padding": Mask(key_mask=torch.rand(2, keys) < 0.5),
        "documents": Mask(documents=(torch.randint(2, (2, queries)), torch.randint(2, (2, keys)))),
    }
    attention = traced(
        torch.randn(2, heads, queries, 4),
        torch.randn(2, kv_heads, keys, 4),
        torch.randn(2, kv_heads, keys, 3),
        mask=masks[kind],
        bias=torch.randn(1, heads, queries, keys) if bias else None,
        softcap=softcap,
        sinks=torch.randn(heads) if sinks else None,
        score=(lambda query, key: -torch.cdist(query, key)) if score else None,
    )
    weights, scores = attention.compute_weights(), attention.compute_scores()
    assert attention.certify().max() < 1e-5
    total, blind = weights.sum(dim=-1), (scores == -torch.inf).all(dim=-1)
    assert (total[blind] == 0).all()
    assert (total[~blind] < 1).all() if sinks else torch.allclose(total[~blind], torch.ones(()))
    assert (weights[scores == -torch.inf] == 0).all()
    for rows in (range(1, queries), [queries - 1, 0], []):
        for head in range(heads):
            torch.testing.assert_close(attention.compute_weights(head, rows), weights[:, head, list(rows)])
            torch.testing.assert_close(attention.compute_scores(head, rows), scores[:, head, list(rows)])


def test_certification_finds_a_context_that_is_not_weights_times_value() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec()).eval()
    place = "decoder.0.cross_attention"

    def bend(context: Tensor) -> Tensor:
        return torch.cat([context[:, :1], context[:, 1:] + 0.25], dim=1)

    trace = look(model, [1, 2, 3], [1, 4], tap=Intervention(place, "context", bend))
    found = trace.certify()
    assert found[place][0] < 1e-5 and found[place][1] > 0.2
    assert all(worst.max() < 1e-5 for other, worst in found.items() if other != place)


def test_heads_and_bias_add_up_to_the_output() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec(heads=4)).eval()
    trace = look(model, [1, 2, 3, 4], [1, 4, 5])
    for attention in trace:
        module: Any = model.get_submodule(attention.place.replace(".0.", ".blocks.0."))
        heads = [attention.output(head) for head in range(attention.heads)]
        whole = torch.stack(heads).sum(dim=0) + module.output.bias
        torch.testing.assert_close(whole, trace.tensor(attention.place, "output"), rtol=1e-4, atol=1e-5)
        # One head's output is what its keys give, each a share of its own value.
        value = attention.value[:, 2] @ module.output.weight[:, 4:6].T
        given_by_key = attention.compute_weights(2).unsqueeze(-1) * value.unsqueeze(1)
        torch.testing.assert_close(given_by_key.sum(dim=2), heads[2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(given_by_key.norm(dim=-1), attention.flow(2), rtol=1e-4, atol=1e-5)


def kept_numbers(trace: Trace) -> int:
    """How many numbers a trace keeps alive, each storage counted once."""
    storages = {}
    for calls in trace.calls.values():
        for call in calls:
            sites = [site for site in ("query", "key", "value", "context", "output", "residual") if site in call]
            for tensor in [call[site] for site in sites] + [
                x for x in vars(call.score_terms).values() if isinstance(x, Tensor)
            ]:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
    return sum(storages.values())


def causal_model() -> SequenceModel:
    torch.manual_seed(0)
    attention = spec.Attention(heads=2, d_key=4, causal=True, position=spec.Rotary())
    blocks = (spec.Block(attention, spec.FeedForward(8)),)
    return build(spec.Transformer(None, spec.Stack(8, blocks, spec.Tokens(9)), spec.Vocabulary())).eval()


def test_what_is_kept_grows_with_length_and_not_with_its_square() -> None:
    model = causal_model()
    short, long = (kept_numbers(look(model, target=torch.randint(9, (1, length)))) for length in (100, 400))
    assert long <= 4.2 * short
    kept = []
    for length in (32, 128):
        recorder = Recorder()
        step_through(model, {"target": torch.randint(9, (2, length))}, recorder)
        kept.append(kept_numbers(build_trace(recorder, model)))
    assert kept[1] <= 4.2 * kept[0]


def test_an_intervention_on_the_weights_takes_one_attention_off_the_kernel() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec(layers=2)).eval()
    source, target = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 4, 5]])
    place = "decoder.1.cross_attention"
    intervention = Intervention(place, "weights", torch.zeros_like)
    cross_attention = intervention.at("decoder").at("1").at("cross_attention")
    assert cross_attention.replaces("weights") and not intervention.at("decoder").at("0").replaces("weights")
    trace = look(model, source, target, tap=intervention)
    assert (trace[place].context == 0).all()
    assert trace.logits is not None and not torch.equal(trace.logits, model(source, target))
    # The same by taking the values away, on the fast path, and with two interventions at once.
    by_value = look(model, source, target, tap=Intervention(place, "value", torch.zeros_like)).logits
    torch.testing.assert_close(by_value, trace.logits)
    other = "encoder.0.self_attention"
    both = look(model, source, target, tap=Intervention(other, "context", torch.zeros_like, inner=intervention))
    assert (both[other].context == 0).all() and (both[place].context == 0).all()


def test_nothing_is_replaced_unless_asked() -> None:
    recorder = Recorder()
    assert not any(recorder.replaces(site) for site in ("scores", "weights", "query"))
    tensor = torch.ones(1)
    assert recorder("logits", tensor) is tensor


def test_mistakes_are_named() -> None:
    trace = look(causal_model(), target=[1, 2, 3])
    with pytest.raises(QkvError, match=r"did you mean 'decoder.0.self_attention'"):
        trace["decoder.0.self_atention"]
    with pytest.raises(QkvError, match="heads 0 to 1"):
        trace["decoder.0.self_attention"].compute_weights(head=2)
    with pytest.raises(QkvError, match="queries 0 to 2"):
        trace["decoder.0.self_attention"].compute_weights(rows=[3])
    with pytest.raises(QkvError, match="no 'memory' was recorded"):
        trace.tensor("decoder.0", "memory")
    with pytest.raises(QkvError, match="at least one token"):
        look(causal_model(), target=[])
    with pytest.raises(QkvError, match="no output projection"):
        traced(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2)).output(0)


def test_a_reordered_beam_is_refused_in_words() -> None:
    model = build(build_small_spec()).eval()
    recorder = Recorder()
    with torch.no_grad():
        state = model.start(model.encode(torch.tensor([[1, 2]]), tap=recorder), 1)
        _, state = model.step(torch.tensor([[1]]), state, tap=recorder)
        _, state = model.step(torch.tensor([[3], [4]]), state.reorder(torch.tensor([0, 0])), tap=recorder)
    with pytest.raises(QkvError, match="trace the finished hypothesis"):
        build_trace(recorder, model)
