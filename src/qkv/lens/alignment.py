"""Which word translates which, from the weights of cross-attention.

    alignments = [align(trace, heads, ...) for trace in traces]
    pharaoh(alignments[0].links)                             "0-0 1-2 2-1"
    error_rate([one.links for one in alignments], gold)      0.21

Heads differ: a few align, most do not. `best_heads` finds those that do, by gold alignments where there are some and
else by what they look like.
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

Head = tuple[str, int]
"""A place and a head's number there."""

At = Literal["asked", "written"]
"""Whose weights belong to a target token: those of the query it was predicted from, or those of the query that reads it
as the next input. The latter often align better (Chen et al. 2020, section 3)."""


@dataclass(frozen=True)
class Gold:
    """What people linked: `sure` links, and `possible` ones, which hold the sure ones (Och & Ney 2003, section 5)."""

    sure: frozenset[Link]
    possible: frozenset[Link]


@dataclass(frozen=True)
class Alignment:
    """The words of one sentence pair, linked.

    weights (target words, source words): what each target word takes from each source word, its tokens' mean over
    the sums of theirs. links: every target word with the source word it takes most from.
    """

    weights: Tensor
    links: frozenset[Link]

    @property
    def received(self) -> Tensor:
        """What each source word gives to all target words together, (source words,); 1 is a word for a word."""
        return self.weights.sum(dim=0)

    def omitted(self, below: float = 0.3) -> list[int]:
        """Source words that nothing is linked to and that gave less than `below`: perhaps left untranslated."""
        linked = {source for source, _ in self.links}
        return [word for word, given in enumerate(self.received.tolist()) if word not in linked and given < below]

    def repeated(self) -> list[int]:
        """Source words that two stretches of target words, with others between, are linked to: perhaps said twice."""
        stretches: dict[int, list[int]] = {}
        for source, target in sorted(self.links, key=lambda link: link[1]):
            stretches.setdefault(source, []).append(target)
        return sorted(
            source
            for source, targets in stretches.items()
            if any(after - before > 1 for before, after in zip(targets, targets[1:], strict=False))
        )


def pharaoh(links: Iterable[Link]) -> str:
    """The links in the Pharaoh format: "0-0 1-2", source word and target word, counted from 0, in order."""
    return " ".join(f"{source}-{target}" for source, target in sorted(links))


def parse_pharaoh(line: str) -> Gold:
    """Read a line of gold links: "3-4" is a sure one, "3p4" or "3?4" a possible one. Raises DataError."""
    sure, possible = set(), set()
    for part in line.split():
        match = re.fullmatch(r"(\d+)([-p?])(\d+)", part)
        if match is None:
            raise DataError(
                f"{part!r} in the alignment {line[:40]!r} is no link; expected 3-4 (sure) or 3p4 (possible): source "
                "word, target word, counted from 0"
            )
        link = int(match[1]), int(match[3])
        possible.add(link)
        if match[2] == "-":
            sure.add(link)
    return Gold(frozenset(sure), frozenset(possible))


def error_rate(found: Sequence[Iterable[Link]], gold: Sequence[Gold]) -> float:
    """Alignment error rate over a corpus, 1 - (|A and S| + |A and P|) / (|A| + |S|) (Och & Ney 2003, eq. 23).

    Raises DataError where the numbers of sentences differ or there is nothing to compare.
    """
    if len(found) != len(gold):
        raise DataError(f"{len(found)} alignments were given for {len(gold)} gold ones; expected one each")
    right = total = 0
    for own, true in zip(found, gold, strict=True):
        links = set(own)
        right += len(links & true.sure) + len(links & true.possible)
        total += len(links) + len(true.sure)
    if total == 0:
        raise DataError("no links were given, neither found nor gold; expected at least one")
    return 1 - right / total


def words_of(tokens: Sequence[str], begins: str = "\u2581", inside: str = "##") -> list[int]:
    """Number the word of each token, from how subwords are marked: by what begins a word, or by what goes on in it.

    Where no token is marked, each is a word.
    """
    if any(token.startswith(begins) for token in tokens):
        starts = [token.startswith(begins) for token in tokens]
    else:
        starts = [not token.startswith(inside) for token in tokens]
    number, found = -1, []
    for start in starts:
        number += start or number < 0
        found.append(number)
    return found


def align(
    trace: Trace,
    heads: Sequence[Head],
    *,
    source_words: Sequence[int | None] | None = None,
    target_words: Sequence[int | None] | None = None,
    at: At = "asked",
    row: int = 0,
) -> Alignment:
    """Link the words of a sentence pair by the mean weights of some heads of cross-attention.

    The trace teacher-forces the target with its begin token, as `Runner.look` and `lens.look` give it. source_words:
    the word of each source token, None for what is no word, such as an end token; by default each token is one.
    target_words: likewise of the tokens after the begin token, the end included. Words are numbered from 0.
    Raises QkvError where the numbers do not fit the trace.
    """
    if not heads:
        raise QkvError("no heads were given to align by; take those of best_heads, or name some: [(place, head)]")
    weights = torch.stack([_by_token(trace[place], head, at, row) for place, head in heads]).mean(dim=0)
    sources = _numbered(source_words, weights.shape[1], "source_words")
    targets = _numbered(target_words, weights.shape[0], "target_words")
    by_word = _grouping(targets, mean=True) @ weights @ _grouping(sources, mean=False).T
    best = by_word.argmax(dim=1).tolist() if by_word.shape[1] else []
    links = frozenset((source, target) for target, source in enumerate(best) if float(by_word[target].sum()) > 0)
    return Alignment(by_word, links)


def best_heads(
    traces: Sequence[Trace],
    gold: Sequence[Gold] | None = None,
    *,
    count: int = 1,
    source_words: Sequence[Sequence[int | None] | None] | None = None,
    target_words: Sequence[Sequence[int | None] | None] | None = None,
    at: At = "asked",
) -> list[tuple[Head, float]]:
    """The heads of cross-attention that align best over some sentence pairs, best first, with their scores.

    With gold alignments the score is 1 - alignment error rate. Without, it is how sure the head is (the mean of each
    target word's largest weight) times how much of the source it covers (the share of words that are linked, of as
    many as can be): a head that always looks at one token is sure and covers nothing. Raises as `align` and
    `error_rate` do.
    """
    if not traces:
        raise DataError("no traces were given to choose heads by; expected some sentences that were looked at")
    own = [attention for attention in traces[0] if attention.place.endswith("cross_attention")]
    if not own:
        raise QkvError("this model has no cross-attention; an alignment needs an encoder and a decoder")
    scored: list[tuple[Head, float]] = []
    for attention in own:
        for head in range(attention.heads):
            found = [
                align(
                    trace,
                    [(attention.place, head)],
                    source_words=None if source_words is None else source_words[number],
                    target_words=None if target_words is None else target_words[number],
                    at=at,
                )
                for number, trace in enumerate(traces)
            ]
            if gold is None:
                value = sum(map(_looks_aligned, found)) / len(found)
            else:
                value = 1 - error_rate([one.links for one in found], gold)
            scored.append(((attention.place, head), value))
    return sorted(scored, key=lambda one: -one[1])[:count]


def _looks_aligned(found: Alignment) -> float:
    targets, sources = found.weights.shape
    if not targets or not sources:
        return 0.0
    covered = len({source for source, _ in found.links}) / min(targets, sources)
    return float(found.weights.amax(dim=1).mean()) * covered


def _by_token(attention: AttentionTrace, head: int, at: At, row: int) -> Tensor:
    """Weights (target tokens, source tokens) of the tokens after the begin token."""
    if at not in ("asked", "written"):
        raise QkvError(f"at={at!r} was given; expected 'asked' or 'written'")
    weights = attention.weights(head)[row].detach().float().cpu()
    return weights if at == "asked" else weights[1:]


def _numbered(words: Sequence[int | None] | None, tokens: int, name: str) -> list[int | None]:
    if words is None:
        return list(range(tokens))
    # the end token is never read, so that "written" has a row less than the tokens that were asked for
    if len(words) < tokens or any(word is not None and word < 0 for word in words):
        raise QkvError(f"{name} has {len(words)} numbers for {tokens} tokens; expected a word's number, or None, each")
    return list(words[:tokens])


def _grouping(words: Sequence[int | None], mean: bool) -> Tensor:
    """(words, tokens), 1 where a token belongs to a word, or its share of it."""
    known = [word for word in words if word is not None]
    matrix = torch.zeros(max(known, default=-1) + 1, len(words))
    for token, word in enumerate(words):
        if word is not None:
            matrix[word, token] = 1.0
    return matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1) if mean else matrix
