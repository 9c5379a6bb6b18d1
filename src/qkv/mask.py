"""Rules for the keys that a query may attend to. True means "may attend" throughout the project."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qkv.errors import QkvError

MAX_MASK_ELEMENTS = 2**26
"""The number of elements above which a mask is built for a few queries at a time instead of as one matrix."""

Span = tuple[int, int]
"""A range of queries or keys: the first index, and the one after the last."""


@dataclass(frozen=True)
class Mask:
    """The keys that a query may attend to; every given rule must allow a key.

    causal: a query attends to its own position and to earlier ones.
    window: the number of positions within which a query attends, including its own, on both sides if not causal; or the
        numbers of positions before and after its own, such as (128, 0) or (64, 16).
    past: how many keys come before the first query (those of a cache), or such numbers for each row (batch,); 0 aligns
        causal top-left, the number of cached keys aligns it bottom-right, as in the ONNX Attention operator.
    key_mask: (batch, keys) bool, False for padding.
    documents: two integer tensors (batch, queries) and (batch, keys); a query attends only to keys of its own document.
    allowed: a bool tensor that broadcasts to (batch, heads, queries, keys). `mask & tensor` adds one.

    Example: `Mask(causal=True) & prefix_mask`
    """

    causal: bool = False
    window: int | tuple[int, int] | None = None
    past: int | Tensor = 0
    key_mask: Tensor | None = None
    documents: tuple[Tensor, Tensor] | None = None
    allowed: Tensor | None = None

    def __and__(self, other: Tensor) -> Mask:
        """Return a mask that also requires `other`, a bool tensor that broadcasts to (batch, heads, queries, keys)."""
        if other.dtype != torch.bool:
            raise QkvError(f"a mask of {other.dtype} was given; expected bool, True where a query may attend")
        return replace(self, allowed=other if self.allowed is None else self.allowed & other)

    __rand__ = __and__

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """How many positions before and after its own a query attends to; None for no limit."""
        before, after = (
            (None, None)
            if self.window is None
            else (self.window if isinstance(self.window, tuple) else (self.window - 1, self.window - 1))
        )
        return before, 0 if self.causal else after

    @property
    def is_only_causal(self) -> bool:
        """Whether a kernel's own causal flag, aligned top-left, is the whole rule."""
        others = (self.window, self.key_mask, self.documents, self.allowed)
        starts_at_0 = not isinstance(self.past, Tensor) and self.past == 0
        return self.causal and starts_at_0 and all(one is None for one in others)

    def visible_range(self, rows: Span, keys: int) -> Span:
        """Return a range of the first `keys` keys outside of which no query of `rows` attends to any, by distance."""
        least, most = map(int, self.past.aminmax()) if isinstance(self.past, Tensor) else (self.past, self.past)
        first, last = least + rows[0], most + rows[1] - 1  # positions among the keys
        before, after = self.reach
        end = keys if after is None else max(0, min(keys, last + after + 1))
        return 0 if before is None else min(max(0, first - before), end), end

    def restrict(self, rows: Span, keys: Span) -> Mask:
        """Return the same rule for a range of queries and a range of keys, counted from their first ones."""
        documents = self.documents and (
            self.documents[0][:, rows[0] : rows[1]],
            self.documents[1][:, keys[0] : keys[1]],
        )
        real = None if self.key_mask is None else self.key_mask[:, keys[0] : keys[1]]
        allowed = self.allowed
        if allowed is not None and allowed.dim() > 1 and allowed.shape[-2] > 1:
            allowed = allowed[..., rows[0] : rows[1], :]
        if allowed is not None and allowed.dim() > 0 and allowed.shape[-1] > 1:
            allowed = allowed[..., keys[0] : keys[1]]
        past = self.past + rows[0] - keys[0]
        return replace(self, past=past, key_mask=real, documents=documents, allowed=allowed)

    def to_tensor(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """Return a bool tensor that broadcasts to (batch, heads, queries, keys); None if every key is visible."""
        parts: list[Tensor] = []
        before, after = self.reach
        if self.causal and not isinstance(self.past, Tensor) and keys <= self.past + 1:
            after = None  # the newest query of a cache may attend to all keys
        if before is not None or after is not None:
            key = torch.arange(keys, device=device)
            query = torch.arange(queries, device=device)
            if isinstance(self.past, Tensor):  # one for each row of the batch, for all heads
                query = (query + self.past.to(device)[:, None])[:, None, :, None]
            else:
                query = (query + self.past)[:, None]
            # a comparison writes a byte per entry; a matrix of distances would need eight and take several times as
            # long
            if after is not None:
                parts.append(key <= query + after)
            if before is not None:
                parts.append(key >= query - before)
        if self.key_mask is not None:
            parts.append(self.key_mask[:, None, None, :])
        if self.documents is not None:
            query_document, key_document = self.documents
            parts.append((query_document[:, :, None] == key_document[:, None, :])[:, None])
        if self.allowed is not None:
            parts.append(self.allowed.to(device))
        matrix: Tensor | None = None
        for part in parts:
            matrix = part if matrix is None else matrix & part
        return matrix
