"""Word alignment: links, their format and error rate, the heads that align, and what is left out or said twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qkv
from qkv.attention import attend
from qkv.errors import DataError, QkvError
from qkv.lens import (
    GoldAlignment,
    Recorder,
    Trace,
    align,
    alignment_error_rate,
    build_trace,
    compute_word_ids,
    find_best_heads,
    format_pharaoh,
    look,
    parse_pharaoh,
)
from tests.lens.test_trace import causal_model

PLACE = "decoder.0.cross_attention"


def looking_at(*heads: list[int], sources: int, sharpness: float = 9.0) -> Trace:
    """A trace of cross-attention whose heads look at the given source token for each target token."""
    key = torch.eye(sources).expand(1, len(heads), -1, -1)
    query = torch.stack([sharpness * torch.eye(sources)[head] for head in heads])[None]
    recorder = Recorder()
    attend(query, key, key, scale=1.0, tap=recorder.at("decoder").at("0").at("cross_attention"))
    return build_trace(recorder, torch.nn.Module())


def test_links_go_to_the_word_that_most_is_taken_from() -> None:
    trace = looking_at([2, 0, 1], sources=3)
    found = align(trace, [(PLACE, 0)])
    assert format_pharaoh(found.links) == "0-1 1-2 2-0"
    assert torch.allclose(found.weights.sum(dim=1), torch.ones(3))
    # Tokens 0 and 1 are one source word, 2 no word; tokens 1 and 2 one target word.
    found = align(trace, [(PLACE, 0)], source_word_ids=[0, 0, None], target_word_ids=[0, 1, 1])
    assert format_pharaoh(found.links) == "0-0 0-1" and found.weights[1].tolist() == pytest.approx([1.0], abs=1e-3)
    assert format_pharaoh(align(trace, [(PLACE, 0)], query="reading").links) == "0-0 1-1"


def test_words_of_tokens() -> None:
    assert compute_word_ids(["\u2581an", "other", "\u2581day"]) == [0, 0, 1]
    assert compute_word_ids(["an", "##other", "day"]) == [0, 0, 1]
    assert compute_word_ids(["c", "a", "t"]) == [0, 1, 2]


def test_what_is_left_out_and_what_is_said_twice() -> None:
    found = align(looking_at([0, 1, 0, 3, 3], sources=4), [(PLACE, 0)])
    assert found.find_omitted() == [2] and found.find_repeated() == [0]
    assert found.received.sum() == pytest.approx(5.0, abs=1e-3)


links = st.frozensets(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6)


@given(st.lists(st.tuples(links, links, links), min_size=1, max_size=3))
def test_error_rate(sentences: list[tuple[frozenset[tuple[int, int]], ...]]) -> None:
    gold = [GoldAlignment(sure, sure | more) for _, sure, more in sentences]
    found = [own for own, _, _ in sentences]
    if any(found) or any(one.sure for one in gold):
        assert 0 <= alignment_error_rate(found, gold) <= 1
    if any(one.sure for one in gold):
        assert alignment_error_rate([one.sure for one in gold], gold) == 0
        assert alignment_error_rate([one.possible for one in gold], gold) == 0
    for own, one in zip(found, gold, strict=True):
        assert parse_pharaoh(format_pharaoh(own)) == GoldAlignment(own, own)
        line = " ".join(f"{s}{'-' if (s, t) in one.sure else '?'}{t}" for s, t in one.possible)
        assert parse_pharaoh(line) == one


def test_error_rate_by_hand() -> None:
    gold = [parse_pharaoh("0-0 1p1 2-2")]
    assert alignment_error_rate([[(0, 0), (1, 1), (3, 3)]], gold) == pytest.approx(1 - (1 + 2) / (3 + 2))


def test_the_heads_that_align_are_found() -> None:
    # One looks at the end, one at what is right, one everywhere.
    traces = [
        looking_at([3, 3, 3], [1, 0, 2], [0, 0, 0], sources=4),
        looking_at([3, 3, 3], [0, 2, 1], [1, 1, 1], sources=4),
    ]
    gold = [parse_pharaoh("1-0 0-1 2-2"), parse_pharaoh("0-0 2-1 1-2")]
    assert find_best_heads(traces) == [((PLACE, 1), pytest.approx(1.0, abs=0.01))]
    assert find_best_heads(traces, gold) == [((PLACE, 1), 1.0)]
    by_gold = find_best_heads(traces, gold, n_heads=3)
    assert [head for (_, head), _ in by_gold] == [1, 2, 0] and by_gold[2][1] == 0


def test_the_letters_of_sounds() -> None:
    runner = qkv.load("pronunciation")
    looked = [runner.look(word) for word in ("ship", "banter", "plastic", "gland")]
    traces = looked
    words = [[*range(len(one.source_tokens) - 1), None] for one in looked]  # the end is no letter
    sounds = [[*range(len(one.target_tokens) - 1), None] for one in looked]
    (head, value), *_ = find_best_heads(traces, source_word_ids=words, target_word_ids=sounds)
    found = [
        align(trace, [head], source_word_ids=letters, target_word_ids=said)
        for trace, letters, said in zip(traces, words, sounds, strict=True)
    ]
    assert value > 0.5
    rising = [[source for source, _ in sorted(one.links, key=lambda link: link[1])] for one in found]
    steps = [after >= before for row in rising for before, after in zip(row, row[1:], strict=False)]
    assert sum(steps) > 0.8 * len(steps)


def test_mistakes_are_named() -> None:
    trace = looking_at([0, 1], sources=2)
    with pytest.raises(QkvError, match="no heads were given"):
        align(trace, [])
    with pytest.raises(QkvError, match="source_word_ids has 1 numbers for 2 tokens"):
        align(trace, [(PLACE, 0)], source_word_ids=[0])
    with pytest.raises(QkvError, match="expected 'predicting' or 'reading'"):
        align(trace, [(PLACE, 0)], query="read")  # type: ignore[arg-type]
    with pytest.raises(QkvError, match="no cross-attention"):
        find_best_heads([look(causal_model(), target=[1, 2])])
    with pytest.raises(DataError, match="no traces"):
        find_best_heads([])
    with pytest.raises(DataError, match="'1:2'.*is not a link"):
        parse_pharaoh("0-0 1:2")
    with pytest.raises(DataError, match="2 alignments were given for 1"):
        alignment_error_rate([[], []], [parse_pharaoh("0-0")])
    with pytest.raises(DataError, match="no links"):
        alignment_error_rate([[]], [parse_pharaoh("")])
