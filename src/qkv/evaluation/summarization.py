"""Scores of summaries by ROUGE (Lin 2004), and the summaries that any model should beat: sentences of the source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from qkv.errors import DataError
from qkv.evaluation.score import Score, check_paired, import_library

_METRICS = ("rouge1", "rouge2", "rougeL")
_SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["')\]]))\s+(?=["'(\[]?[^\W_a-z])""")


def rouge(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of summaries, 0 to 100: the mean of their F1.

    Of several references of one summary the one with the best ROUGE-1 counts, in all three (as SciTLDR is scored:
    Cachola et al. 2020, section 5). By rouge-score: words of letters and digits, lower-cased, stemmed.
    Raises DataError for unequal counts and a summary without a reference, MissingExtraError without rouge-score.
    """
    check_paired(hypotheses, references)
    scorer = _rouge_scorer()
    sums = dict.fromkeys(_METRICS, 0.0)
    for number, (hypothesis, accepted) in enumerate(zip(hypotheses, references, strict=True)):
        if isinstance(accepted, str) or not accepted:
            raise DataError(f"the references of summary {number} are {accepted!r}; expected a list of at least one")
        found = max((scorer.score(one, hypothesis) for one in accepted), key=lambda own: own["rouge1"].fmeasure)
        for kind in _METRICS:
            sums[kind] += found[kind].fmeasure
    signature = "f1|mean:summaries|refs:best-rouge1|tok:letters-digits|case:lc|stem:porter|rouge-score:"
    signature += version("rouge-score")
    return {kind: Score(f"ROUGE-{kind[-1]}", 100 * sums[kind] / len(hypotheses), signature) for kind in _METRICS}


def split_sentences(text: str) -> list[str]:
    """The sentences of a text: they end with . ! or ? before white space and what is no small letter."""
    return [one for one in (part.strip() for part in _SENTENCE_END.split(text)) if one]


def lead_baseline(sources: Sequence[str]) -> list[str]:
    """The first sentence of each source."""
    return [next(iter(split_sentences(source)), "") for source in sources]


def oracle_baseline(sources: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """Of each source the one sentence with the best ROUGE-1 by its references: the most that a single one can reach.

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
    return import_library("rouge_score.rouge_scorer").RougeScorer(list(_METRICS), use_stemmer=True)
