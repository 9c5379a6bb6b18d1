"""The recurrent encoder-decoder: its laws, for each cell and attention, and the formulas it claims to follow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qkv import lens, models, spec
from qkv.cache import Memory
from qkv.errors import DataError
from qkv.layers import set_dropout
from qkv.models.recurrent import Recurrent

KINDS = [
    (cell, attention, layers)
    for cell in ("gru", "lstm")
    for attention in (None, "additive", "dot", "general")
    for layers in (1, 2)
]
D_MODEL = 8
every_kind = pytest.mark.parametrize(("cell", "attention", "layers"), KINDS)
ATTENTIONS = ["additive", "dot", "general"]


def build(cell: str = "gru", attention: str | None = "additive", layers: int = 1, **more: object) -> Recurrent:
    torch.manual_seed(0)
    choice = spec.Recurrent(cell, D_MODEL, layers, spec.Tokens(11), spec.Tokens(13), attention, **more)  # type: ignore[arg-type]
    model = models.build(spec.from_json(spec.to_json(choice)))
    assert isinstance(model, Recurrent)
    return model.eval()


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor([5, 2, 4])
    return torch.randint(11, (3, 5)), torch.arange(5) < lengths[:, None], torch.randint(13, (3, 6))


def assert_close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@every_kind
def test_stepping_equals_teacher_forcing(cell: str, attention: str | None, layers: int) -> None:
    model = build(cell, attention, layers)
    source, mask, target = make_batch()
    logits = model(source, target, mask)
    state = model.start(model.encode(source, mask), 3)
    parts = []
    for piece in target.split([1, 3, 1, 1], dim=1):
        stepped, state = model.step(piece, state)
        assert not stepped.requires_grad
        parts.append(stepped)
    assert state.length == 6
    assert_close(torch.cat(parts, dim=1), logits)


@every_kind
def test_padding_and_batch_mates_do_not_matter(cell: str, attention: str | None, layers: int) -> None:
    model = build(cell, attention, layers)
    source, mask, target = make_batch()
    logits = model(source, target, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        assert_close(model(source[row : row + 1, :length], target[row : row + 1])[0], logits[row])
    longer = torch.cat([source.masked_fill(~mask, 7), torch.full((3, 2), 9)], dim=1)
    assert_close(model(longer, target, torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1)), logits)


@every_kind
def test_the_future_does_not_matter(cell: str, attention: str | None, layers: int) -> None:
    model = build(cell, attention, layers)
    source, mask, target = make_batch()
    changed = target.clone()
    changed[:, 4:] = 0
    assert_close(model(source, changed, mask)[:, :4], model(source, target, mask)[:, :4])


@every_kind
@pytest.mark.parametrize("index", [[2, 0, 0, 1], [0, 1, 2], [1]])
def test_reorder_picks_and_repeats_rows(cell: str, attention: str | None, layers: int, index: list[int]) -> None:
    model = build(cell, attention, layers)
    source, mask, target = make_batch()
    rows = torch.tensor(index)
    expected = model(source[rows], target[rows], mask[rows])
    _, state = model.step(target[:, :2], model.start(model.encode(source, mask), 3))
    logits, state = model.step(target[rows, 2:], state.reorder(rows))
    assert state.length == 6
    assert_close(logits, expected[:, 2:])


def test_reorder_within_a_sentence_keeps_the_memory() -> None:
    model = build()
    source, mask, target = make_batch()
    two_beams = model.start(model.encode(source, mask), 3).reorder(torch.tensor([0, 0, 1, 1, 2, 2]))
    _, state = model.step(target[:, :1].repeat_interleave(2, 0), two_beams)
    moved = state.reorder(torch.tensor([1, 1, 2, 3, 5, 4]))
    assert moved.memory is state.memory and moved.key is state.key


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_lens_sees_query_key_value_and_context(cell: str, attention: str, layers: int) -> None:
    model = build(cell, attention, layers)
    source, mask, target = make_batch()
    trace = lens.look(model, source, target, mask)
    with torch.no_grad():
        assert torch.equal(trace.logits, model(source, target, mask))
    seen = trace.attentions["decoder.cross_attention"]
    memory = model.encode(source, mask).states
    assert seen.query.shape == (3, 1, 6, D_MODEL)
    assert torch.equal(seen.value, memory.unsqueeze(1))
    own_key = model.decoder.cross_attention.key
    assert_close(seen.key, (memory if own_key is None else own_key(memory)).unsqueeze(1))
    weights = seen.compute_weights()
    assert_close(weights.sum(dim=-1), torch.ones(3, 1, 6))
    assert torch.equal(weights.masked_select(~mask[:, None, None]), torch.zeros(6 * 4))
    assert_close(weights @ seen.value, seen.context)
    assert seen.certify().max() < 1e-6


@every_kind
def test_sites(cell: str, attention: str | None, layers: int) -> None:
    source, mask, target = make_batch()
    trace = lens.look(build(cell, attention, layers), source, target, mask)
    assert {place: sorted(calls[0].tensors) for place, calls in trace.calls.items() if "cross" not in place} == {
        "encoder": ["embedding"],
        "decoder": ["embedding"],
        "": ["logits", "memory"],
    }


def test_additive_attention_is_bahdanaus_formula() -> None:
    """A decoder of one GRU layer, written out from the paper's equations with torch's own cell."""
    model = build("gru", "additive")
    source, _, target = make_batch()
    decoder, memory = model.decoder, model.encode(source).states
    attention = decoder.cross_attention
    end = torch.cat([memory[:, -1, : D_MODEL // 2], memory[:, 0, D_MODEL // 2 :]], dim=-1)
    state = torch.tanh(decoder.bridge(end))
    expected = []
    for token in target.unbind(dim=1):
        embedded = decoder.embedding.tokens(token)
        asked, offered = state @ attention.query.weight.T + attention.query.bias, memory @ attention.key.weight.T
        scores = torch.stack([torch.tanh(asked + key) @ attention.vector for key in offered.unbind(dim=1)], dim=1)
        context = (scores.softmax(dim=1)[:, :, None] * memory).sum(dim=1)
        state = decoder.cell(torch.cat([embedded, context], dim=-1), state)
        read = torch.tanh(decoder.readout(torch.cat([context, state, embedded], dim=-1)))
        expected.append(model.head(read))
    assert_close(model(source, target), torch.stack(expected, dim=1))


def test_the_lstm_of_additive_attention_is_torchs() -> None:
    model = build("lstm", "additive")
    source, _, target = make_batch()
    state = model.start(model.encode(source), 3)
    trace = lens.look(model, source, target[:, :1])
    context = trace.attentions["decoder.cross_attention"].context[:, 0, 0]
    embedded = model.decoder.embedding.tokens(target[:, 0])
    expected = model.decoder.cell(torch.cat([embedded, context], dim=-1), state.hidden[0])
    _, after = model.step(target[:, :1], state)
    for ours, torchs in zip(after.hidden[0], expected, strict=True):
        assert_close(ours, torchs)


@pytest.mark.parametrize("attention", ["dot", "general"])
def test_multiplicative_attention_is_luongs_formula(attention: str) -> None:
    model = build("gru", attention)
    source, _, target = make_batch()
    decoder, memory = model.decoder, model.encode(source)
    states, _ = decoder.layers[0](decoder.embedding.tokens(target), decoder.start(memory)[0][0].unsqueeze(0))
    keys = memory.states if attention == "dot" else memory.states @ decoder.cross_attention.key.weight.T
    context = torch.einsum("bqd,bkd->bqk", states, keys).softmax(dim=-1) @ memory.states
    read = torch.tanh(torch.cat([context, states], dim=-1) @ decoder.readout.weight.T + decoder.readout.bias)
    assert_close(model(source, target), model.head(read))


@every_kind
def test_gradients_reach_every_parameter(cell: str, attention: str | None, layers: int) -> None:
    model = build(cell, attention, layers).train()
    set_dropout(model, 0.1)
    source, mask, target = make_batch()
    model(source, target, mask).logsumexp(dim=-1).sum().backward()
    missing = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert missing == []


def test_dropout_is_given_by_set_dropout_and_only_in_training() -> None:
    model = build("gru", "dot", 2)
    source, mask, target = make_batch()
    plain = model(source, target, mask)
    set_dropout(model, 0.5)
    assert torch.equal(model(source, target, mask), plain)
    model.train()
    assert not torch.allclose(model(source, target, mask), plain)


def test_tied_answer_and_scaled_embedding() -> None:
    model = build(head=spec.Vocabulary(tied=True, bias=True))
    assert model.head.weight is model.decoder.embedding.tokens.weight
    scaled = spec.Recurrent("gru", D_MODEL, 1, spec.Tokens(11, scale=True), spec.Tokens(13))
    embedding = models.build(scaled).eval().encoder.embedding
    assert_close(embedding(torch.tensor([[3]])), embedding.tokens.weight[None, 3:4] * D_MODEL**0.5)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("attention", [None, "additive"])
def test_autocast_leaves_the_recurrence_precise(cell: str, attention: str | None) -> None:
    model = build(cell, attention)
    source, mask, target = make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encode(source, mask).states.dtype == torch.float32
        logits = model(source, target, mask)
    torch.testing.assert_close(logits.float(), model(source, target, mask), rtol=0.02, atol=0.02)


def test_it_learns_to_copy_backwards() -> None:
    """A task that needs a look back at the right place; without attention it takes longer to learn."""
    torch.manual_seed(0)
    losses = {}
    for attention in (None, "additive"):
        torch.manual_seed(0)
        model = models.build(spec.Recurrent("gru", 32, 1, spec.Tokens(12), spec.Tokens(12), attention))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(110):
            source = torch.randint(2, 12, (32, 5))
            labels = source.flip(1)
            target = torch.cat([torch.ones(32, 1, dtype=torch.int64), labels[:, :-1]], dim=1)
            loss = torch.nn.functional.cross_entropy(model(source, target).flatten(0, 1), labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[attention] = loss.item()
    assert losses["additive"] < losses[None] / 2, losses


def test_mistakes_are_named() -> None:
    model = build()
    source, _, target = make_batch()
    with pytest.raises(DataError, match="pad on the right"):
        model(source, target, torch.tensor([[False, True, True, True, True]] * 3))
    with pytest.raises(DataError, match="at least one token"):
        model(source, target, torch.zeros(3, 5, dtype=torch.bool))
    with pytest.raises(DataError, match="length 0"):
        model(source[:, :0], target)
    with pytest.raises(DataError, match="no source"):
        model(None, target)
    with pytest.raises(DataError, match="no memory"):
        model.start(None, 3)
    assert isinstance(model.encode(source), Memory)
