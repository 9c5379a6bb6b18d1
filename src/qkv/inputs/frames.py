"""Audio as spectral frames, such as a log-mel spectrogram; two frames make a position."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.base import InputEmbedding
from qkv.inputs.stem import build_stem


class FrameEmbedding(InputEmbedding):
    """An embedding of frames by two convolutions, the second with stride 2 (Radford et al. 2022, section 2.2).

    With a stem, the frames are convolved like an image of time and frequency. Frames that the mask excludes are 0 for
    all convolutions, so that padding changes nothing.
    """

    def __init__(self, config: spec.Stack, input_config: spec.Frames) -> None:
        super().__init__(config, config.d_model)
        self.input_config = input_config
        self.stem = build_stem(input_config, 1)
        if input_config.stem:
            self.projection = nn.Linear(
                input_config.stem[-1].channels * -(-input_config.mels // input_config.frames_per_position),
                config.d_model,
            )
        else:
            self.conv1 = nn.Conv1d(input_config.mels, config.d_model, 3, padding=1)
            self.conv2 = nn.Conv1d(config.d_model, config.d_model, 3, stride=2, padding=1)

    def forward(self, inputs: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """Embed frames (batch, mels, frames) float -> (batch, ceil(frames / frames_per_position), d_model).

        mask: (batch, frames) bool. Raises DataError for another shape, or for more frames than there are positions for.
        """
        shape, mels = tuple(inputs.shape), self.input_config.mels
        if len(shape) != 3 or shape[1] != mels or not shape[2]:
            raise DataError(
                f"frames of shape {shape} were given; expected (batch, {mels}, frames): make them with "
                f"qkv.data.audio.features.features.LogMel(mels={mels})"
            )
        hidden, real = self.to_parameter_dtype(inputs), mask
        if len(self.stem):
            hidden = hidden[:, None]
            for step, choice in zip(self.stem, self.input_config.stem, strict=True):
                hidden = step(_zero_padding(hidden, real))
                real = None if real is None else real[:, :: choice.stride]
            hidden = self.projection(hidden.permute(0, 3, 1, 2).flatten(2))
        else:
            hidden = functional.gelu(self.conv1(_zero_padding(hidden, mask)))
            hidden = functional.gelu(self.conv2(_zero_padding(hidden, mask))).mT
        result: Tensor = self.dropout(self.norm(self.add_positions(hidden, past, self.position_mask(mask))))
        return result

    def position_mask(self, mask: Tensor | None) -> Tensor | None:
        """Map (batch, frames) bool -> (batch, positions): a position is real if the frame in its middle is."""
        return None if mask is None else mask[:, :: self.input_config.frames_per_position]


def _zero_padding(frames: Tensor, mask: Tensor | None) -> Tensor:
    """Set frames (batch, ..., frames) to 0 where the mask (batch, frames) is False."""
    return frames if mask is None else frames.masked_fill(~mask.view(len(mask), *(1,) * (frames.ndim - 2), -1), 0)
