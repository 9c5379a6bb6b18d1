"""Scores: held to the libraries, to values worked out by hand, and to the definitions in their signatures."""

from __future__ import annotations

import math
import sys

import jiwer
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from qkv import evaluation
from qkv.errors import DataError, MissingExtraError, QkvError

HYPOTHESES = ["The cat sat on the mat.", 'He said: "I like tea", and left.', "a well-known fact"]
REFERENCES = ["The cat is sitting on the mat.", "He said he likes tea, and left.", "A well-known fact"]


def test_bleu_chrf_and_ter_are_sacrebleus() -> None:
    for ours, theirs in (
        (evaluation.bleu, sacrebleu.corpus_bleu),
        (evaluation.chrf, sacrebleu.corpus_chrf),
        (evaluation.ter, sacrebleu.corpus_ter),
    ):
        assert ours(HYPOTHESES, REFERENCES).value == theirs(HYPOTHESES, [REFERENCES]).score
    lowered = evaluation.bleu(HYPOTHESES, REFERENCES, lowercase=True, tokenize="intl")
    assert lowered.value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], lowercase=True, tokenize="intl").score
    assert "case:lc" in lowered.signature and "tok:intl" in lowered.signature
    plain = evaluation.bleu(HYPOTHESES, REFERENCES)
    assert plain.signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert str(plain) == f"BLEU = {plain.value:.2f} [{plain.signature}]"
    assert evaluation.chrf(HYPOTHESES, REFERENCES, word_order=2).name == "chrF++"


def test_multi_bleu_by_hand() -> None:
    """Tokens: a b c d e (5) against a b c d f g (6): precisions 4/5, 3/4, 2/3, 1/2 and brevity exp(1 - 6/5)."""
    score = evaluation.multi_bleu(["A b c D e"], ["a B c d f g"], "en")
    assert score.value == pytest.approx(100 * math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert (
        score.signature.startswith("moses:en+norm|lower:lc|sacremoses:") and "tok:none|smooth:none" in score.signature
    )
    assert evaluation.multi_bleu(["A b c D e"], ["a B c d f g"], "en", lowercase=False).value == 0
    assert evaluation.multi_bleu(["a b c x"], ["a b c d"], "en").value == 0  # not smoothed


def test_moses_splits_punctuation_but_not_hyphens() -> None:
    lines = ["ein „saftig-grünes“ Gras, z.B. hier.", "it's 5-year-old"]
    assert evaluation.tokenize_moses(lines, "de") == [
        "ein &quot; saftig-grünes &quot; Gras , z.B. hier .",
        "it &apos; s 5-year-old",
    ]
    assert evaluation.tokenize_moses(lines[1:], "en") == ["it &apos;s 5-year-old"]


def test_word_errors_by_hand() -> None:
    """Right by its second reference; one edit to the second of length 3 (two to the first); nothing said for two."""
    result = evaluation.pronunciation_errors(
        ["T AH M EY T OW", "R IY D", ""], [["T AH M AA T OW", "T AH M EY T OW"], ["R EH T", "R EH D"], ["AH B"]]
    )
    assert (result.words, result.wrong_words, result.edits, result.symbols) == (3, 2, 0 + 1 + 2, 6 + 3 + 2)
    assert result.wer == result.value == pytest.approx(200 / 3)
    assert result.per == pytest.approx(300 / 11)
    assert "equals-any-reference" in result.signature and str(result).startswith(
        "WER = 66.67% (2 of 3 words), PER = 27.27%"
    )


def test_the_first_of_equally_close_references_gives_the_length() -> None:
    assert evaluation.pronunciation_errors(["A B"], [["A B C", "A"]]).symbols == 3
    assert evaluation.pronunciation_errors(["A B"], [["A", "A B C"]]).symbols == 1


words = st.lists(st.sampled_from("abc"), max_size=7)


@given(words, words)
@settings(max_examples=200, deadline=None)
def test_edit_distance_is_levenshteins(left: list[str], right: list[str]) -> None:
    assert evaluation.edit_distance(left, right) == Levenshtein.distance(left, right)


@given(st.lists(st.tuples(words.filter(bool), words), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_with_one_reference_each_phoneme_errors_are_jiwers(pairs: list[tuple[list[str], list[str]]]) -> None:
    references, hypotheses = ([" ".join(side) for side in sides] for sides in zip(*pairs, strict=True))
    per = evaluation.pronunciation_errors(hypotheses, [[reference] for reference in references]).per
    assert per == pytest.approx(100 * jiwer.wer(references, hypotheses))
    assert per == pytest.approx(evaluation.transcript_errors(hypotheses, references).value)


def test_transcript_errors_are_jiwers() -> None:
    score = evaluation.transcript_errors(HYPOTHESES, REFERENCES)
    assert score.value == 100 * jiwer.wer(REFERENCES, HYPOTHESES) and score.name == "WER"
    score = evaluation.transcript_errors(HYPOTHESES, REFERENCES, characters=True)
    assert score.value == 100 * jiwer.cer(REFERENCES, HYPOTHESES) and "tok:char" in score.signature


def test_likelihoods() -> None:
    assert evaluation.perplexity(10 * math.log(7), 10).value == pytest.approx(7)
    assert evaluation.perplexity(1e9, 10).value == math.inf
    assert evaluation.bits_per_byte(24 * math.log(2), 8).value == pytest.approx(3)
    assert evaluation.accuracy([1, 2, 3, 4], [1, 0, 3, 4]).value == 75
    assert str(evaluation.bits_per_byte(24 * math.log(2), 8)) == "bits_per_byte = 3.000 [per:utf-8-byte|bytes:8]"


def test_by_length_scores_each_bucket_apart() -> None:
    hypotheses, references = ["a", "b", "c", "d"], ["a", "x", "c", "x"]
    buckets = evaluation.score_by_length(
        evaluation.accuracy, hypotheses, references, [1, 9, 10, 95], edges=(10, 20, 30)
    )
    assert [(b.min_length, b.max_length, b.examples, b.score.value) for b in buckets] == [
        (0, 9, 2, 50.0), (10, 19, 1, 100.0), (30, None, 1, 0.0)
    ]  # fmt: skip
    assert str(buckets[2]).startswith("length 30 and more, 1 examples: accuracy = 0.00")
    lengths = [len(line.split()) for line in REFERENCES]
    whole = evaluation.score_by_length(evaluation.bleu, HYPOTHESES, REFERENCES, lengths, edges=())
    assert [bucket.score for bucket in whole] == [evaluation.bleu(HYPOTHESES, REFERENCES)]


def test_a_score_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        evaluation.accuracy([1], [1]).value = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: evaluation.bleu(["a"], ["a", "b"]), "1 hypotheses and 2 references"),
        (lambda: evaluation.multi_bleu([], [], "de"), "no hypotheses"),
        (lambda: evaluation.chrf("ab", "ab"), "single string"),
        (lambda: evaluation.pronunciation_errors(["a"], [[]]), "references of word 1"),
        (lambda: evaluation.pronunciation_errors(["a"], [" "]), "references of word 1"),
        (lambda: evaluation.transcript_errors(["a"], [" "]), "reference 1 is empty"),
        (lambda: evaluation.perplexity(1.0, 0), "tokens=0"),
        (lambda: evaluation.bits_per_byte(1.0, -1), "bytes=-1"),
        (lambda: evaluation.score_by_length(evaluation.accuracy, ["a"], ["a"], [1], edges=(5, 3)), r"edges=\(5, 3\)"),
    ],
)
def test_mistakes_are_named(call: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("sacrebleu", lambda: evaluation.bleu(["a"], ["a"])),
        ("sacremoses", lambda: evaluation.tokenize_moses(["a"], "de")),
        ("jiwer", lambda: evaluation.transcript_errors(["a"], ["a"])),
    ],
)
def test_a_missing_library_names_its_extra(name: str, call: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"needs {name}.*pip install 'qkv\[evaluate\]'") as caught:
        call()  # type: ignore[operator]
    assert isinstance(caught.value, QkvError)
