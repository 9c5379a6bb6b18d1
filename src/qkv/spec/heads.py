"""The nodes of heads: a model's output is tokens, labels, a class, a vector, an action or its states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from qkv.spec.blocks import Activation, Norm
from qkv.spec.validation import require_choices, require_positive


@dataclass(frozen=True)
class Dense:
    """A linear layer with an optional activation and norm between the last block and the head (Devlin et al. 2019)."""

    activation: Activation | None
    norm: Norm | None = None
    bias: bool = True

    def __post_init__(self) -> None:
        require_choices(self)


@dataclass(frozen=True)
class Vocabulary:
    """A score for each token of the vocabulary of the last stack (tied: with its embedding as the output matrix).

    scale: a factor of the scores. dense: a layer before the output matrix.
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
    """A token of the vocabulary, or one that is copied from the source (See et al. 2017, section 2.2).

    It attends to the source with one head of its own, whose queries and keys have the size `d_key`.
    """

    d_key: int
    vocabulary: Vocabulary = Vocabulary()

    def __post_init__(self) -> None:
        require_positive(self, "d_key")


@dataclass(frozen=True)
class Labels:
    """A score for each of `count` labels at each position."""

    count: int
    dense: Dense | None = None

    def __post_init__(self) -> None:
        require_positive(self, "count")


Pool: TypeAlias = Literal["first", "second", "mean", "last"]
"""One vector for a whole input: that of one position, or the mean of the input's positions (without prefix vectors)."""


@dataclass(frozen=True)
class Classes:
    """One of `count` classes for the whole input; second_pool: classify a second pooled vector
    together with the first."""

    count: int
    pool: Pool = "mean"
    dense: Dense | None = None
    second_pool: Pool | None = None

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "count")


@dataclass(frozen=True)
class Vector:
    """One vector for the whole input, projected to `width` if given, of length 1 if `normalized`."""

    pool: Pool = "mean"
    width: int | None = None
    normalized: bool = True

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "width")


@dataclass(frozen=True)
class Actions:
    """The action to take in each step of a trajectory, predicted at its state, and the return and the state that
    follow,
    predicted at its action (Chen et al. 2021). bounded: actions are between -1 and 1.
    """

    bounded: bool = True


@dataclass(frozen=True)
class States:
    """The last block's hidden state of each position."""


Head: TypeAlias = Vocabulary | PointerGenerator | Labels | Classes | Vector | Actions | States
