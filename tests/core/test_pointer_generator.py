"""A model that copies from its source (See et al. 2017): its law, its steps, and how it is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv import lens, presets, spec
from qkv.decoding import Beam, DecodingConfig, Greedy, LengthLimit, LengthPenalty, generate_batch
from qkv.decoding.coverage import CrossAttentionTap
from qkv.errors import QkvError, SpecError
from qkv.generation_rules import GenerationRules
from qkv.models import SequenceModel, build
from qkv.pretrained import export
from qkv.text import train as train_tokenizer
from qkv.training.loss import cross_entropy

VOCAB = 20


def build_pointer_generator(vocab: int = VOCAB, seed: int = 0, **more: Any) -> SequenceModel:
    shape = presets.encoder_decoder(
        source_vocab=vocab, target_vocab=vocab, d_model=16, heads=2, d_ff=16, layers=1, shared_embedding=True, **more
    )
    torch.manual_seed(seed)
    return build(replace(shape, head=spec.PointerGenerator(8, spec.Vocabulary()))).eval()


def make_rows(
    seed: int, batch: int = 3, sources: int = 6, targets: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(4, VOCAB, (batch, sources), generator=generator)
    lengths = torch.randint(1, sources + 1, (batch, 1), generator=generator)
    lengths[0] = sources
    target = torch.randint(4, VOCAB, (batch, targets), generator=generator)
    return source, torch.arange(sources) < lengths, target


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
@torch.no_grad()
def test_probabilities_are_a_mixture_of_vocabulary_and_source(seed: int) -> None:
    model = build_pointer_generator(seed=seed)
    source, mask, target = make_rows(seed)
    logits = model(source, target, mask)
    assert torch.allclose(logits.exp().sum(-1), torch.ones(3, 5), atol=1e-5)
    trace = lens.look(model, source, target, mask)
    assert trace.logits is not None and torch.equal(trace.logits, logits)
    weights = trace["head.cross_attention"].compute_weights(0)
    assert not weights[~mask[:, None, :].expand_as(weights)].any()
    # equation 9, token by token, from what the lens saw
    hidden = model.decoder.final_norm(trace.tensor("decoder.0", "residual"))  # type: ignore[union-attr,operator]
    answer: Any = model.head
    gate = torch.sigmoid(answer.gate(torch.cat((trace["head.cross_attention"].context[:, 0], hidden), -1)))
    generated = answer.vocabulary(hidden).softmax(-1)
    copied = torch.stack([torch.where(source[:, None] == w, weights, 0.0).sum(-1) for w in range(VOCAB)], dim=-1)
    assert torch.allclose(logits.exp(), gate * generated + (1 - gate) * copied, atol=1e-6)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), first=st.integers(1, 4))
@torch.no_grad()
def test_stepping_equals_teacher_forcing_and_rows_may_move(seed: int, first: int) -> None:
    model = build_pointer_generator(seed=seed, sinusoidal=False, position=spec.Rotary())
    source, mask, target = make_rows(seed)
    whole = model(source, target, mask)
    begun, state = model.step(target[:, :first], model.start(model.encode(source, mask), 3))
    index = torch.tensor([2, 0, 0, 1])
    state = state.reorder(index)
    parts = [begun[index]]
    for place in range(first, target.shape[1]):
        logits, state = model.step(target[index, place : place + 1], state)
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, 1), whole[index], atol=1e-5)


@torch.no_grad()
def test_a_token_of_the_source_alone_gets_mass_and_padding_gives_none() -> None:
    model = build_pointer_generator()
    answer: Any = model.head
    answer.vocabulary.weight[17] -= 100 * torch.sign(answer.vocabulary.weight.sum())  # hardly ever generated
    answer.gate.bias.fill_(-20.0)  # copies only
    source, target = torch.tensor([[17, 5, 6]]), torch.tensor([[1]])
    assert model(source, target)[0, 0, 17].exp() > 0.1
    assert model(source, target)[0, 0, 9].exp() < 1e-6
    hidden = torch.tensor([[False, True, True]])
    assert model(source, target, hidden)[0, 0, 17].exp() < 1e-6


def test_it_learns_to_copy_what_it_never_saw_and_says_so() -> None:
    """Copy three tokens: half of all tokens are never answers in training, so that only the pointer can give them."""
    torch.manual_seed(1)
    model = build_pointer_generator(vocab=40).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(180):
        source = torch.randint(4, 22, (32, 3))
        target = torch.cat((torch.ones(32, 1, dtype=torch.int64), source[:, :-1]), 1)
        loss = cross_entropy(model(source, target), source) / source.numel()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(loss.detach()) < 0.5
    model.eval()
    unseen = torch.randint(22, 40, (50, 3), generator=torch.Generator().manual_seed(2))
    decoding = DecodingConfig(Greedy(), LengthLimit(0.0, 3))
    found = generate_batch(model, unseen, rules=GenerationRules(bos=1, eos=2), decoding=decoding)
    right = sum(one[0].tokens[0] == row[0] for one, row in zip(found, unseen.tolist(), strict=True))
    assert right > 25, "chance is 1 or 2 of 50"
    trace = lens.look(model, unseen[:1], torch.cat((torch.tensor([[1]]), unseen[:1, :2]), 1))
    [first, _] = lens.attribute_copies(model, trace)
    assert (
        first.position == 1
        and first.copied_share > 0.9
        and first.source_position == 0
        and first.generation_probability < 0.5
    )


@torch.no_grad()
def test_beams_interventions_and_reasons_reach_the_pointer() -> None:
    model = build_pointer_generator()
    source, mask, target = make_rows(3)
    beams = DecodingConfig(Beam(size=3, n_best=3, length_penalty=LengthPenalty("wu", 0.6)), LengthLimit(0.0, 6))
    for row, found in enumerate(
        generate_batch(model, source, mask, rules=GenerationRules(bos=1, eos=2), decoding=beams)
    ):
        for one in found:
            given = torch.tensor([[1, *one.tokens[:-1]]])
            logits = model(source[row : row + 1], given, mask[row : row + 1]).log_softmax(-1)[0]
            total = logits.gather(1, torch.tensor(one.tokens)[:, None]).sum()
            assert float(total) == pytest.approx(one.log_probability, abs=1e-4)
    covered = replace(beams, method=Beam(size=3, coverage_penalty=0.5))
    assert generate_batch(model, source, mask, rules=GenerationRules(bos=1, eos=2), decoding=covered)
    hidden = lens.look(model, source, target, mask, tap=lens.knock_out("head.cross_attention", keys=[0]))
    assert not hidden["head.cross_attention"].compute_weights(0)[:1, :, 0].any()
    # with the vocabulary silenced, a token of the source is impossible once nobody may look at it
    answer: Any = model.head
    answer.gate.bias.fill_(-30.0)
    only = torch.tensor([[7, 8, 9]])
    why = lens.explain(model, only, [1, 7], 1, heads=1)
    reason = next(one for one in why.effects if one.side == "source" and one.position == 0)
    assert why.probability > 0.01 and reason.probability_without < 1e-4


def test_what_cannot_be_says_so(tmp_path: Path) -> None:
    shape = presets.encoder_decoder(source_vocab=9, target_vocab=9, d_model=8, heads=1, d_ff=8, layers=1)
    with pytest.raises(SpecError, match="PointerGenerator was given without shared_embedding"):
        replace(shape, head=spec.PointerGenerator(8))
    with pytest.raises(SpecError, match="d_key=0"):
        spec.PointerGenerator(0)
    model = build_pointer_generator()
    assert spec.from_json(spec.to_json(model.spec)) == model.spec
    tokenizer = train_tokenizer(["a b"], "character")
    with pytest.raises(SpecError, match="PointerGenerator"):
        export.to_ctranslate2(model, tmp_path, tokenizer, tokenizer, bos=1, eos=2)
    plain = build(shape)
    with pytest.raises(QkvError, match="does not copy"):
        lens.attribute_copies(plain, lens.look(plain.eval(), [4], [1]))


@torch.no_grad()
def test_coverage_counts_the_attention_of_the_pointer_and_of_no_other_block() -> None:
    model = build_pointer_generator()
    source, mask, target = make_rows(0)
    tap = CrossAttentionTap()
    model(source, target, mask, tap=tap)
    trace = lens.look(model, source, target, mask)
    [(place, received)] = tap.received.values()
    assert place.endswith("head.cross_attention")
    torch.testing.assert_close(received, trace["head.cross_attention"].compute_weights(0).sum(1))
