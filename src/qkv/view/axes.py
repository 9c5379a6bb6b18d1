"""What stands along an axis of attention: words, the patches of a picture, the frames of a sound, an agent's steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from qkv.errors import QkvError
from qkv.view.blocks import Blocks

_PEAKS = 2000  # of a waveform: about what a wide screen has pixels


@dataclass(frozen=True)
class Axis:
    """The tokens of one side, in order, and what they are a picture, a sound or a trajectory of.

    image: (height, width, 3) uint8, whose rows x columns patches come after `leading` tokens that are no place in it.
    audio: (samples,), of which each token covers `per_token` seconds.
    """

    tokens: tuple[str, ...]
    kind: Literal["text", "image", "audio", "trajectory"] = "text"
    image: Tensor | None = None
    rows: int = 0
    columns: int = 0
    leading: int = 0
    audio: Tensor | None = None
    seconds: float = 0.0
    per_token: float = 0.0
    kinds: tuple[str, ...] = ()

    def described(self, blocks: Blocks) -> dict[str, Any]:
        """The axis for the page."""
        found: dict[str, Any] = {"kind": self.kind, "tokens": list(self.tokens)}
        if self.image is not None:
            shape = {"rows": self.rows, "columns": self.columns, "leading": self.leading}
            found["image"] = {**shape, "pixels": blocks.add(self.image)}
        if self.audio is not None:
            peaks = blocks.add(_peaks(self.audio), "float32")
            times = {"seconds": self.seconds, "per_token": self.per_token}
            found["audio"] = {**times, "leading": self.leading, "peaks": peaks}
        if self.kinds:
            found["trajectory"] = {"kinds": list(self.kinds)}
        return found


def text(tokens: Sequence[str]) -> Axis:
    """Tokens of a text."""
    return Axis(tuple(tokens))


def image(pixels: Tensor, rows: int, columns: int, leading: int = 0) -> Axis:
    """The patches of a picture (height, width, 3) uint8, row by row, after some tokens that are no place in it.

    Raises QkvError for other pixels.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[2] != 3:
        raise QkvError(
            f"pixels of shape {tuple(pixels.shape)}, {pixels.dtype}, were given; expected (height, width, 3) uint8"
        )
    names = [f"<{number + 1}>" for number in range(leading)]
    names += [f"{row + 1},{column + 1}" for row in range(rows) for column in range(columns)]
    return Axis(tuple(names), "image", image=pixels, rows=rows, columns=columns, leading=leading)


def audio(samples: Tensor, rate: int, positions: int, per_token: float) -> Axis:
    """The positions of a sound (samples,) taken `rate` times a second; each covers `per_token` seconds."""
    names = tuple(f"{number * per_token:.2f} s" for number in range(positions))
    return Axis(names, "audio", audio=samples, seconds=len(samples) / rate, per_token=per_token)


def trajectory(steps: int, kinds: Sequence[str] = ("return", "state", "action")) -> Axis:
    """The positions of an agent's steps, each of which has one of every kind."""
    names = [f"{kind} {step + 1}" for step in range(steps) for kind in kinds]
    return Axis(tuple(names), "trajectory", kinds=tuple(kinds))


def _peaks(samples: Tensor) -> Tensor:
    """The lowest and the highest sample of each of up to 2,000 stretches, (stretches, 2)."""
    count = max(1, min(_PEAKS, len(samples)))
    parts = torch.tensor_split(samples.float(), count)
    return torch.stack([torch.stack([part.min(), part.max()]) for part in parts if len(part)])
