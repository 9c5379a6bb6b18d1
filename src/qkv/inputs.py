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
        self.tokens = nn.Embedding(choice.reads.vocab, choice.d_model)
        self.scale = math.sqrt(choice.d_model) if choice.reads.scale else 1.0
        self.choice = choice.positions
        self.positions = (
            nn.Embedding(choice.positions.length, choice.d_model)
            if isinstance(choice.positions, spec.Learned)
            else None
        )
        self.norm = norm(choice.embed_norm, choice.d_model) if choice.embed_norm else nn.Identity()
        self.dropout = Dropout()

    def forward(self, tokens: Tensor, past: int = 0) -> Tensor:
        """tokens (batch, length) int64, the first of which stands at position `past` -> (batch, length, d_model)."""
        length = tokens.shape[1]
        if self.positions is not None and past + length > self.positions.num_embeddings:
            raise DataError(
                f"{past + length} tokens were given; this model has learned positions for "
                f"{self.positions.num_embeddings}; shorten the text or split it"
            )
        hidden = self.tokens(tokens) * self.scale
        if self.choice is not None:
            positions = torch.arange(past, past + length, device=tokens.device)
            if self.positions is not None:
                hidden = hidden + self.positions(positions)
            else:
                hidden = hidden + sinusoids(positions, hidden.shape[-1]).to(hidden.dtype)
        result: Tensor = self.dropout(self.norm(hidden))
        return result
