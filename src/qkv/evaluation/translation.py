"""Translation scores by sacreBLEU (Post 2018), and the older tokenised BLEU that published numbers were given in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from qkv.evaluation.score import Score, check_paired, import_library


def bleu(hypotheses: Sequence[str], references: Sequence[str], lowercase: bool = False, tokenize: str = "13a") -> Score:
    """BLEU of detokenised lines, 0 to 100 (Papineni et al. 2002), one reference each.

    Raises DataError for unequal counts, MissingExtraError without sacrebleu.
    """
    metric = import_library("sacrebleu").metrics.BLEU(lowercase=lowercase, tokenize=tokenize)
    return _score_corpus("BLEU", metric, hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]], word_order: int = 0) -> Score:
    """chrF of detokenised lines, 0 to 100 (Popović 2015), one reference each or several; word_order=2 is chrF++.

    Raises as `bleu`.
    """
    metric = import_library("sacrebleu").metrics.CHRF(word_order=word_order)
    return _score_corpus("chrF" + "+" * word_order, metric, hypotheses, references)


def ter(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """Translation edit rate, edits for each 100 words of reference; less is better (Snover et al. 2006).

    Raises as `bleu`.
    """
    return _score_corpus("TER", import_library("sacrebleu").metrics.TER(), hypotheses, references)


def multi_bleu(hypotheses: Sequence[str], references: Sequence[str], language: str, lowercase: bool = True) -> Score:
    """BLEU on Moses tokens, as Moses' multi-bleu.perl and fairseq's scorer count it; give plain, detokenised lines.

    Both sides are lower-cased and go through `moses`; then n-grams up to 4 of the tokens as they are, one brevity
    penalty for the corpus, no smoothing (a corpus without a matching 4-gram scores 0, as in the script). For
    lower-cased Multi30k that is the preprocessing of its published files (lc.norm.tok) and of Wu et al. 2021 (there is
    no splitting at hyphens): the German test_2016_flickr has 12,103 tokens so, the "reflen" that paper's code reports.
    It is usually a point or two above `bleu`; never compare the two. Raises as `bleu`.
    """
    check_paired(hypotheses, references)
    if lowercase:
        hypotheses, references = [line.lower() for line in hypotheses], [line.lower() for line in references]
    metric = import_library("sacrebleu").metrics.BLEU(tokenize="none", smooth_method="none", force=True)
    score = _score_corpus(
        "multi-BLEU", metric, tokenize_moses(hypotheses, language), tokenize_moses(references, language)
    )
    case = "lc" if lowercase else "mixed"
    version = import_library("sacremoses").__version__
    return Score(score.name, score.value, f"moses:{language}+norm|lower:{case}|sacremoses:{version}|{score.signature}")


def tokenize_moses(lines: Sequence[str], language: str) -> list[str]:
    """Normalise punctuation and tokenise as the Moses scripts do, tokens joined by single spaces.

    By sacremoses, a port of normalize-punctuation.perl and tokenizer.perl, without aggressive splitting at hyphens.
    Raises MissingExtraError without sacremoses.
    """
    sacremoses = import_library("sacremoses")
    normalizer, tokenizer = sacremoses.MosesPunctNormalizer(language), sacremoses.MosesTokenizer(language)
    return [" ".join(tokenizer.tokenize(normalizer.normalize(line))) for line in lines]


def _score_corpus(
    name: str, metric: Any, hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> Score:
    check_paired(hypotheses, references)
    every = [[own] if isinstance(own, str) else own for own in references]
    value = metric.corpus_score(list(hypotheses), list(zip_longest(*every))).score  # None where one has fewer
    return Score(name, float(value), str(metric.get_signature()))
