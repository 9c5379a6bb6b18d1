"""Sound as it is: convolutions turn some hundreds of samples into a position."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.reader import Reader


class WaveformReader(Reader):
    """Convolve the samples to ever slower features, normalise and project them (Baevski et al. 2020, section 2)."""

    def __init__(self, choice: spec.Stack, reads: spec.Waveform) -> None:
        super().__init__(choice, choice.d_model)
        before = [1, *(one.channels for one in reads.convolutions)]
        self.layers = nn.ModuleList(
            _Layer(channels, one, reads.bias, "none" if number and reads.norm_at == "first" else reads.norm_at)
            for number, (channels, one) in enumerate(zip(before, reads.convolutions, strict=False))
        )
        self.projection_norm = nn.LayerNorm(before[-1])
        self.projection = nn.Linear(before[-1], choice.d_model)
        self.convolutions = reads.convolutions
        self.shortest = 1
        for one in reversed(reads.convolutions):
            self.shortest = (self.shortest - 1) * one.stride + one.width

    def forward(self, given: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """samples (batch, samples) float, mask the same bool -> (batch, positions, d_model).

        Raises DataError for another shape, or for a sound too short for a position.
        """
        if given.ndim != 2 or given.shape[1] < self.shortest:
            raise DataError(
                f"samples of shape {tuple(given.shape)} were given; expected (batch, samples), with at least "
                f"{self.shortest} samples: make them with qkv.data.audio.features.Waveform"
            )
        hidden = self.measured(given[:, None])
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = self.projection(self.projection_norm(hidden.mT))
        result: Tensor = self.dropout(self.norm(self.placed(hidden, past, self.mask(mask))))
        return result

    def mask(self, given: Tensor | None) -> Tensor | None:
        """(batch, samples) bool -> (batch, positions): real are those that see real samples alone; padding is last."""
        if given is None:
            return None
        lengths, positions = given.sum(dim=1), given.shape[1]
        for one in self.convolutions:
            lengths, positions = (lengths - one.width) // one.stride + 1, (positions - one.width) // one.stride + 1
        return torch.arange(positions, device=given.device) < lengths[:, None]


class _Layer(nn.Module):
    """One convolution, a norm where it has one, and a GELU. norm: over time ("first"), over channels ("each") or none.

    Over time, padding counts as sound: models that have this norm were trained so, and are given no mask.
    """

    def __init__(self, channels: int, choice: spec.Convolution, bias: bool, norm: str) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, choice.channels, choice.width, choice.stride, bias=bias)
        self.norm: nn.Module = nn.Identity()
        if norm == "first":
            self.norm = nn.GroupNorm(choice.channels, choice.channels)
        elif norm == "each":
            self.norm = nn.LayerNorm(choice.channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, channels, length) -> (batch, the next layer's channels, its length)."""
        hidden = self.convolution(hidden)
        hidden = self.norm(hidden.mT).mT if isinstance(self.norm, nn.LayerNorm) else self.norm(hidden)
        return functional.gelu(hidden)
