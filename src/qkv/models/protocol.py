"""The protocol of all models that predict a sequence, and all that decoding, training and the lens know of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, Self

from torch import Tensor, nn

from qkv import spec
from qkv.cache import Memory
from qkv.tap import NO_TAP, Tap


class State(Protocol):
    """The state of a decoder: cached keys and values, or a hidden state. All rows have processed `length` tokens."""

    length: int

    def reorder(self, index: Tensor) -> Self:
        """Select or repeat rows by `index` (new_rows,); the old state must not be used again."""


class SequenceModel(nn.Module):
    """What every model of this package can do. Law: stepping equals teacher forcing.

    Shapes: source (batch, sources) and target (batch, targets) int64; source_mask, target_mask of the same shapes,
    bool,
    True = a real token; logits (batch, targets, vocab), where those at a position predict the next token.
    """

    spec: spec.Spec

    @abstractmethod
    def encode(self, source: Tensor, source_mask: Tensor | None = None, tap: Tap = NO_TAP) -> Memory | None:
        """Encode the source; return None for a model without an encoder."""

    @abstractmethod
    def start(self, memory: Memory | None, rows: int) -> State:
        """Return the state before the first token; `rows` is the batch size when there is no memory."""

    @abstractmethod
    def step(self, tokens: Tensor, state: State, tap: Tap = NO_TAP) -> tuple[Tensor, State]:
        """Process the next tokens (batch, n) of every row; return logits (batch, n, vocab) and the new state."""

    @abstractmethod
    def forward(
        self,
        source: Tensor | None = None,
        target: Tensor | None = None,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        tap: Tap = NO_TAP,
    ) -> Tensor:
        """Return all logits at once, each position given the true tokens before it (teacher forcing)."""
