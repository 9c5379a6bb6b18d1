"""The tasks: for each, what happens to a line before it is read, and how answers are scored.

translate   a sentence to a sentence; BLEU and chrF against one reference each
pronounce   a spelling to phonemes; a word is right if it equals any of its listed pronunciations
summarize   a text to what sums it up; ROUGE and chrF against all summaries that there are of it

and of published models:

continue    a text to what comes after it; how many continuations equal the reference
transcribe  a sound file to what is said; word error rate, lower-cased, without punctuation, and texts wholly right
fill        a text with masked words to the text without; classify, a text or an image file to its class; label, one
            label for each token or frame: how many equal the reference
match       an image file and some texts to the text that goes with it: how many equal the reference
embed       a text or an image file to a vector, which is not scored
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from qkv.data.cleaning import references
from qkv.data.reading import Pair
from qkv.errors import DataError
from qkv.evaluation import Score, bleu, chrf, rouge, transcript_errors, word_errors

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
    prepare: Callable[[str], str]
    grouped: bool
    score: Scorer
    metric: str
    better: Literal["lower", "higher"]
    length: Callable[[str], int]
    edges: tuple[int, ...]
    goes_on: bool = False

    def questions(self, pairs: Iterable[Pair]) -> list[tuple[str, tuple[str, ...]]]:
        """Sources with all references of each, in order of first appearance."""
        if not self.grouped:
            return [(source, (target,)) for source, target in pairs]
        return [(source, tuple(targets)) for source, targets in references(pairs).items()]


def _as_it_is(line: str) -> str:
    return line.strip()


def _untouched(line: str) -> str:
    return line


def _spelling(line: str) -> str:
    return line.strip().lower()


def _words(line: str) -> int:
    return len(line.split())


def _texts(line: str) -> int:
    return line.count("\t")


def _translation(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    single = [own[0] for own in references]
    return {"bleu": bleu(hypotheses, single), "chrf": chrf(hypotheses, single)}


def _pronunciation(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """With stress where the references mark it, and without."""
    plain = word_errors(
        [unstressed(one) for one in hypotheses], [[unstressed(one) for one in own] for own in references]
    )
    plain = replace(plain, signature=f"{plain.signature}|stress:removed")
    if not any(symbol[-1:].isdigit() for own in references for one in own for symbol in one.split()):
        return {"wer": plain, "per": plain.phonemes}
    whole = word_errors(hypotheses, references)
    whole = replace(whole, signature=f"{whole.signature}|stress:kept")
    return {
        "wer": whole,
        "per": whole.phonemes,
        "wer without stress": plain,
        "per without stress": plain.phonemes,
    }


def _summaries(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    return {**rouge(hypotheses, references), "chrf": chrf(hypotheses, references)}


def _exact(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    right = sum(one.strip() in {own.strip() for own in some} for one, some in zip(hypotheses, references, strict=True))
    signature = "percent|right:equals-any-reference|case:mixed"
    return {"accuracy": Score("accuracy", 100 * right / len(hypotheses), signature)}


def _transcript(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    score = transcript_errors([spoken(one) for one in hypotheses], [spoken(own[0]) for own in references])
    signature = score.signature.replace("case:mixed", "case:lc|punctuation:removed")
    right = _exact([spoken(one) for one in hypotheses], [[spoken(own[0])] for own in references])["accuracy"]
    return {"wer": replace(score, signature=signature), "right": replace(right, name="right")}


def spoken(line: str) -> str:
    """A transcript as its words alone, so that spelling conventions do not count."""
    kept = "".join(letter if letter.isalnum() or letter == "'" else " " for letter in line.lower())
    return " ".join(kept.split())


def _unscored(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> NoReturn:
    raise DataError("this model answers with vectors, which have no right or wrong; compare them with one another")


def unstressed(phonemes: str) -> str:
    """The same phonemes without their stress digits: "K ER1 N AH0 L" -> "K ER N AH L"."""
    return " ".join(symbol.rstrip("012") for symbol in phonemes.split())


TASKS = {
    task.name: task
    for task in (
        Task("translate", _as_it_is, False, _translation, "bleu", "higher", _words, (6, 11, 16, 21, 26, 31)),
        Task("pronounce", _spelling, True, _pronunciation, "wer", "lower", len, (4, 6, 8, 10, 12)),
        Task("summarize", _as_it_is, True, _summaries, "rougeL", "higher", _words, (26, 51, 101, 201)),
        Task("continue", _untouched, False, _exact, "accuracy", "higher", _words, (11, 101, 1001), goes_on=True),
        Task("transcribe", _as_it_is, False, _transcript, "wer", "lower", len, ()),
        Task("fill", _untouched, False, _exact, "accuracy", "higher", _words, (11, 101)),
        Task("classify", _untouched, False, _exact, "accuracy", "higher", _words, (11, 101)),
        Task("label", _untouched, False, _exact, "accuracy", "higher", _words, (11, 101)),
        Task("match", _untouched, False, _exact, "accuracy", "higher", _texts, (3, 6, 11, 101)),
        Task("act", _as_it_is, False, _unscored, "return", "higher", len, ()),
        Task("embed", _untouched, False, _unscored, "accuracy", "higher", _words, (11, 101)),
    )
}
