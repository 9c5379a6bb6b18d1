"""Convolutions over a picture, of an image or of a sound, before any of it is made a vector."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from qkv import spec


class Step(nn.Conv2d):
    """A convolution before a norm, if there is one, and a GELU; `added`: to what it read (He et al. 2016)."""

    def __init__(self, before: int, choice: spec.Convolution, norm: str, added: bool) -> None:
        width = choice.width
        super().__init__(before, choice.channels, width, choice.stride, width // 2, bias=norm == "none")
        self.norm = nn.BatchNorm2d(choice.channels) if norm == "batch" else nn.Identity()
        self.added = added

    def forward(self, given: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, its own, ceil(height / stride), ceil(width / stride))."""
        seen = functional.gelu(self.norm(super().forward(given)))
        return given + seen if self.added else seen


def stem(reads: spec.Patches | spec.Frames, channels: int) -> nn.ModuleList:
    """The steps that a stack begins with, for a picture of so many channels."""
    before = [channels, *(one.channels for one in reads.stem)]
    return nn.ModuleList(
        Step(given, one, reads.stem_norm, reads.stem_residual and one.stride == 1 and one.channels == given)
        for given, one in zip(before[:-1], reads.stem, strict=True)
    )
