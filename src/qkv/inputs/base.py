"""The common part of all input embeddings: positions, a norm, and dropout before the first block."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.errors import DataError
from qkv.layers import Dropout, build_norm
from qkv.positions import compute_sinusoids


class InputEmbedding(nn.Module):
    """An embedding of a stack's input as vectors (batch, length, d_model).

    num_prefix_tokens: how many of the first positions are learned vectors of the model rather than part of the input.
    """

    num_prefix_tokens = 0

    def __init__(self, config: spec.Stack, width: int) -> None:
        super().__init__()
        self.positions_config = config.positions
        self.positions = (
            nn.Embedding(config.positions.length, width) if isinstance(config.positions, spec.Learned) else None
        )
        self.positional_conv: nn.Conv1d | None = None
        if isinstance(config.positions, spec.Convolutional):
            window, groups = config.positions.kernel_size, config.positions.groups
            self.positional_conv = nn.Conv1d(width, width, window, padding=window // 2, groups=groups)
        self.norm = build_norm(config.embed_norm, width) if config.embed_norm else nn.Identity()
        self.dropout = Dropout()

    @abstractmethod
    def forward(self, inputs: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """Embed the input -> (batch, length, d_model). past: the position of the first vector. mask: which elements are
        real.
        """

    def position_mask(self, mask: Tensor | None) -> Tensor | None:
        """Return which positions are real, (batch, length) bool, from the mask of the input."""
        return mask

    def to_parameter_dtype(self, inputs: Tensor) -> Tensor:
        """Convert pixels, samples and the like to the floating-point type of the parameters."""
        return inputs.to(next(self.parameters()).dtype)

    def add_positions(self, hidden: Tensor, past: int, mask: Tensor | None = None) -> Tensor:
        """Add position vectors to hidden (batch, length, width) (Vaswani et al. 2017, section 3.5).

        mask (batch, length) bool: which positions are real; a convolution treats the others as 0.
        Raises DataError for more positions than were learned.
        """
        end = past + hidden.shape[1]
        if self.positions is not None and end > self.positions.num_embeddings:
            raise DataError(
                f"{end} tokens were given; this model has learned positions for {self.positions.num_embeddings}; "
                "shorten the text or split it"
            )
        if self.positional_conv is not None:
            hidden = hidden if mask is None else hidden.masked_fill(~mask[..., None], 0)
            convolved = self.positional_conv(hidden.mT)[..., : hidden.shape[1]]  # an even width makes one too many
            return hidden + functional.gelu(convolved).mT
        numbers = torch.arange(past, end, device=hidden.device)
        if self.positions is not None:
            learned: Tensor = hidden + self.positions(numbers)
            return learned
        if isinstance(self.positions_config, spec.Sinusoidal):
            waves = compute_sinusoids(
                numbers + self.positions_config.start, hidden.shape[-1], self.positions_config.layout
            )
            return hidden + waves.to(hidden.dtype)
        return hidden
