"""The terms of an attention's scores besides its queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from qkv.mask import Mask

ScoreFunction: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""A score that is not a dot product: (query, key) -> (batch, heads, queries, keys)."""


@dataclass(frozen=True)
class ScoreTerms:
    """How one call of `attend` computes its scores: its arguments of the same names, with the bias of the tap added.

    A tap receives them (`Tap.score_terms`), so that scores and weights can be recomputed exactly afterwards.
    """

    mask: Mask | Tensor | None = None
    bias: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    score: ScoreFunction | None = None
