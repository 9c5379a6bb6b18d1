"""State of a decoder between steps: the keys and values of the past, so that no token is computed twice."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """The output of an encoder. states (batch, sources, d_model); mask (batch, sources) bool or None.

    tokens (batch, sources) int64 and key (batch, 1, sources, d_key): for a model that copies, the tokens of the source
    and
    the keys of its copy attention.
    """

    states: Tensor
    mask: Tensor | None = None
    tokens: Tensor | None = None
    key: Tensor | None = None

    def select(self, index: Tensor) -> Memory:
        """Select or repeat rows of the batch."""
        return Memory(
            self.states[index],
            *(None if part is None else part[index] for part in (self.mask, self.tokens, self.key)),
        )


class KeyValueCache:
    """The keys and values of one attention, in buffers that grow by doubling."""

    def __init__(self) -> None:
        self.length = 0
        self._key: Tensor | None = None
        self._value: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (batch, kv_heads, n, d) and return all that are cached."""
        end = self.length + key.shape[2]
        if self._key is None or self._value is None or end > self._key.shape[2]:
            capacity = end if self._key is None else 2 * end  # the keys of a memory come at once and never grow
            self._key = _grow(self._key, key, self.length, capacity)
            self._value = _grow(self._value, value, self.length, capacity)
        self._key[:, :, self.length : end] = key
        self._value[:, :, self.length : end] = value
        self.length = end
        return self._key[:, :, :end], self._value[:, :, :end]

    def get(self) -> tuple[Tensor, Tensor] | None:
        """Return all keys and values, or None if there are none yet."""
        if self._key is None or self._value is None:
            return None
        return self._key[:, :, : self.length], self._value[:, :, : self.length]

    def crop(self, length: int) -> None:
        """Keep only the first `length` positions."""
        self.length = min(self.length, length)

    def reorder(self, index: Tensor) -> None:
        """Select or repeat rows of the batch."""
        if self._key is not None and self._value is not None:
            self._key = _select_rows(self._key, index, self.length)
            self._value = _select_rows(self._value, index, self.length)


def _grow(buffer: Tensor | None, like: Tensor, length: int, capacity: int) -> Tensor:
    grown = like.new_empty(like.shape[0], like.shape[1], capacity, like.shape[3])
    if buffer is not None:
        grown[:, :, :length] = buffer[:, :, :length]
    return grown


def _select_rows(buffer: Tensor, index: Tensor, length: int) -> Tensor:
    # index_select copies whole rows, whereas buffer[index] goes element by element; spare capacity is not copied
    picked = buffer.new_empty(len(index), *buffer.shape[1:])
    picked[:, :, :length] = buffer[:, :, :length].index_select(0, index)
    return picked


class SSRUCache:
    """The state (batch, d_model) of one recurrence, which represents the whole past; None before the first token."""

    def __init__(self) -> None:
        self.state: Tensor | None = None

    def reorder(self, index: Tensor) -> None:
        """Select or repeat rows of the batch."""
        if self.state is not None:
            self.state = self.state[index]


@dataclass
class BlockCache:
    """The keys and values of one decoder block: of the tokens so far, and of the memory (computed once)."""

    self_attention: KeyValueCache | SSRUCache = field(default_factory=KeyValueCache)
    cross_attention: KeyValueCache = field(default_factory=KeyValueCache)


@dataclass
class TransformerState:
    """The state of a Transformer's decoder after `length` tokens; a step takes ownership of it.

    origin (rows,): the row of the first batch that each row came from; rows of one origin share their memory.
    """

    origin: Tensor
    memory: Memory | None
    blocks: list[BlockCache]
    length: int = 0

    def reorder(self, index: Tensor) -> TransformerState:
        """Select or repeat rows; the number of rows may change. The old state must not be used again."""
        origin, memory = self.origin[index], self.memory
        for block in self.blocks:
            block.self_attention.reorder(index)
        if not torch.equal(origin, self.origin):  # a beam that is reordered within its sentence keeps its memory
            memory = None if memory is None else memory.select(index)
            for block in self.blocks:
                block.cross_attention.reorder(index)
        return TransformerState(origin, memory, self.blocks, self.length)
