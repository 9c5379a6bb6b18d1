"""Sound as frames of pitch, such as a log-mel spectrogram: every two frames become a position."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.reader import Reader
from qkv.inputs.stem import stem


class FrameReader(Reader):
    """Look at each frame with its neighbours, then at every other one with its own (Radford et al. 2022, section 2.2).

    With a stem, look at the frames as at a picture of time and pitch. Frames that a mask calls unreal are silence to
    all convolutions, so that padding changes nothing.
    """

    def __init__(self, choice: spec.Stack, reads: spec.Frames) -> None:
        super().__init__(choice, choice.d_model)
        self.reads = reads
        self.stem = stem(reads, 1)
        if reads.stem:
            self.columns = nn.Linear(reads.stem[-1].channels * -(-reads.mels // reads.each), choice.d_model)
        else:
            self.first = nn.Conv1d(reads.mels, choice.d_model, 3, padding=1)
            self.second = nn.Conv1d(choice.d_model, choice.d_model, 3, stride=2, padding=1)

    def forward(self, given: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """frames (batch, mels, frames) float, mask (batch, frames) bool -> (batch, ceil(frames / each), d_model).

        Raises DataError for another shape, or for more frames than there are positions for.
        """
        shape, mels = tuple(given.shape), self.reads.mels
        if len(shape) != 3 or shape[1] != mels or not shape[2]:
            raise DataError(
                f"frames of shape {shape} were given; expected (batch, {mels}, frames): make them with "
                f"qkv.data.audio.features.features.LogMel(mels={mels})"
            )
        hidden, real = self.measured(given), mask
        if len(self.stem):
            hidden = hidden[:, None]
            for step, choice in zip(self.stem, self.reads.stem, strict=True):
                hidden = step(_silenced(hidden, real))
                real = None if real is None else real[:, :: choice.stride]
            hidden = self.columns(hidden.permute(0, 3, 1, 2).flatten(2))
        else:
            hidden = functional.gelu(self.first(_silenced(hidden, mask)))
            hidden = functional.gelu(self.second(_silenced(hidden, mask))).mT
        result: Tensor = self.dropout(self.norm(self.placed(hidden, past, self.mask(mask))))
        return result

    def mask(self, given: Tensor | None) -> Tensor | None:
        """(batch, frames) bool -> (batch, ceil(frames / each)): a position is real if the frame in its middle is."""
        return None if given is None else given[:, :: self.reads.each]


def _silenced(frames: Tensor, mask: Tensor | None) -> Tensor:
    """Frames (batch, ..., frames) with 0 where the mask (batch, frames) says that none was."""
    return frames if mask is None else frames.masked_fill(~mask.view(len(mask), *(1,) * (frames.ndim - 2), -1), 0)
