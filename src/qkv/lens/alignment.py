"""Word alignments from the weights of cross-attention.

    alignments = [align(trace, heads, ...) for trace in traces]
    format_pharaoh(alignments[0].links)                           "0-0 1-2 2-1"
    alignment_error_rate([one.links for one in alignments], gold)      0.21

A few heads align words, most do not. `find_best_heads` finds those that do, by gold alignments if there are some and
otherwise by the shape of their weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qkv.errors import DataError, QkvError
from qkv.lens.trace import AttentionTrace, Trace

Link = tuple[int, int]
"""A source word and a target word, counted from 0."""

HeadIndex = tuple[str, int]
"""The place of an attention and the index of a head in it."""

QueryChoice = Literal["predicting", "reading"]
"""Whose weights belong to a target token: those of the query that predicted it, or those of the query that reads it
as"""


@dataclass(frozen=True)
class GoldAlignment:
    """A manual alignment: `sure` links, and `possible` ones, a superset of them (Och & Ney 2003, section 5)."""

    sure: frozenset[Link]
    possible: frozenset[Link]


@dataclass(frozen=True)
class Alignment:
    """The word alignment of one sentence pair.

    weights (target words, source words): the weight of each source word for each target word, averaged over the tokens
    of the target word and summed over those of the source word. links: the source word with the largest weight for
    every
    target word.
    """

    weights: Tensor
    links: frozenset[Link]

    @property
    def received(self) -> Tensor:
        """The weight that each source word receives from all target words, (source words,); 1 corresponds to one
        word."""
        return self.weights.sum(dim=0)

    def find_omitted(self, threshold: float = 0.3) -> list[int]:
        """Return source words without links that received less than `threshold`: they may be untranslated."""
        linked = {source for source, _ in self.links}
        return [word for word, given in enumerate(self.received.tolist()) if word not in linked and given < threshold]

    def find_repeated(self) -> list[int]:
        """Return source words that are linked to two separate spans of target words: they may be translated twice."""
        stretches: dict[int, list[int]] = {}
        for source, target in sorted(self.links, key=lambda link: link[1]):
            stretches.setdefault(source, []).append(target)
        return sorted(
            source
            for source, targets in stretches.items()
            if any(after - before > 1 for before, after in zip(targets, targets[1:], strict=False))
        )


def format_pharaoh(links: Iterable[Link]) -> str:
    """Format links in the Pharaoh format: "0-0 1-2", source word and target word, counted from 0, in order."""
    return " ".join(f"{source}-{target}" for source, target in sorted(links))


def parse_pharaoh(line: str) -> GoldAlignment:
    """Parse a line of gold links: "3-4" is a sure one, "3p4" or "3?4" a possible one. Raises DataError."""
    sure, possible = set(), set()
    for part in line.split():
        match = re.fullmatch(r"(\d+)([-p?])(\d+)", part)
        if match is None:
            raise DataError(
                f"{part!r} in the alignment {line[:40]!r} is not a link; expected 3-4 (sure) or 3p4 (possible): source "
                "word, target word, counted from 0"
            )
        link = int(match[1]), int(match[3])
        possible.add(link)
        if match[2] == "-":
            sure.add(link)
    return GoldAlignment(frozenset(sure), frozenset(possible))


def alignment_error_rate(alignments: Sequence[Iterable[Link]], gold: Sequence[GoldAlignment]) -> float:
    """Compute the alignment error rate of a corpus, 1 - (|A and S| + |A and P|) / (|A| + |S|) (Och & Ney 2003, eq. 23).

    Raises DataError if the numbers of sentences differ or there is nothing to compare.
    """
    if len(alignments) != len(gold):
        raise DataError(f"{len(alignments)} alignments were given for {len(gold)} gold ones; expected one each")
    right = total = 0
    for own, true in zip(alignments, gold, strict=True):
        links = set(own)
        right += len(links & true.sure) + len(links & true.possible)
        total += len(links) + len(true.sure)
    if total == 0:
        raise DataError("no links were given, neither found nor gold; expected at least one")
    return 1 - right / total


def compute_word_ids(tokens: Sequence[str], word_prefix: str = "\u2581", continuation_prefix: str = "##") -> list[int]:
    """Number the word of each token by the markers of subwords: a prefix of words, or a prefix of continuations.

    If no token has a marker, each token is a word.
    """
    if any(token.startswith(word_prefix) for token in tokens):
        starts = [token.startswith(word_prefix) for token in tokens]
    else:
        starts = [not token.startswith(continuation_prefix) for token in tokens]
    number, found = -1, []
    for start in starts:
        number += start or number < 0
        found.append(number)
    return found


def align(
    trace: Trace,
    heads: Sequence[HeadIndex],
    *,
    source_word_ids: Sequence[int | None] | None = None,
    target_word_ids: Sequence[int | None] | None = None,
    query: QueryChoice = "predicting",
    row: int = 0,
) -> Alignment:
    """Align the words of a sentence pair by the mean weights of some cross-attention heads.

    The trace teacher-forces the target with its begin token, as `TextGenerator.look` and `lens.look` return it.
    source_word_ids: the word of each source token, None for tokens outside words, such as an end token; by default each
    token is a word. target_word_ids: the same for the tokens after the begin token, including the end token. Words are
    numbered from 0. Raises QkvError if these numbers do not fit the trace.
    """
    if not heads:
        raise QkvError("no heads were given to align by; use those of find_best_heads, or name some: [(place, head)]")
    weights = torch.stack([_get_token_weights(trace[place], head, query, row) for place, head in heads]).mean(dim=0)
    sources = _check_word_ids(source_word_ids, weights.shape[1], "source_word_ids")
    targets = _check_word_ids(target_word_ids, weights.shape[0], "target_word_ids")
    by_word = _build_grouping_matrix(targets, mean=True) @ weights @ _build_grouping_matrix(sources, mean=False).T
    best = by_word.argmax(dim=1).tolist() if by_word.shape[1] else []
    links = frozenset((source, target) for target, source in enumerate(best) if float(by_word[target].sum()) > 0)
    return Alignment(by_word, links)


def find_best_heads(
    traces: Sequence[Trace],
    gold: Sequence[GoldAlignment] | None = None,
    *,
    n_heads: int = 1,
    source_word_ids: Sequence[Sequence[int | None] | None] | None = None,
    target_word_ids: Sequence[Sequence[int | None] | None] | None = None,
    query: QueryChoice = "predicting",
) -> list[tuple[HeadIndex, float]]:
    """Return the cross-attention heads that align some sentence pairs best, best first, with their scores.

    With gold alignments the score is 1 - alignment error rate. Without them it is the head's confidence (the mean of
    each
    target word's largest weight) times its coverage of the source (the share of linked words, out of as many as
    possible):
    a head that always attends to one token is confident and covers nothing. Raises as `align` and
    `alignment_error_rate`
    do.
    """
    if not traces:
        raise DataError("no traces were given to choose heads by; expected the traces of some sentences")
    own = [attention for attention in traces[0] if attention.place.endswith("cross_attention")]
    if not own:
        raise QkvError("this model has no cross-attention; an alignment needs an encoder and a decoder")
    scored: list[tuple[HeadIndex, float]] = []
    for attention in own:
        for head in range(attention.heads):
            found = [
                align(
                    trace,
                    [(attention.place, head)],
                    source_word_ids=None if source_word_ids is None else source_word_ids[number],
                    target_word_ids=None if target_word_ids is None else target_word_ids[number],
                    query=query,
                )
                for number, trace in enumerate(traces)
            ]
            if gold is None:
                value = sum(map(_score_without_gold, found)) / len(found)
            else:
                value = 1 - alignment_error_rate([one.links for one in found], gold)
            scored.append(((attention.place, head), value))
    return sorted(scored, key=lambda one: -one[1])[:n_heads]


def _score_without_gold(alignment: Alignment) -> float:
    targets, sources = alignment.weights.shape
    if not targets or not sources:
        return 0.0
    covered = len({source for source, _ in alignment.links}) / min(targets, sources)
    return float(alignment.weights.amax(dim=1).mean()) * covered


def _get_token_weights(attention: AttentionTrace, head: int, query: QueryChoice, row: int) -> Tensor:
    """Return the weights (target tokens, source tokens) of the tokens after the begin token."""
    if query not in ("predicting", "reading"):
        raise QkvError(f"query={query!r} was given; expected 'predicting' or 'reading'")
    weights = attention.compute_weights(head)[row].detach().float().cpu()
    return weights if query == "predicting" else weights[1:]


def _check_word_ids(word_ids: Sequence[int | None] | None, tokens: int, name: str) -> list[int | None]:
    if word_ids is None:
        return list(range(tokens))
    # the end token is never read, so "reading" has one row less than there are target tokens
    if len(word_ids) < tokens or any(word is not None and word < 0 for word in word_ids):
        raise QkvError(
            f"{name} has {len(word_ids)} numbers for {tokens} tokens; expected a word's number, or None, each"
        )
    return list(word_ids[:tokens])


def _build_grouping_matrix(word_ids: Sequence[int | None], mean: bool) -> Tensor:
    """Build a matrix (words, tokens) that is 1 where a token belongs to a word, or 1 / its number of tokens for a
    mean."""
    known = [word for word in word_ids if word is not None]
    matrix = torch.zeros(max(known, default=-1) + 1, len(word_ids))
    for token, word in enumerate(word_ids):
        if word is not None:
            matrix[word, token] = 1.0
    return matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1) if mean else matrix
