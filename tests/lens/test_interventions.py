"""Interventions: each does what its words say, step by step as at once, and what is not used costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from qkv import lens, spec
from qkv.attention import attend
from qkv.decoding import Beam, DecodingConfig, Greedy, LengthLimit, Sample, generate_batch, score
from qkv.errors import QkvError
from qkv.generation_rules import GenerationRules
from qkv.lens import Compose, ablate, knock_out, look, patch, swap_values
from qkv.mask import Mask
from qkv.models import SequenceModel, build
from qkv.tap import NO_TAP, Tap
from tests.core.test_spec import build_small_spec, draw_spec
from tests.lens.test_trace import step_through, tokens

CROSS, SELF = "decoder.0.cross_attention", "decoder.0.self_attention"


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def a_model(**changes: Any) -> SequenceModel:
    torch.manual_seed(0)
    return build(build_small_spec(heads=4, layers=2, **changes)).eval()


def run(model: SequenceModel, given_tokens: dict[str, Any], tap: Tap = NO_TAP) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**given_tokens, tap=tap)
    return found


@settings(max_examples=12)
@given(draw_spec(), st.integers(0, 2**31), st.data())
def test_step_by_step_as_at_once(choice: spec.Spec, seed: int, data: st.DataObject) -> None:
    assume(isinstance(choice, spec.Recurrent) or choice.decoder is not None)
    torch.manual_seed(seed)
    model = build(choice).double().eval()  # what is nearly constant is blown up by a norm, rounding included
    given_tokens = tokens(choice)
    other = look(model, **tokens(choice, targets=8))
    places = [attention.place for attention in other if attention.place.startswith("decoder")]
    assume(places)
    place = data.draw(st.sampled_from(places))
    of = other[place]
    head = [data.draw(st.integers(0, of.kv_heads - 1))]
    makers: dict[str, Callable[[], Tap]] = {
        "zero": lambda: ablate(place, head),
        "mean": lambda: ablate(place, head, "mean", of),
        "resample": lambda: ablate(place, None, "resample", of, seed),
        "edges": lambda: knock_out(place, [0, 2], [1, 3], head),
        "keys": lambda: knock_out(place, [1]),
        "query": lambda: patch(place, "query", of, heads=head, positions=[1, 4]),
        "key": lambda: patch(place, "key", of, positions=[0, 3]),
        "value": lambda: patch(place, "value", of, heads=head, row=1),
        "context": lambda: patch(place, "context", of, positions=[2, 5]),
    }
    if place.endswith("cross_attention"):
        makers["swap"] = lambda: swap_values(place, 0, 2, head)
    chosen = data.draw(st.lists(st.sampled_from(sorted(makers)), min_size=1, max_size=2, unique=True))
    tap = Compose(*(makers[name]() for name in chosen))
    for _ in range(2):  # a tap serves more than one run
        close(step_through(model, given_tokens, tap), run(model, given_tokens, tap))
    trace = look(model, **given_tokens, tap=tap)
    assert trace.logits is not None and torch.equal(trace.logits, run(model, given_tokens, tap))
    if "context" not in chosen and not {"zero", "mean", "resample"} & set(chosen):
        assert max(worst.max() for worst in trace.certify().values()) < 1e-5  # the trace shows what was done


def test_an_ablated_head_is_one_whose_output_parameters_are_nothing() -> None:
    model = a_model()
    given_tokens = tokens(model.spec)
    ablated = run(model, given_tokens, ablate(CROSS, [1, 2]))
    assert not torch.allclose(ablated, run(model, given_tokens))
    model.get_submodule("decoder.blocks.0.cross_attention.output").weight.data[:, 2:6] = 0
    close(ablated, run(model, given_tokens))


def test_a_key_that_nobody_may_look_at_is_absent() -> None:
    model = a_model()
    given_tokens = tokens(model.spec)
    given_tokens["source_mask"][:] = True
    away = Compose(knock_out("decoder.*.cross_attention", [3]), knock_out("encoder.*.self_attention", [3]))
    without = given_tokens["source_mask"].clone()
    without[:, 3] = False
    close(run(model, given_tokens, away), run(model, {**given_tokens, "source_mask": without}))
    everything = run(model, given_tokens, knock_out("decoder.*.cross_attention", range(5)))
    close(everything, run(model, given_tokens, Compose(ablate(CROSS), ablate("decoder.1.cross_attention"))))


def test_knocking_out_chooses_heads_queries_and_keys() -> None:
    model = a_model()
    given_tokens = tokens(model.spec)
    before = look(model, **given_tokens)[CROSS].compute_weights()
    after = look(model, **given_tokens, tap=knock_out(CROSS, [1], [2, 4], [3]))[CROSS].compute_weights()
    expected = before.clone()
    expected[:, 3, [2, 4], 1] = 0
    expected = expected / expected.sum(dim=-1, keepdim=True)
    close(after, expected)


def test_what_is_patched_from_itself_changes_nothing_and_from_another_everything() -> None:
    model = a_model()
    target = torch.randint(11, (1, 6))
    mine, other = ({"source": torch.randint(9, (1, 5)), "target": target} for _ in range(2))
    seen, elsewhere = look(model, **mine), look(model, **other)
    for site in ("query", "key", "value", "context"):
        assert torch.equal(run(model, mine, patch(CROSS, site, seen[CROSS])), run(model, mine))  # type: ignore[arg-type]
    whole = [
        patch(place, site, elsewhere[place])
        for place in (CROSS, "decoder.1.cross_attention")
        for site in ("key", "value")
    ]
    assert not torch.allclose(run(model, mine), run(model, other))
    close(run(model, mine, Compose(*whole)), run(model, other))


def test_means_and_donors_are_those_of_the_other_run() -> None:
    model = a_model()
    given_tokens = tokens(model.spec)
    of = look(model, **tokens(model.spec))[CROSS]
    context = look(model, **given_tokens, tap=ablate(CROSS, [2], "mean", of))[CROSS].context
    close(context[:, 2], of.context[:, 2].mean(dim=(0, 1)).expand_as(context[:, 2]))
    drawn = look(model, **given_tokens, tap=ablate(CROSS, None, "resample", of, 3))[CROSS].context[0].transpose(0, 1)
    donors = of.context.transpose(1, 2).flatten(0, 1)
    assert all(any(torch.equal(one, donor) for donor in donors) for one in drawn)


def test_swapped_values_are_found_as_before() -> None:
    model = a_model()
    given_tokens = tokens(model.spec)
    before, after = look(model, **given_tokens)[CROSS], look(model, **given_tokens, tap=swap_values(CROSS, 0, 2))[CROSS]
    assert torch.equal(before.compute_weights(), after.compute_weights())
    assert torch.equal(before.value[:, :, [2, 1, 0, 3, 4]], after.value)
    assert not torch.allclose(before.context, after.context)


@pytest.mark.parametrize("method", [Greedy(), Sample(n_best=2), Beam(size=3, n_best=3)])
def test_what_is_found_under_an_intervention_is_scored_alike(method: Any) -> None:
    """The search reorders, repeats and drops rows; teacher forcing does not."""
    model = a_model()
    source = torch.randint(1, 9, (3, 5))
    of = look(model, [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
    tap = Compose(
        ablate(SELF, [1]),
        ablate(CROSS, [0], "resample", of[CROSS]),
        knock_out("decoder.*.cross_attention", [1], [0, 2, 4]),
        knock_out("decoder.1.self_attention", [1, 2], [2, 3]),
        patch(CROSS, "query", of[CROSS], positions=[1, 3]),
        swap_values("decoder.1.cross_attention", 0, 3),
    )
    options = DecodingConfig(method, LengthLimit(constant=7, factor=0.0))
    torch.manual_seed(1)
    found = generate_batch(
        model,
        source,
        rules=GenerationRules(bos=1, eos=2),
        decoding=options,
        tap=tap,
        generator=torch.Generator().manual_seed(0),
    )
    changed = False
    for row, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            [forced] = score(model, [hypothesis.tokens], source[row : row + 1], bos=1, tap=tap)
            assert sum(forced) == pytest.approx(hypothesis.log_probability, abs=1e-4)
            [plain] = score(model, [hypothesis.tokens], source[row : row + 1], bos=1)
            changed |= abs(sum(plain) - sum(forced)) > 1e-3
    assert changed


def test_an_edge_is_knocked_out_on_the_fused_kernel_and_not_using_it_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_to: list[dict[str, Any]] = []
    kernel = functional.scaled_dot_product_attention

    def watched(*tensors: Tensor, **options: Any) -> Tensor:
        given_to.append(options)
        return kernel(*tensors, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    query, key, value = torch.randn(3, 1, 2, 4, 8).unbind(0)
    plain = attend(query, key, value, mask=Mask(causal=True))
    assert torch.equal(plain, attend(query, key, value, mask=Mask(causal=True), tap=Tap()))
    elsewhere = knock_out("decoder.9.self_attention", [0])
    assert torch.equal(plain, attend(query, key, value, mask=Mask(causal=True), tap=elsewhere))
    assert all(options["is_causal"] and options["attn_mask"] is None for options in given_to) and len(given_to) == 3
    attend(query, key, value, mask=Mask(causal=True), tap=knock_out("self_attention", [0]).at("self_attention"))
    assert len(given_to) == 4


def test_mistakes_are_named() -> None:
    model = a_model()
    given_tokens = tokens(model.spec)
    seen = look(model, **given_tokens)
    with pytest.raises(QkvError, match="heads 0 to 3"):
        run(model, given_tokens, ablate(CROSS, [4]))
    with pytest.raises(QkvError, match="heads 0 to 3"):
        run(model, given_tokens, knock_out(CROSS, [0], heads=[-1]))
    with pytest.raises(QkvError, match="count from 0"):
        knock_out(CROSS, [-1])
    with pytest.raises(QkvError, match="without `of`"):
        ablate(CROSS, by="mean")
    with pytest.raises(QkvError, match="rows 0 to 1"):
        patch(CROSS, "key", seen[CROSS], row=2)
    with pytest.raises(QkvError, match="expected query, key, value or context"):
        patch(CROSS, "weights", seen[CROSS])  # type: ignore[arg-type]
    longer = tokens(model.spec, sources=7)
    with pytest.raises(QkvError, match="the other run has 5 of them"):
        run(model, longer, patch(CROSS, "value", seen[CROSS]))
    narrow = look(build(build_small_spec(heads=2)).eval(), **given_tokens)
    with pytest.raises(QkvError, match="run of the same model"):
        run(model, given_tokens, patch(CROSS, "value", narrow[CROSS]))
    assert (
        lens.Intervention(CROSS, "weights", torch.zeros_like)
        .at("decoder")
        .at("0")
        .at("cross_attention")
        .replaces("weights")
    )


def build_ineffective_edits(seen: lens.Trace) -> dict[str, tuple[Tap, str]]:
    """Edits that could change nothing in `seen`, a run of 5 sources and 4 targets, by what is wrong with each."""
    other = seen[CROSS]
    return {
        "a misspelled place": (ablate("decoder.0.cross_atention", [0]), f"did you mean {CROSS!r}"),
        "a block that does not exist": (ablate("decoder.9.cross_attention"), "did you mean"),
        "a place with no context": (ablate("decoder.0"), "no context passes"),
        "a place of another site": (ablate("decoder.0.feed_forward"), "no context passes"),
        "a site that does not pass there": (
            lens.Intervention(CROSS, "residual", torch.zeros_like),
            "no residual passes",
        ),
        "a pattern with too few parts": (knock_out("*.cross_attention", [0]), "no query passes"),
        "keys beyond the end": (knock_out(CROSS, [99]), "key position 99"),
        "queries beyond the end": (knock_out(CROSS, [0], queries=[99]), "query position 99"),
        "one key beyond the end": (knock_out(CROSS, [0, 99]), "key position 99"),
        "a swap beyond the end": (swap_values(CROSS, 0, 99), "key position 99"),
        "a patch beyond the end": (patch(CROSS, "key", other, positions=[99]), "key position 99"),
        "contexts beyond the end": (patch(CROSS, "context", other, positions=[99]), "query position 99"),
        "the second of two edits": (Compose(ablate(CROSS), ablate("nope")), "no context passes"),
        "an edit inside another": (
            lens.Intervention(CROSS, "context", torch.zeros_like, inner=ablate("nope")),
            "no context passes",
        ),
    }


def test_an_edit_without_an_effect_is_refused() -> None:
    model = a_model()
    given_tokens = tokens(model.spec)
    for name, (tap, message) in build_ineffective_edits(look(model, **given_tokens)).items():
        for _ in range(2):  # a tap that was refused is refused again
            with pytest.raises(QkvError, match=message):
                look(model, **given_tokens, tap=tap)
                raise AssertionError(name)


def test_an_edit_is_checked_anew_in_every_run() -> None:
    model = a_model()
    tap = knock_out(CROSS, [6])
    assert look(model, **tokens(model.spec, sources=7), tap=tap).places
    with pytest.raises(QkvError, match="expected a position from 0 to 4"):
        look(model, **tokens(model.spec, sources=5), tap=tap)
    assert look(model, **tokens(model.spec, sources=7), tap=tap).places


@pytest.mark.parametrize("method", [Greedy(), Sample(), Beam(size=2)], ids=lambda one: type(one).__name__)
def test_a_misspelled_place_is_refused_while_decoding_and_scoring(method: Any) -> None:
    model = a_model()
    source = tokens(model.spec)["source"]
    misspelled, rules = ablate("decoder.0.cross_atention"), GenerationRules(bos=1, eos=2)
    decoding = DecodingConfig(method=method, length=LengthLimit(constant=3, factor=0.0))
    with pytest.raises(QkvError, match="did you mean"):
        list(generate_batch(model, source, rules=rules, decoding=decoding, tap=misspelled))
    with pytest.raises(QkvError, match="did you mean"):
        score(model, [(3, 4)] * len(source), source, bos=1, tap=misspelled)


def test_an_empty_list_of_positions_is_refused() -> None:
    seen = look(model := a_model(), **tokens(model.spec))
    for make in (
        lambda: knock_out(CROSS, []),
        lambda: knock_out(CROSS, [0], queries=[]),
        lambda: patch(CROSS, "key", seen[CROSS], positions=[]),
    ):
        with pytest.raises(QkvError, match="no position was given"):
            make()
