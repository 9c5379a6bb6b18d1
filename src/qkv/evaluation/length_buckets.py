"""The same score for short inputs and for long ones (Bahdanau et al. 2015, figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from qkv.errors import DataError
from qkv.evaluation.score import Score, check_paired

Reference = TypeVar("Reference")


@dataclass(frozen=True)
class LengthBucket:
    """The examples whose source is `shortest` to `longest` long (None: no limit), and their score."""

    min_length: int
    max_length: int | None
    examples: int
    score: Score

    def __str__(self) -> str:
        limits = f"{self.min_length} and more" if self.max_length is None else f"{self.min_length} to {self.max_length}"
        return f"length {limits}, {self.examples:,} examples: {self.score.name} = {self.score.value:.2f}"


def score_by_length(
    metric: Callable[[list[str], list[Any]], Score],
    hypotheses: Sequence[str],
    references: Sequence[Reference],
    lengths: Sequence[int],
    edges: Sequence[int] = (10, 20, 30, 40, 50, 60),
) -> tuple[LengthBucket, ...]:
    """Score the examples apart by the length of their source; each edge begins a bucket, and empty ones are left out.

    lengths: of the sources, e.g. len(line.split()). Raises DataError for unequal counts and for edges that do not rise.
    """
    check_paired(hypotheses, references)
    check_paired(hypotheses, lengths)
    if list(edges) != sorted(set(edges)) or min(edges, default=1) < 1:
        raise DataError(f"edges={tuple(edges)} were given; rising whole numbers from 1 on were expected: sort them")
    buckets = []
    for shortest, end in zip((0, *edges), (*edges, None), strict=True):
        inside = [n for n, length in enumerate(lengths) if shortest <= length and (end is None or length < end)]
        if inside:
            score = metric([hypotheses[n] for n in inside], [references[n] for n in inside])
            buckets.append(LengthBucket(shortest, None if end is None else end - 1, len(inside), score))
    return tuple(buckets)
