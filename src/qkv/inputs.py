"""What a model reads: tokens, each given its vector and told where it stands."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import DataError
from qkv.layers import Dropout, norm
from qkv.positions import sinusoids


class TokenEmbedding(nn.Module):
    """Look each token's vector up, scale, add its position's, normalise (Vaswani et al. 2017, sections 3.4, 3.5)."""

    def __init__(self, choice: spec.Stack) -> None:
        super().__init__()
        reads, width = choice.reads, choice.reads.width or choice.d_model
        self.tokens = nn.Embedding(reads.vocab, width)
        self.scale = math.sqrt(choice.d_model) if reads.scale else 1.0
        self.choice = choice.positions
        self.positions = (
            nn.Embedding(choice.positions.length, width) if isinstance(choice.positions, spec.Learned) else None
        )
        self.separator = reads.segments.separator if reads.segments else None
        self.segments = nn.Embedding(reads.segments.count, width) if reads.segments else None
        self.norm = norm(choice.embed_norm, width) if choice.embed_norm else nn.Identity()
        self.projection = nn.Linear(width, choice.d_model) if reads.width is not None else nn.Identity()
        self.dropout = Dropout()

    def forward(self, tokens: Tensor, past: int = 0) -> Tensor:
        """tokens (batch, length) int64, the first of which stands at position `past` -> (batch, length, d_model).

        Raises DataError for more tokens than there are learned positions.
        """
        length = tokens.shape[1]
        if self.positions is not None and past + length > self.positions.num_embeddings:
            raise DataError(
                f"{past + length} tokens were given; this model has learned positions for "
                f"{self.positions.num_embeddings}; shorten the text or split it"
            )
        hidden = self.tokens(tokens) * self.scale
        if self.segments is not None:
            ends = tokens.eq(self.separator or 0)
            segment = (ends.cumsum(dim=1) - ends.long()).clamp(max=self.segments.num_embeddings - 1)
            hidden = hidden + self.segments(segment)
        positions = torch.arange(past, past + length, device=tokens.device)
        if self.positions is not None:
            hidden = hidden + self.positions(positions)
        elif isinstance(self.choice, spec.Sinusoidal):
            waves = sinusoids(positions + self.choice.start, hidden.shape[-1], self.choice.layout)
            hidden = hidden + waves.to(hidden.dtype)
        result: Tensor = self.dropout(self.projection(self.norm(hidden)))
        return result
