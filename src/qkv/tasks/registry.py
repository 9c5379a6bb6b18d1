"""The tasks: for each, what happens to a line before it is read, and how answers are scored.

translation   a sentence to a sentence; BLEU and chrF against one reference each
pronunciation   a spelling to phonemes; a word is right if it equals any of its listed pronunciations
summarization   a text to what sums it up; ROUGE and chrF against all summaries that there are of it

and of published models:

text-generation    a text to what comes after it; how many continuations equal the reference
speech-recognition  a sound file to what is said; word error rate, lower-cased, without punctuation, and texts wholly
right fill-mask  a text with masked words to the text without; classification, a text or an image file to its class;
token-classification, one
            label for each token or frame: how many equal the reference
zero-shot-image-classification  an image file and some texts to the text that goes with it: how many equal the reference
feature-extraction  a text or an image file to a vector, which is not scored
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from qkv.data.cleaning import group_references
from qkv.data.text.pairs import Pair
from qkv.errors import DataError
from qkv.evaluation import Score, bleu, chrf, pronunciation_errors, rouge, transcript_errors

Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, Score]]


@dataclass(frozen=True)
class Task:
    """What tells one task from another.

    prepare: what happens to a source line before the tokenizer reads it.
    grouped: whether equal sources are one question with several right answers.
    score: from hypotheses and the references of each to numbers by name.
    metric, better: which of them judges a validation.
    length, edges: how long a source is, and where lengths part when scores are told by length.
    goes_on: whether the answer of a decoder alone goes on with the line, rather than answering it.
    """

    name: str
    preprocess: Callable[[str], str]
    multi_reference: bool
    score: Scorer
    metric: str
    mode: Literal["min", "max"]
    measure_length: Callable[[str], int]
    length_edges: tuple[int, ...]
    is_continuation: bool = False

    def group_references(self, pairs: Iterable[Pair]) -> list[tuple[str, tuple[str, ...]]]:
        """Sources with all references of each, in order of first appearance."""
        if not self.multi_reference:
            return [(source, (target,)) for source, target in pairs]
        return [(source, tuple(targets)) for source, targets in group_references(pairs).items()]


def _strip(line: str) -> str:
    return line.strip()


def _keep_unchanged(line: str) -> str:
    return line


def _normalize_spelling(line: str) -> str:
    return line.strip().lower()


def _count_words(line: str) -> int:
    return len(line.split())


def _count_candidates(line: str) -> int:
    return line.count("\t")


def _score_translations(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    single = [own[0] for own in references]
    return {"bleu": bleu(hypotheses, single), "chrf": chrf(hypotheses, single)}


def _score_pronunciations(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """With stress where the references mark it, and without."""
    plain = pronunciation_errors(
        [remove_stress(one) for one in hypotheses], [[remove_stress(one) for one in own] for own in references]
    )
    plain = replace(plain, signature=f"{plain.signature}|stress:removed")
    if not any(symbol[-1:].isdigit() for own in references for one in own for symbol in one.split()):
        return {"wer": plain, "per": plain.phoneme_error_rate}
    whole = pronunciation_errors(hypotheses, references)
    whole = replace(whole, signature=f"{whole.signature}|stress:kept")
    return {
        "wer": whole,
        "per": whole.phoneme_error_rate,
        "wer_without_stress": plain,
        "per_without_stress": plain.phoneme_error_rate,
    }


def _score_summaries(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    return {**rouge(hypotheses, references), "chrf": chrf(hypotheses, references)}


def _score_exact_match(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    right = sum(one.strip() in {own.strip() for own in some} for one, some in zip(hypotheses, references, strict=True))
    signature = "percent|right:equals-any-reference|case:mixed"
    return {"accuracy": Score("accuracy", 100 * right / len(hypotheses), signature)}


def _score_transcripts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    score = transcript_errors(
        [normalize_transcript(one) for one in hypotheses], [normalize_transcript(own[0]) for own in references]
    )
    signature = score.signature.replace("case:mixed", "case:lc|punctuation:removed")
    right = _score_exact_match(
        [normalize_transcript(one) for one in hypotheses], [[normalize_transcript(own[0])] for own in references]
    )["accuracy"]
    return {"wer": replace(score, signature=signature), "exact_match": replace(right, name="exact_match")}


def normalize_transcript(line: str) -> str:
    """A transcript as its words alone, so that spelling conventions do not count."""
    kept = "".join(letter if letter.isalnum() or letter == "'" else " " for letter in line.lower())
    return " ".join(kept.split())


def _refuse_scoring(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> NoReturn:
    raise DataError("this model answers with vectors, which have no right or wrong; compare them with one another")


def remove_stress(phonemes: str) -> str:
    """The same phonemes without their stress digits: "K ER1 N AH0 L" -> "K ER N AH L"."""
    return " ".join(symbol.rstrip("012") for symbol in phonemes.split())


TASKS = {
    task.name: task
    for task in (
        Task("translation", _strip, False, _score_translations, "bleu", "max", _count_words, (6, 11, 16, 21, 26, 31)),
        Task("pronunciation", _normalize_spelling, True, _score_pronunciations, "wer", "min", len, (4, 6, 8, 10, 12)),
        Task("summarization", _strip, True, _score_summaries, "rougeL", "max", _count_words, (26, 51, 101, 201)),
        Task(
            "text-generation",
            _keep_unchanged,
            False,
            _score_exact_match,
            "accuracy",
            "max",
            _count_words,
            (11, 101, 1001),
            is_continuation=True,
        ),
        Task("speech-recognition", _strip, False, _score_transcripts, "wer", "min", len, ()),
        Task("fill-mask", _keep_unchanged, False, _score_exact_match, "accuracy", "max", _count_words, (11, 101)),
        Task("classification", _keep_unchanged, False, _score_exact_match, "accuracy", "max", _count_words, (11, 101)),
        Task(
            "token-classification",
            _keep_unchanged,
            False,
            _score_exact_match,
            "accuracy",
            "max",
            _count_words,
            (11, 101),
        ),
        Task(
            "zero-shot-image-classification",
            _keep_unchanged,
            False,
            _score_exact_match,
            "accuracy",
            "max",
            _count_candidates,
            (3, 6, 11, 101),
        ),
        Task("decision-transformer", _strip, False, _refuse_scoring, "return", "max", len, ()),
        Task("feature-extraction", _keep_unchanged, False, _refuse_scoring, "accuracy", "max", _count_words, (11, 101)),
    )
}
