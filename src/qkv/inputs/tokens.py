"""Tokens, each of which becomes a vector."""

from __future__ import annotations

import math

from torch import Tensor, nn

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.base import InputEmbedding


class TokenEmbedding(InputEmbedding):
    """An embedding of tokens: look up, scale, add positions, normalise (Vaswani et al. 2017, sections 3.4, 3.5)."""

    def __init__(self, config: spec.Stack, input_config: spec.Tokens) -> None:
        width = input_config.width or config.d_model
        super().__init__(config, config.d_model if input_config.project_first else width)
        self.project_first = input_config.project_first
        self.tokens = nn.Embedding(input_config.vocab, width)
        self.scale = math.sqrt(config.d_model) if input_config.scale else 1.0
        self.separator = input_config.segments.separator if input_config.segments else None
        self.segments = nn.Embedding(input_config.segments.count, width) if input_config.segments else None
        self.projection = (
            nn.Linear(width, config.d_model, bias=not input_config.project_first)
            if input_config.width is not None
            else nn.Identity()
        )

    def forward(self, inputs: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """Return the vectors of the positions, (batch, length, d_model), for tokens (batch, length) int64.

        Vectors (batch, length, width) float are also accepted: they replace those of the tokens, scale included, and
        belong
        to the first segment. past: the position of the first of them.
        Raises DataError for a tensor of another shape, such as an image or audio.
        """
        is_vectors = inputs.is_floating_point()
        if is_vectors and (inputs.dim() != 3 or inputs.shape[-1] != self.tokens.embedding_dim):
            raise DataError(
                f"{inputs.dtype} of shape {tuple(inputs.shape)} was given; expected tokens, (batch, length) int64, "
                f"e.g. tokenizer.encode(text), or vectors, (batch, length, {self.tokens.embedding_dim})"
            )
        hidden = self.to_parameter_dtype(inputs) if is_vectors else self.tokens(inputs) * self.scale
        if self.segments is not None and is_vectors:
            hidden = hidden + self.segments.weight[0]
        elif self.segments is not None:
            ends = inputs.eq(self.separator or 0)
            segment = (ends.cumsum(dim=1) - ends.long()).clamp(max=self.segments.num_embeddings - 1)
            hidden = hidden + self.segments(segment)
        if self.project_first:
            result: Tensor = self.dropout(self.norm(self.add_positions(self.projection(hidden), past, mask)))
        else:
            result = self.dropout(self.projection(self.norm(self.add_positions(hidden, past, mask))))
        return result
