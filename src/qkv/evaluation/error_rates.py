"""Error rates: of pronounced words, each with all its accepted pronunciations, and of transcripts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from rapidfuzz.distance import Levenshtein

from qkv.errors import DataError
from qkv.evaluation.score import Score, check_paired, import_library


@dataclass(frozen=True)
class PronunciationErrors(Score):
    """How many words are wrong, and how far from right; `value` is the word error rate.

    wer: wrong words, percent of words. per: edits, percent of the symbols of the closest references.
    """

    per: float
    words: int
    wrong_words: int
    edits: int
    symbols: int

    @property
    def wer(self) -> float:
        """The word error rate, percent."""
        return self.value

    @property
    def phoneme_error_rate(self) -> Score:
        """The phoneme error rate, as a score of its own."""
        return Score("PER", self.per, self.signature)

    def __str__(self) -> str:
        return (
            f"WER = {self.wer:.2f}% ({self.wrong_words} of {self.words} words), "
            f"PER = {self.per:.2f}% ({self.edits} of {self.symbols} symbols) [{self.signature}]"
        )


def pronunciation_errors(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> PronunciationErrors:
    """Score one pronunciation, its symbols separated by spaces, for each word against every one accepted for it.

    A word is right if it equals *any* of its references, whole. The phoneme error rate counts the insertions, deletions
    and replacements to the closest reference (the first of equally close ones), and divides by that one's length.
    Give each word once, with all its references; what is compared (stress marks or none) is up to the caller.
    Raises DataError for unequal counts and for a word without a reference.
    """
    check_paired(hypotheses, references)
    wrong = edits = symbols = 0
    for number, (hypothesis, accepted) in enumerate(zip(hypotheses, references, strict=True), 1):
        if isinstance(accepted, str) or not any(reference.split() for reference in accepted):
            raise DataError(
                f"the references of word {number} are {accepted!r}; a list with at least one pronunciation was "
                "expected: give all accepted ones, or leave the word out"
            )
        predicted = hypothesis.split()
        distance, length = min(
            ((edit_distance(predicted, known), len(known)) for known in map(str.split, accepted) if known),
            key=lambda pair: pair[0],
        )
        wrong, edits, symbols = wrong + (distance > 0), edits + distance, symbols + length
    return PronunciationErrors(
        name="WER",
        value=100 * wrong / len(hypotheses),
        signature="percent|right:equals-any-reference|per:closest-reference|symbols:whitespace|case:mixed",
        per=100 * edits / symbols,
        words=len(hypotheses),
        wrong_words=wrong,
        edits=edits,
        symbols=symbols,
    )


def edit_distance(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Return the fewest insertions, deletions and replacements between two sequences (Levenshtein 1966)."""
    return Levenshtein.distance(left, right)


def transcript_errors(hypotheses: Sequence[str], references: Sequence[str], characters: bool = False) -> Score:
    """Word (or character) error rate of running text, percent of all reference words: edits over the whole corpus.

    By jiwer; lines are compared as they are, words separated by white space. Raises DataError for unequal counts and
    for an empty reference, MissingExtraError without jiwer.
    """
    check_paired(hypotheses, references)
    for number, reference in enumerate(references, 1):
        if not reference.strip():
            raise DataError(f"reference {number} is empty; at least one word was expected: leave the line out")
    jiwer = import_library("jiwer")
    count = jiwer.process_characters if characters else jiwer.process_words
    result = count(list(references), list(hypotheses))
    name, rate = ("CER", result.cer) if characters else ("WER", result.wer)
    return Score(
        name, 100 * float(rate), f"percent|case:mixed|tok:{'char' if characters else 'none'}|jiwer:{version('jiwer')}"
    )
