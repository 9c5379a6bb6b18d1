"""What a model answers: a score for each token of a vocabulary, or for each of a few classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv import spec


class VocabularyAnswer(nn.Module):
    """Compare the last hidden vector with one vector for each token; tied, they are those of the embedding."""

    def __init__(self, choice: spec.Vocabulary, d_model: int, embedding: nn.Embedding) -> None:
        super().__init__()
        self.tied, self.softcap = choice.tied, choice.softcap
        self.vectors = embedding.weight if choice.tied else nn.Parameter(torch.empty_like(embedding.weight))
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings)) if choice.bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, length, d_model) -> logits (batch, length, vocab)."""
        logits = functional.linear(hidden, self.vectors, self.bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class ClassesAnswer(nn.Module):
    """Score the classes from the first position or from the mean of all that are real."""

    def __init__(self, choice: spec.Classes, d_model: int) -> None:
        super().__init__()
        self.pool = choice.pool
        self.linear = nn.Linear(d_model, choice.count)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """hidden (batch, length, d_model), mask (batch, length) bool -> logits (batch, count)."""
        if self.pool == "first":
            pooled = hidden[:, 0]
        elif mask is None:
            pooled = hidden.mean(dim=1)
        else:
            real = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        logits: Tensor = self.linear(pooled)
        return logits
