"""The one protocol of all models that predict a sequence. Decoding, training and the lens know nothing else."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, Self

from torch import Tensor, nn

from qkv import spec
from qkv.cache import Memory
from qkv.tap import NO_TAP, Tap


class State(Protocol):
    """Where a decoder stands: cached keys and values, or a hidden state. All rows have taken `length` tokens."""

    length: int

    def reorder(self, index: Tensor) -> Self:
        """Pick or repeat rows by `index` (new_rows,); the old state must not be used again."""


class SequenceModel(nn.Module):
    """What every model of this package can do. Law: stepping equals teacher forcing.

    Shapes: source (batch, sources) and target (batch, targets) int64; source_mask, target_mask of the same shapes,
    bool, True = a real token; logits (batch, targets, vocab), those at a position predict the token after it.
    """

    spec: spec.Spec

    @abstractmethod
    def encode(self, source: Tensor, source_mask: Tensor | None = None, tap: Tap = NO_TAP) -> Memory | None:
        """Read the source; None from a model without an encoder."""

    @abstractmethod
    def start(self, memory: Memory | None, rows: int) -> State:
        """The state before the first token; `rows` counts when there is no memory."""

    @abstractmethod
    def step(self, tokens: Tensor, state: State, tap: Tap = NO_TAP) -> tuple[Tensor, State]:
        """Take the next tokens (batch, n) of every row; return logits (batch, n, vocab) and the state after them."""

    @abstractmethod
    def forward(
        self,
        source: Tensor | None = None,
        target: Tensor | None = None,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        tap: Tap = NO_TAP,
    ) -> Tensor:
        """All logits at once, each position given the true tokens before it (teacher forcing)."""
