"""What the scores of an attention are formed from, beside its queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from qkv.mask import Mask

ScoreFunction: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""Scores that are not a dot product: (query, key) -> (batch, heads, queries, keys)."""


@dataclass(frozen=True)
class ScoreTerms:
    """How one call of `attend` forms its scores: its arguments of the same names, with the bias of the tap added.

    A tap receives them (`Tap.score_terms`), so that scores and weights can be recomputed exactly afterwards.
    """

    mask: Mask | Tensor | None = None
    bias: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    score: ScoreFunction | None = None
