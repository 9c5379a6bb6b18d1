"""The labels along an axis of attention: tokens, the patches of an image, the frames of audio, or an agent's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from qkv.errors import QkvError
from qkv.lens.timestamps import TimedWord
from qkv.view.blocks import Blocks

_MAX_PEAKS = 2000  # of a waveform: about as many as a wide screen has pixels


@dataclass(frozen=True)
class Axis:
    """The tokens of one side, in order, and the image, audio or trajectory that they represent.

    image: (height, width, 3) uint8, whose rows x columns patches follow `leading` tokens without a patch.
    audio: (samples,), of which each token covers `seconds_per_token`. words: the time of each word of the answer.
    values: the numbers of each kind of position, (steps, numbers), by kind, in order. first_step: that of the first
    position.
    """

    tokens: tuple[str, ...]
    kind: Literal["text", "image", "audio", "trajectory"] = "text"
    image: Tensor | None = None
    rows: int = 0
    columns: int = 0
    leading: int = 0
    audio: Tensor | None = None
    seconds: float = 0.0
    seconds_per_token: float = 0.0
    words: tuple[TimedWord, ...] = ()
    values: Mapping[str, Tensor] = field(default_factory=dict)
    first_step: int = 0

    def to_json(self, blocks: Blocks) -> dict[str, Any]:
        """Describe the axis for the page."""
        found: dict[str, Any] = {"kind": self.kind, "tokens": list(self.tokens)}
        if self.image is not None:
            shape = {"rows": self.rows, "columns": self.columns, "leading": self.leading}
            found["image"] = {**shape, "pixels": blocks.add(self.image)}
        if self.audio is not None:
            peaks = blocks.add(_compute_peaks(self.audio), "float32")
            times = {"seconds": self.seconds, "seconds_per_token": self.seconds_per_token, "leading": self.leading}
            words = [[one.text, one.start, one.end] for one in self.words]
            found["audio"] = {**times, "samples": len(self.audio), "peaks": peaks, "words": words}
        if self.values:
            kept = {kind: blocks.add(numbers, "float32") for kind, numbers in self.values.items()}
            found["trajectory"] = {"kinds": list(self.values), "first_step": self.first_step, "values": kept}
        return found


def build_text_axis(tokens: Sequence[str]) -> Axis:
    """Return the axis of a text."""
    return Axis(tuple(tokens))


def build_image_axis(pixels: Tensor, rows: int, columns: int, leading: int = 0) -> Axis:
    """Return the axis of an image (height, width, 3) uint8: its patches row by row, after `leading` other tokens.

    Raises QkvError for pixels of another shape or dtype.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[2] != 3:
        raise QkvError(
            f"pixels of shape {tuple(pixels.shape)}, {pixels.dtype}, were given; expected (height, width, 3) uint8"
        )
    names = ["[CLS]", *(f"<{number + 1}>" for number in range(1, leading))][:leading]
    names += [f"{row + 1},{column + 1}" for row in range(rows) for column in range(columns)]
    return Axis(tuple(names), "image", image=pixels, rows=rows, columns=columns, leading=leading)


def build_audio_axis(
    samples: Tensor, sample_rate: int, positions: int, seconds_per_token: float, words: Sequence[TimedWord] = ()
) -> Axis:
    """Return the axis of audio (samples,): its positions, each of which covers `seconds_per_token`.

    words: the time of each word of the answer; a position also has the name of the word that is spoken in its middle.
    """
    names = []
    for number in range(positions):
        middle = (number + 0.5) * seconds_per_token
        word = next((one.text for one in words if one.start <= middle < one.end), "")
        names.append(f"{number * seconds_per_token:.2f} s {word}".rstrip())
    seconds = len(samples) / sample_rate
    return Axis(
        tuple(names), "audio", audio=samples, seconds=seconds, seconds_per_token=seconds_per_token, words=tuple(words)
    )


def build_trajectory_axis(tokens: Sequence[str], values: Mapping[str, Tensor], first_step: int = 0) -> Axis:
    """Return the axis of an agent's steps from `first_step` on, each of which has one position of every kind.

    values: the numbers of the positions of each kind, (steps, numbers), by kind, in their order within a step.
    Raises QkvError if the numbers of tokens and of steps do not match.
    """
    steps = {len(one) for one in values.values()}
    if len(steps) != 1 or len(tokens) != len(values) * min(steps):
        shapes = {kind: tuple(one.shape) for kind, one in values.items()}
        raise QkvError(
            f"{len(tokens)} positions and values of shapes {shapes} were given; expected one for each kind and step"
        )
    return Axis(tuple(tokens), "trajectory", values=dict(values), first_step=first_step)


def _compute_peaks(samples: Tensor) -> Tensor:
    """Return the lowest and the highest sample of each of up to 2,000 intervals, (intervals, 2)."""
    count = max(1, min(_MAX_PEAKS, len(samples)))
    parts = torch.tensor_split(samples.float(), count)
    return torch.stack([torch.stack([part.min(), part.max()]) for part in parts if len(part)])
