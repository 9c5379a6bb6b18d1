"""Sound as frames of pitch, such as a log-mel spectrogram: every two frames become a position."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.reader import Reader


class FrameReader(Reader):
    """Look at each frame with its neighbours, then at every other one with its own (Radford et al. 2022, section 2.2).

    Frames that a mask calls unreal are silence to both convolutions, so that padding changes nothing.
    """

    def __init__(self, choice: spec.Stack, reads: spec.Frames) -> None:
        super().__init__(choice, choice.d_model)
        self.first = nn.Conv1d(reads.mels, choice.d_model, 3, padding=1)
        self.second = nn.Conv1d(choice.d_model, choice.d_model, 3, stride=2, padding=1)

    def forward(self, given: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """frames (batch, mels, frames) float, mask (batch, frames) bool -> (batch, ceil(frames / 2), d_model).

        Raises DataError for another shape, or for more frames than there are positions for.
        """
        shape, mels = tuple(given.shape), self.first.in_channels
        if len(shape) != 3 or shape[1] != mels or not shape[2]:
            raise DataError(
                f"frames of shape {shape} were given; expected (batch, {mels}, frames): make them with "
                f"qkv.data.audio.LogMel(mels={mels})"
            )
        hidden = functional.gelu(self.first(_silenced(self.measured(given), mask)))
        hidden = functional.gelu(self.second(_silenced(hidden, mask)))
        result: Tensor = self.dropout(self.norm(self.placed(hidden.mT, past, self.mask(mask))))
        return result

    def mask(self, given: Tensor | None) -> Tensor | None:
        """(batch, frames) bool -> (batch, ceil(frames / 2)): a position is real if the frame in its middle is."""
        return None if given is None else given[:, ::2]


def _silenced(frames: Tensor, mask: Tensor | None) -> Tensor:
    return frames if mask is None else frames.masked_fill(~mask[:, None], 0)
