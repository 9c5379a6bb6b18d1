"""Audio as a waveform; convolutions turn some hundreds of samples into a position."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.base import InputEmbedding


class WaveformEmbedding(InputEmbedding):
    """An embedding of samples by strided convolutions, a norm and a projection (Baevski et al. 2020, section 2)."""

    def __init__(self, config: spec.Stack, input_config: spec.Waveform) -> None:
        super().__init__(config, config.d_model)
        before = [1, *(one.channels for one in input_config.convolutions)]
        self.layers = nn.ModuleList(
            _ConvolutionLayer(
                channels,
                one,
                input_config.bias,
                "none" if number and input_config.norm_at == "first" else input_config.norm_at,
            )
            for number, (channels, one) in enumerate(zip(before, input_config.convolutions, strict=False))
        )
        self.projection_norm = nn.LayerNorm(before[-1])
        self.projection = nn.Linear(before[-1], config.d_model)
        self.convolutions = input_config.convolutions
        self.min_samples = 1
        for one in reversed(input_config.convolutions):
            self.min_samples = (self.min_samples - 1) * one.stride + one.kernel_size

    def forward(self, inputs: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """Embed samples (batch, samples) float -> (batch, positions, d_model). mask: the same shape, bool.

        Raises DataError for another shape, or for audio that is too short for one position.
        """
        if inputs.ndim != 2 or inputs.shape[1] < self.min_samples:
            raise DataError(
                f"samples of shape {tuple(inputs.shape)} were given; expected (batch, samples), with at least "
                f"{self.min_samples} samples: make them with qkv.data.audio.features.Waveform"
            )
        hidden = self.to_parameter_dtype(inputs[:, None])
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.projection(self.projection_norm(hidden.mT))
        result: Tensor = self.dropout(self.norm(self.add_positions(hidden, past, self.position_mask(mask))))
        return result

    def position_mask(self, mask: Tensor | None) -> Tensor | None:
        """Map (batch, samples) bool -> (batch, positions): a position is real if it sees real samples only."""
        if mask is None:
            return None
        lengths, positions = mask.sum(dim=1), mask.shape[1]
        for one in self.convolutions:
            lengths, positions = (
                (lengths - one.kernel_size) // one.stride + 1,
                (positions - one.kernel_size) // one.stride + 1,
            )
        return torch.arange(positions, device=mask.device) < lengths[:, None]


class _ConvolutionLayer(nn.Module):
    """A convolution, an optional norm and a GELU. norm: over time ("first"), over channels ("each") or none.

    The norm over time includes padding: models that have it were trained in this way, and receive no mask.
    """

    def __init__(self, channels: int, config: spec.Convolution, bias: bool, norm: str) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, config.channels, config.kernel_size, config.stride, bias=bias)
        self.norm: nn.Module = nn.Identity()
        if norm == "first":
            self.norm = nn.GroupNorm(config.channels, config.channels)
        elif norm == "each":
            self.norm = nn.LayerNorm(config.channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply it: (batch, channels, length) -> (batch, channels of the next layer, its length)."""
        hidden = self.convolution(hidden)
        hidden = self.norm(hidden.mT).mT if isinstance(self.norm, nn.LayerNorm) else self.norm(hidden)
        return functional.gelu(hidden)
