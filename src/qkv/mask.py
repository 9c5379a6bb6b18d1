"""Who may attend to whom, said in words. True means "may attend", everywhere in the project."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_MASK_ELEMENTS = 2**26
"""Entries of a matrix above which a rule is no longer written out as one, but taken a few queries at a time."""

Span = tuple[int, int]
"""Some neighbouring queries or keys: the first, and the one after the last."""


@dataclass(frozen=True)
class Mask:
    """What a query may see; every rule that is given must allow it.

    causal: a query sees its own position and those before it.
    window: a query sees positions nearer than this, its own included; ahead as well as behind if not causal.
    past: how many keys come before the first query (those of a cache); 0 aligns causal top-left, the number of
        cached keys aligns it bottom-right, as in the ONNX Attention operator.
    keys: (batch, keys) bool, which keys are real (False = padding).
    documents: two integer tensors (batch, queries) and (batch, keys); a query sees only keys of its own document.
    """

    causal: bool = False
    window: int | None = None
    past: int = 0
    key_mask: Tensor | None = None
    documents: tuple[Tensor, Tensor] | None = None

    @property
    def is_only_causal(self) -> bool:
        """Whether a kernel's own causal flag (aligned top-left) says it all."""
        return (
            self.causal and self.window is None and self.past == 0 and self.key_mask is None and self.documents is None
        )

    def visible_range(self, rows: Span, keys: int) -> Span:
        """The keys, of so many, that some query of `rows` may see by distance; all that others hide are outside."""
        first, last = self.past + rows[0], self.past + rows[1] - 1  # positions among the keys
        ahead = 0 if self.causal else keys if self.window is None else self.window - 1
        behind = first if self.window is None else self.window - 1
        end = max(0, min(keys, last + ahead + 1))
        return min(max(0, first - behind), end), end

    def restrict(self, rows: Span, keys: Span) -> Mask:
        """The same rule for some queries and keys alone: they stand elsewhere from each other than the first ones."""
        documents = self.documents and (
            self.documents[0][:, rows[0] : rows[1]],
            self.documents[1][:, keys[0] : keys[1]],
        )
        real = None if self.key_mask is None else self.key_mask[:, keys[0] : keys[1]]
        return replace(self, past=self.past + rows[0] - keys[0], key_mask=real, documents=documents)

    def to_tensor(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """The mask as a bool tensor that broadcasts to (batch, heads, queries, keys); None if all is visible."""
        parts: list[Tensor] = []
        hides_by_distance = self.causal and keys > self.past + 1  # the newest query of a cache sees all keys
        if hides_by_distance or self.window is not None:
            key = torch.arange(keys, device=device)
            query = torch.arange(self.past, self.past + queries, device=device).unsqueeze(1)
            # comparing writes a byte an entry; a matrix of distances would take eight and several times as long
            if self.causal:
                parts.append(key <= query)
            if self.window is not None:
                parts.append(key > query - self.window)
                if not self.causal:
                    parts.append(key < query + self.window)
        if self.key_mask is not None:
            parts.append(self.key_mask[:, None, None, :])
        if self.documents is not None:
            query_document, key_document = self.documents
            parts.append((query_document[:, :, None] == key_document[:, None, :])[:, None])
        matrix: Tensor | None = None
        for part in parts:
            matrix = part if matrix is None else matrix & part
        return matrix
