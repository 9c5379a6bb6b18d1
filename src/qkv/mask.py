"""Who may attend to whom, said in words. True means "may attend", everywhere in the project."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    keys: Tensor | None = None
    documents: tuple[Tensor, Tensor] | None = None

    @property
    def only_causal(self) -> bool:
        """Whether a kernel's own causal flag (aligned top-left) says it all."""
        return self.causal and self.window is None and self.past == 0 and self.keys is None and self.documents is None

    def matrix(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """The mask as a bool tensor that broadcasts to (batch, heads, queries, keys); None if all is visible."""
        parts: list[Tensor] = []
        hides_by_distance = self.causal and keys > self.past + 1  # the newest query of a cache sees all keys
        if hides_by_distance or self.window is not None:
            ahead = torch.arange(keys, device=device) - torch.arange(
                self.past, self.past + queries, device=device
            ).unsqueeze(1)
            if self.causal:
                parts.append(ahead <= 0)
            if self.window is not None:
                parts.append(ahead.abs() < self.window)
        if self.keys is not None:
            parts.append(self.keys[:, None, None, :])
        if self.documents is not None:
            query_document, key_document = self.documents
            parts.append((query_document[:, :, None] == key_document[:, None, :])[:, None])
        matrix: Tensor | None = None
        for part in parts:
            matrix = part if matrix is None else matrix & part
        return matrix
