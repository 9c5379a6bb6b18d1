"""The laws of the Transformer, for any spec."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv import spec
from qkv.errors import DataError, SpecError
from qkv.layers import Attention, set_dropout
from qkv.models import build
from qkv.presets import encoder_decoder
from qkv.tap import Site, Tap
from tests.core.test_spec import build_small_spec, draw_spec


def assert_close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5)


def make_inputs(choice: spec.Spec, rows: int = 3, sources: int = 5, targets: int = 6) -> dict[str, Tensor]:
    """Random tokens for whatever the spec reads, the second row's source padded."""
    found = {}
    if isinstance(choice, spec.Transformer) and choice.encoder is not None:
        found["source"] = torch.randint(choice.encoder.input.vocab, (rows, sources))
        found["source_mask"] = torch.ones(rows, sources, dtype=torch.bool)
        found["source_mask"][1, 3:] = False
    if isinstance(choice, spec.Transformer) and choice.decoder is not None:
        found["target"] = torch.randint(choice.decoder.input.vocab, (rows, targets))
    return found


@settings(max_examples=40)
@given(draw_spec(), st.lists(st.integers(1, 3), min_size=1, max_size=6), st.integers(0, 2**31))
def test_stepping_with_a_cache_equals_teacher_forcing(choice: spec.Spec, pieces: list[int], seed: int) -> None:
    assume(isinstance(choice, spec.Transformer) and choice.decoder is not None)
    torch.manual_seed(seed)
    model = build(choice).eval()
    given_inputs = make_inputs(choice, targets=sum(pieces))
    assume(sum(pieces) <= 16)
    everything = model(**given_inputs)
    source = given_inputs.get("source")
    memory = None if source is None else model.encode(source, given_inputs["source_mask"])
    state, stepped = model.start(memory, 3), []
    for piece in given_inputs["target"].split(pieces, dim=1):
        logits, state = model.step(piece, state)
        stepped.append(logits)
    assert state.length == sum(pieces)
    assert_close(torch.cat(stepped, dim=1), everything)


@settings(max_examples=40)
@given(draw_spec(), st.integers(0, 2**31))
def test_padding_and_the_rest_of_the_batch_do_not_matter(choice: spec.Spec, seed: int) -> None:
    assume(isinstance(choice, spec.Transformer))
    torch.manual_seed(seed)
    model = build(choice).eval()
    batch = make_inputs(choice)
    together = model(**batch)[1]
    alone = {name: tensor[1:2] for name, tensor in batch.items()}
    if "source" in alone:
        alone["source"], alone["source_mask"] = alone["source"][:, :3], alone["source_mask"][:, :3]
        together = together if "target" in alone or together.dim() == 1 else together[:3]
    assert_close(model(**alone)[0], together)


@settings(max_examples=25)
@given(draw_spec(), st.integers(0, 2**31))
def test_the_future_does_not_matter_to_a_decoder(choice: spec.Spec, seed: int) -> None:
    assume(isinstance(choice, spec.Transformer) and choice.decoder is not None)
    torch.manual_seed(seed)
    model = build(choice).eval()
    batch = make_inputs(choice)
    before = model(**batch)
    batch["target"] = batch["target"].clone()
    batch["target"][:, 4:] = 0
    assert_close(model(**batch)[:, :4], before[:, :4])


def test_rules_too_large_for_a_matrix_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    near = spec.Attention(heads=2, d_key=4, causal=True, window=3, position=spec.Rotary())
    blocks = (spec.Block(near, spec.FeedForward(8)), spec.Block(replace(near, window=None), spec.FeedForward(8)))
    model = build(spec.Transformer(None, spec.Stack(8, blocks, spec.Tokens(9)), spec.Vocabulary())).eval()
    target, real = torch.randint(9, (2, 11)), torch.arange(11) < torch.tensor([[11], [7]])

    def answers() -> list[Tensor]:
        first, state = model.step(target[:, :4], model.start(None, 2))
        return [
            model(target=target),
            model(target=target, target_mask=real),
            first,
            model.step(target[:, 4:], state)[0],
        ]

    whole = answers()
    for module in ("models.transformer", "attention"):
        monkeypatch.setattr(f"qkv.{module}.MAX_MASK_ELEMENTS", 0)
    monkeypatch.setattr("qkv.attention._QUERY_CHUNK", 4)
    for by_rows, usual in zip(answers(), whole, strict=True):
        assert_close(by_rows, usual)


def test_reordering_picks_repeats_and_drops_rows() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec(layers=2)).eval()
    source, target = torch.randint(9, (2, 5)), torch.randint(11, (2, 4))
    for index in ([1, 0, 0], [0, 0, 1, 1], [1]):
        rows = torch.tensor(index)
        state = model.start(model.encode(source), 2)
        _, state = model.step(target[:, :3], state)
        logits, _ = model.step(target[rows][:, 3:], state.reorder(rows))
        assert_close(logits, model(source[rows], target[rows])[:, 3:])


class RecordingTap(Tap):
    """Keeps what passes, by place and site."""

    def __init__(self, seen: dict[str, Tensor] | None = None, place: str = "") -> None:
        self.seen, self.place = {} if seen is None else seen, place

    def at(self, place: str) -> RecordingTap:
        return RecordingTap(self.seen, f"{self.place}{place}.")

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        self.seen[self.place + site] = tensor
        return tensor


@settings(max_examples=25)
@given(draw_spec(), st.integers(0, 2**31))
def test_looking_changes_no_bit(choice: spec.Spec, seed: int) -> None:
    assume(isinstance(choice, spec.Transformer))
    torch.manual_seed(seed)
    model = build(choice).eval()
    batch = make_inputs(choice)
    keeper = RecordingTap()
    assert torch.equal(model(**batch, tap=keeper), model(**batch))
    assert {name.rsplit(".", 1)[-1] for name in keeper.seen} >= {"query", "key", "value", "context", "logits"}


def test_heads_add_up_to_the_output() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec(d_model=12, heads=3))
    keeper = RecordingTap()
    model(torch.randint(9, (2, 5)), torch.randint(11, (2, 4)), tap=keeper)
    attention = model.get_submodule("decoder.blocks.0.cross_attention")
    assert isinstance(attention, Attention)
    context = keeper.seen["decoder.0.cross_attention.context"]
    per_head = torch.einsum("bhqd,ohd->bhqo", context, attention.output.weight.unflatten(1, (3, -1)))
    assert_close(per_head.sum(1) + attention.output.bias, keeper.seen["decoder.0.cross_attention.output"])


def test_dropout_works_in_training_alone() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec())
    set_dropout(model, 0.5, attention=0.5)
    source, target = torch.randint(9, (2, 5)), torch.randint(11, (2, 4))
    assert not torch.equal(model(source, target), model(source, target))
    model.eval()
    assert torch.equal(model(source, target), model(source, target))


def test_tied_and_shared_vectors_are_one() -> None:
    choice = encoder_decoder(
        source_vocab=9, target_vocab=9, d_model=8, heads=2, d_ff=8, layers=1, shared_embedding=True
    )
    model = build(choice)
    vectors = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if p.shape == (9, 8)}
    assert len(vectors) == 1


def test_a_text_beyond_the_learned_positions_is_refused() -> None:
    stack = build_small_spec().encoder
    assert stack is not None
    stack = spec.Stack(8, stack.blocks, stack.input, spec.Learned(4))
    model = build(spec.Transformer(stack, None, spec.Classes(2)))
    with pytest.raises(DataError, match="5 tokens were given; this model has learned positions for 4"):
        model(torch.zeros(1, 5, dtype=torch.long))


def test_an_encoder_alone_predicts_no_sequence() -> None:
    model = build(spec.Transformer(build_small_spec().encoder, None, spec.Classes(2)))
    with pytest.raises(SpecError, match="only an encoder"):
        model.start(None, 1)


@pytest.mark.compile
def test_a_tapped_model_compiles_to_one_graph() -> None:
    torch.manual_seed(0)
    model = build(build_small_spec()).eval()
    source, target = torch.randint(9, (2, 5)), torch.randint(11, (2, 4))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(source, target), model(source, target))
    keeper = RecordingTap()
    assert_close(compiled(source, target, tap=keeper), model(source, target))
    assert "decoder.0.cross_attention.query" in keeper.seen


@settings(max_examples=20)
@given(draw_spec(), st.integers(0, 2**31))
def test_vectors_take_the_place_of_tokens(choice: spec.Spec, seed: int) -> None:
    """The vectors of the tokens, given as such, answer what the tokens answer."""
    assume(isinstance(choice, spec.Transformer))
    torch.manual_seed(seed)
    model = build(choice).eval()
    inputs = make_inputs(choice)
    assume(not isinstance(choice.head, spec.PointerGenerator))  # it copies tokens, so it needs them
    vectors = dict(inputs)
    for name, stack in (("source", model.encoder), ("target", model.decoder)):
        if stack is not None and stack.embedding.segments is None:
            vectors[name] = stack.embedding.tokens(inputs[name]) * stack.embedding.scale
    assert_close(model(**vectors), model(**inputs))


def test_a_mask_of_queries_by_keys_makes_a_prefix_language_model() -> None:
    torch.manual_seed(0)
    whole = build_small_spec(layers=2)
    assert whole.decoder is not None
    blocks = tuple(replace(block, cross_attention=None) for block in whole.decoder.blocks)
    model = build(spec.Transformer(None, replace(whole.decoder, blocks=blocks), whole.head)).eval()
    assert isinstance(model.spec, spec.Transformer) and model.spec.decoder is not None
    target = torch.randint(model.spec.decoder.input.vocab, (2, 6))
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    assert_close(model(target=target, target_mask=causal.expand(2, 6, 6)), model(target=target))
    prefix = causal | (torch.arange(6) < 3)  # the first three tokens attend to each other
    logits = model(target=target, target_mask=prefix.expand(2, 6, 6))
    changed = target.clone()
    changed[:, 2] = (changed[:, 2] + 1) % model.spec.decoder.input.vocab
    after = model(target=changed, target_mask=prefix.expand(2, 6, 6))
    assert not torch.allclose(logits[:, 0], after[:, 0])  # token 0 attends to token 2
    changed[:, 2], changed[:, 5] = target[:, 2], (target[:, 5] + 1) % model.spec.decoder.input.vocab
    assert_close(model(target=changed, target_mask=prefix.expand(2, 6, 6))[:, :5], logits[:, :5])
