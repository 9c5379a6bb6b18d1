"""Convolutional stems of images and spectrograms."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from qkv import spec


class StemConvolution(nn.Conv2d):
    """A convolution, an optional norm and a GELU; optionally added to its input (He et al. 2016)."""

    def __init__(self, in_channels: int, config: spec.Convolution, norm: str, has_residual: bool) -> None:
        width = config.kernel_size
        super().__init__(in_channels, config.channels, width, config.stride, width // 2, bias=norm == "none")
        self.norm = nn.BatchNorm2d(config.channels) if norm == "batch" else nn.Identity()
        self.has_residual = has_residual

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply it: (batch, channels, height, width) -> (batch, channels, ceil(height / stride),
        ceil(width / stride))."""
        activated = functional.gelu(self.norm(super().forward(inputs)))
        return inputs + activated if self.has_residual else activated


def build_stem(input_config: spec.Patches | spec.Frames, channels: int) -> nn.ModuleList:
    """Build the convolutions that precede the embedding, for an input with `channels` channels."""
    before = [channels, *(one.channels for one in input_config.stem)]
    return nn.ModuleList(
        StemConvolution(
            given, one, input_config.stem_norm, input_config.stem_residual and one.stride == 1 and one.channels == given
        )
        for given, one in zip(before[:-1], input_config.stem, strict=True)
    )
