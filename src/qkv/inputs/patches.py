"""Images, split into square patches, each of which becomes a vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.base import InputEmbedding
from qkv.inputs.stem import build_stem


class PatchEmbedding(InputEmbedding):
    """An embedding of image patches with learned vectors before them (Dosovitskiy et al. 2021, section 3.1).

    The order is: class tokens, registers, then the patches row by row.
    """

    def __init__(self, config: spec.Stack, input_config: spec.Patches) -> None:
        super().__init__(config, config.d_model)
        self.input_config = input_config
        self.num_prefix_tokens = input_config.class_tokens + input_config.registers
        self.stem = build_stem(input_config, input_config.channels)
        channels = input_config.stem[-1].channels if input_config.stem else input_config.channels
        self.side = input_config.size // math.prod(one.stride for one in input_config.stem)
        self.patches = nn.Linear(channels * self.side**2, config.d_model)
        self.class_tokens = nn.ParameterList(torch.zeros(config.d_model) for _ in range(input_config.class_tokens))
        self.registers = (
            nn.Parameter(torch.zeros(input_config.registers, config.d_model)) if input_config.registers else None
        )

    def forward(self, inputs: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """Embed images (batch, channels, height, width) float -> (batch, num_prefix_tokens + rows * columns, d_model).

        Raises DataError for another number of channels, or sides that are not multiples of a patch's.
        """
        batch, (rows, columns) = inputs.shape[0], self.grid(inputs)
        size, inputs = self.side, self.to_parameter_dtype(inputs)
        for step in self.stem:
            inputs = step(inputs)
        squares = inputs.reshape(batch, -1, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        hidden = self.patches(squares.reshape(batch, rows * columns, -1))
        leading = [vector.expand(batch, 1, -1) for vector in self.class_tokens]
        hidden = torch.cat([*leading, hidden], dim=1)
        if self.positions is not None:
            hidden = hidden + self._interpolate(self.positions.weight, rows, columns)
        else:
            hidden = self.add_positions(hidden, past)
        if self.registers is not None:
            first, rest = hidden[:, : self.input_config.class_tokens], hidden[:, self.input_config.class_tokens :]
            hidden = torch.cat([first, self.registers.expand(batch, -1, -1), rest], dim=1)
        result: Tensor = self.dropout(self.norm(hidden))
        return result

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches in images (batch, channels, height, width). Raises DataError as
        `forward`.
        """
        size, channels = self.input_config.size, self.input_config.channels
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != channels or shape[2] % size or shape[3] % size or 0 in shape[2:]:
            raise DataError(
                f"images of shape {shape} were given; expected (batch, {channels}, height, width), with height and "
                f"width multiples of {size}: resize or crop them (see qkv.data.images.processing)"
            )
        return shape[2] // size, shape[3] // size

    def _interpolate(self, positions: Tensor, rows: int, columns: int) -> Tensor:
        """Interpolate the vectors of the positions (registers have none) for a grid of another size than the learned
        one.
        """
        leading, learned = positions[: self.input_config.class_tokens], positions[self.input_config.class_tokens :]
        side = math.isqrt(len(learned))
        if (rows, columns) == (side, side):
            return positions
        grid = learned.T.reshape(1, -1, side, side).float()  # bicubic in half precision would shift the vectors
        interpolated = functional.interpolate(
            grid, (rows, columns), mode="bicubic", antialias=self.input_config.antialias
        )
        return torch.cat([leading, interpolated[0].flatten(1).T.to(positions.dtype)])
