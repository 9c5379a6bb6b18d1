"""Tokens: each is given its vector and told where it stands."""

from __future__ import annotations

import math

from torch import Tensor, nn

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.reader import Reader


class TokenReader(Reader):
    """Look each token's vector up, scale, add its position's, normalise (Vaswani et al. 2017, sections 3.4, 3.5)."""

    def __init__(self, choice: spec.Stack, reads: spec.Tokens) -> None:
        width = reads.width or choice.d_model
        super().__init__(choice, choice.d_model if reads.widened_first else width)
        self.widened_first = reads.widened_first
        self.tokens = nn.Embedding(reads.vocab, width)
        self.scale = math.sqrt(choice.d_model) if reads.scale else 1.0
        self.separator = reads.segments.separator if reads.segments else None
        self.segments = nn.Embedding(reads.segments.count, width) if reads.segments else None
        self.projection = (
            nn.Linear(width, choice.d_model, bias=not reads.widened_first) if reads.width is not None else nn.Identity()
        )

    def forward(self, given: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """tokens (batch, length) int64, the first of which stands at position `past` -> (batch, length, d_model).

        Raises DataError for an image or a sound.
        """
        if given.is_floating_point():
            raise DataError(
                f"{given.dtype} of shape {tuple(given.shape)} was given; this model reads tokens, (batch, length) "
                "int64: give their numbers, e.g. tokenizer.encode(text)"
            )
        hidden = self.tokens(given) * self.scale
        if self.segments is not None:
            ends = given.eq(self.separator or 0)
            segment = (ends.cumsum(dim=1) - ends.long()).clamp(max=self.segments.num_embeddings - 1)
            hidden = hidden + self.segments(segment)
        if self.widened_first:
            result: Tensor = self.dropout(self.norm(self.placed(self.projection(hidden), past, mask)))
        else:
            result = self.dropout(self.projection(self.norm(self.placed(hidden, past, mask))))
        return result
