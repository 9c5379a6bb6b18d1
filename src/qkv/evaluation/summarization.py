"""Scores of summaries by ROUGE (Lin 2004), and the summaries that any model should beat: sentences of the source."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from qkv.errors import DataError
from qkv.evaluation.score import Score, check_paired, import_library
from qkv.evaluation.words import split_sentences, split_words

_METRICS = ("rouge1", "rouge2", "rougeL")


def rouge(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L of summaries, 0 to 100: the mean of their F1.

    Of several references of one summary the one with the best ROUGE-1 counts, in all three (as SciTLDR is scored:
    Cachola et al. 2020, section 5). By rouge-score, with the words of `split_words`; those of ASCII letters
    are stemmed. On ASCII text this equals the tokenizer of rouge-score.
    Raises DataError for unequal counts and a summary without a reference, MissingExtraError without rouge-score.
    """
    check_paired(hypotheses, references)
    scorer = _rouge_scorer()
    sums = dict.fromkeys(_METRICS, 0.0)
    for number, (hypothesis, accepted) in enumerate(zip(hypotheses, references, strict=True), 1):
        if isinstance(accepted, str) or not accepted:
            raise DataError(f"the references of summary {number} are {accepted!r}; expected a list of at least one")
        found = max((scorer.score(one, hypothesis) for one in accepted), key=lambda own: own["rouge1"].fmeasure)
        for kind in _METRICS:
            sums[kind] += found[kind].fmeasure
    signature = "f1|mean:summaries|refs:best-rouge1|tok:unicode-words|case:lc|stem:porter-ascii|rouge-score:"
    signature += version("rouge-score")
    return {kind: Score(f"ROUGE-{kind[-1]}", 100 * sums[kind] / len(hypotheses), signature) for kind in _METRICS}


def lead_baseline(sources: Sequence[str]) -> list[str]:
    """Return the first sentence of each source."""
    return [next(iter(split_sentences(source)), "") for source in sources]


def oracle_baseline(sources: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """Return the sentence of each source with the best ROUGE-1: the most that a single sentence can reach.

    Raises MissingExtraError without rouge-score.
    """
    check_paired(sources, references)
    scorer = _rouge_scorer()

    def best(source: str, accepted: Sequence[str]) -> str:
        def value(sentence: str) -> float:
            return max(float(scorer.score(one, sentence)["rouge1"].fmeasure) for one in accepted)

        return max(split_sentences(source), key=value, default="")

    return [best(source, accepted) for source, accepted in zip(sources, references, strict=True)]


def _rouge_scorer() -> Any:
    scorer = import_library("rouge_score.rouge_scorer").RougeScorer
    return scorer(list(_METRICS), tokenizer=_WordTokenizer(import_library("rouge_score.tokenizers")))


class _WordTokenizer:
    """The tokenizer that rouge-score calls."""

    def __init__(self, library: Any) -> None:
        self._stem = library.DefaultTokenizer(use_stemmer=True).tokenize

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text, those of ASCII letters stemmed."""
        return [stem for word in split_words(text) for stem in (self._stem(word) if word.isascii() else [word])]
