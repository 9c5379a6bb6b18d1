"""Labels that were given to every stretch of a sound, read as a text (Graves et al. 2006)."""

from __future__ import annotations

import torch
from torch import Tensor


def read_labels(logits: Tensor, blank: int, mask: Tensor | None = None) -> list[list[int]]:
    """The best label of each position, those repeated taken once and blanks left out: a list for each row.

    logits (batch, length, labels); mask (batch, length) bool, which positions are real. A blank between two of the
    same label keeps them both.
    """
    best = logits.argmax(dim=-1)
    if mask is not None:
        best = best.masked_fill(~mask, blank)
    before = torch.cat((torch.full_like(best[:, :1], blank), best[:, :-1]), dim=1)
    kept = (best != before) & (best != blank)
    return [row[keep].tolist() for row, keep in zip(best, kept, strict=True)]
