"""Words of any script: nothing that distinguishes two words is lost, and ASCII text is counted as before."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.evaluation import normalize_transcript, rouge, split_sentences, split_words
from qkv.tasks.registry import TASKS

TEXTS = st.text(
    st.sampled_from("aZ9é ßİıا\u064e\u05b8שनमस्ते\u200c\u200dกำ中文カЖж.,'’!?-_\u0301\n") | st.characters(codec="utf-8"),
    max_size=30,
)

TRANSCRIPTS = [
    ("Don\u2019t stop, it's 3.5 km!", "don't stop it's 3 5 km"),
    ("well-known", "well known"),
    ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
    ("தமிழ் மொழி", "தமிழ் மொழி"),
    ("ภาษาไทย", "ภาษาไทย"),
    ("cafe\u0301 ol\u00e9", "café olé"),
    ("İstanbul", "istanbul"),
    ("مَدْرَسَة", "مَدْرَسَة"),
    ("שָׁלוֹם", unicodedata.normalize("NFC", "שָׁלוֹם")),
    ("می\u200cخواهم", "می\u200cخواهم"),
    ("a \u200c b", "a b"),
    ("Tiếng Việt", "tiếng việt"),
]


@pytest.mark.parametrize(("line", "expected"), TRANSCRIPTS)
def test_transcripts_keep_letters_marks_and_joiners(line: str, expected: str) -> None:
    assert normalize_transcript(line) == expected


@given(TEXTS)
def test_normalizing_twice_changes_nothing(text: str) -> None:
    once = normalize_transcript(text)
    assert normalize_transcript(once) == once


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_ascii_transcripts_are_letters_numbers_and_apostrophes(text: str) -> None:
    kept = "".join(letter if letter.isalnum() or letter == "'" else " " for letter in text.lower())
    assert normalize_transcript(text) == " ".join(kept.split())


def test_other_vowel_marks_are_other_words() -> None:
    score = TASKS["speech-recognition"].score
    assert score(["का की कु"], [["कि के को"]])["wer"].value == 100
    assert score(["नमस्ते दुनियां"], [["नमस्ते दुनिया"]])["wer"].value == 50
    assert score(["caf\u00e9 don't"], [["cafe\u0301 don\u2019t"]])["wer"].value == 0
    assert "unicode:nfc" in score(["a"], [["a"]])["wer"].signature


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_ascii_words_are_those_of_rouge_score(text: str) -> None:
    library = pytest.importorskip("rouge_score.tokenizers")
    assert split_words(text) == library.DefaultTokenizer(use_stemmer=False).tokenize(text)


@given(
    st.lists(st.sampled_from("running runs, The the cat's Cats 3.5 dogs! abilities".split()), min_size=1).map(" ".join)
)
def test_ascii_scores_are_those_of_rouge_score(text: str) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(
        ["rouge1", "rouge2", "rougeL"], use_stemmer=True
    )
    reference = "the running cats of 3 dogs"
    expected = scorer.score(reference, text)
    for name, score in rouge([text], [[reference]]).items():
        assert score.value == 100 * expected[name].fmeasure


@pytest.mark.parametrize(
    "text", ["北京今天下雨。", "नमस्ते दुनिया", "Сегодня идёт дождь", "วันนี้ฝนตก", "übung größer", "今日は雨です"]
)
def test_rouge_counts_every_script(text: str) -> None:
    assert rouge([text], [[text]])["rougeL"].value == 100
    assert rouge([text], [["other words"]])["rouge1"].value == 0
    assert 0 < rouge([text[: len(text) // 2 + 1]], [[text]])["rouge1"].value < 100


def test_words_of_scripts_without_spaces_are_letters_with_their_marks() -> None:
    assert split_words("北京 rain") == ["北", "京", "rain"]
    assert split_words("ที่นี่") == ["ที่", "นี่"]
    assert split_words("Größe naïve") == ["größe", "naïve"]


def test_sentences_end_at_the_marks_of_every_script() -> None:
    assert split_sentences("北京下雨。上海晴！「好。」走吧") == ["北京下雨。", "上海晴！", "「好。」", "走吧"]
    assert split_sentences("यह एक है। वह दो है।") == ["यह एक है।", "वह दो है।"]
    assert split_sentences("Это г. москва. Там дождь? Да.") == ["Это г. москва.", "Там дождь?", "Да."]
    assert split_sentences("هل هذا؟ نعم.") == ["هل هذا؟", "نعم."]
