"""The nodes of what a model answers: tokens, labels, a class, a vector, an action or its states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from qkv.spec.blocks import Activation, Norm
from qkv.spec.validation import require_choices, require_positive


@dataclass(frozen=True)
class Dense:
    """A linear layer, perhaps an activation and a norm between the last block and the answer (Devlin et al. 2019)."""

    activation: Activation | None
    norm: Norm | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        require_choices(self)


@dataclass(frozen=True)
class Vocabulary:
    """Answers with a score for each token of the vocabulary that the last stack reads (tied: by its own vectors).

    scale: what the scores are multiplied by. dense: what goes before the comparison.
    """

    tied: bool = True
    bias: bool = False
    softcap: float | None = None
    scale: float | None = None
    dense: Dense | None = None

    def __post_init__(self) -> None:
        require_positive(self, "softcap", "scale")


@dataclass(frozen=True)
class PointerGenerator:
    """Answers with a token of the vocabulary, or with one that stands in the source (See et al. 2017, section 2.2).

    It looks at the source with one head of its own, whose queries and keys have `d_key` numbers.
    """

    d_key: int
    vocabulary: Vocabulary = Vocabulary()

    def __post_init__(self) -> None:
        require_positive(self, "d_key")


@dataclass(frozen=True)
class Labels:
    """Answers each position with a score for each of `count` labels."""

    count: int
    dense: Dense | None = None

    def __post_init__(self) -> None:
        require_positive(self, "count")


Pool: TypeAlias = Literal["first", "second", "mean", "last"]
"""One vector for a whole input: that of one position, or the mean of what was read (leading vectors left out)."""


@dataclass(frozen=True)
class Classes:
    """Answers with one of `count` classes for the whole input; second_pool: also from a second vector beside the
    first."""

    count: int
    pool: Pool = "mean"
    dense: Dense | None = None
    second_pool: Pool | None = None

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "count")


@dataclass(frozen=True)
class Vector:
    """Answers with one vector for the whole input, projected to `width` if given, of length 1 if `normalized`."""

    pool: Pool = "mean"
    width: int | None = None
    normalized: bool = True

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "width")


@dataclass(frozen=True)
class Actions:
    """Answers each step of a trajectory with the action to take there, as its state shows it, and with the return and
    the state that follow, as its action shows them (Chen et al. 2021). bounded: actions lie between -1 and 1."""

    bounded: bool = True


@dataclass(frozen=True)
class States:
    """Answers with the last block's own vector for each position."""


Head: TypeAlias = Vocabulary | PointerGenerator | Labels | Classes | Vector | Actions | States
