"""Images: cut into squares, each given a vector and told where it stands."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.reader import Reader
from qkv.inputs.stem import stem


class PatchReader(Reader):
    """Turn each square of an image into a vector, put learned ones before them (Dosovitskiy et al. 2021, section 3.1).

    The order is: leading vectors, registers, then the patches row by row.
    """

    def __init__(self, choice: spec.Stack, reads: spec.Patches) -> None:
        super().__init__(choice, choice.d_model)
        self.reads = reads
        self.apart = reads.leading + reads.registers
        self.stem = stem(reads, reads.channels)
        channels = reads.stem[-1].channels if reads.stem else reads.channels
        self.side = reads.size // math.prod(one.stride for one in reads.stem)
        self.patches = nn.Linear(channels * self.side**2, choice.d_model)
        self.leading = nn.ParameterList(torch.zeros(choice.d_model) for _ in range(reads.leading))
        self.registers = nn.Parameter(torch.zeros(reads.registers, choice.d_model)) if reads.registers else None

    def forward(self, given: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """images (batch, channels, height, width) float -> (batch, apart + rows * columns, d_model).

        Raises DataError for images of other channels or whose sides are no multiples of a patch's.
        """
        batch, (rows, columns) = given.shape[0], self.grid(given)
        size, given = self.side, self.measured(given)
        for step in self.stem:
            given = step(given)
        squares = given.reshape(batch, -1, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        hidden = self.patches(squares.reshape(batch, rows * columns, -1))
        leading = [vector.expand(batch, 1, -1) for vector in self.leading]
        hidden = torch.cat([*leading, hidden], dim=1)
        if self.positions is not None:
            hidden = hidden + self._interpolated(self.positions.weight, rows, columns)
        else:
            hidden = self.placed(hidden, past)
        if self.registers is not None:
            first, rest = hidden[:, : self.reads.leading], hidden[:, self.reads.leading :]
            hidden = torch.cat([first, self.registers.expand(batch, -1, -1), rest], dim=1)
        result: Tensor = self.dropout(self.norm(hidden))
        return result

    def grid(self, images: Tensor) -> tuple[int, int]:
        """How many rows and columns of patches images (batch, channels, height, width) have; DataError as `forward`."""
        size, channels = self.reads.size, self.reads.channels
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != channels or shape[2] % size or shape[3] % size or 0 in shape[2:]:
            raise DataError(
                f"images of shape {shape} were given; expected (batch, {channels}, height, width), with height and "
                f"width multiples of {size}: resize or crop them (see qkv.data.images.processing)"
            )
        return shape[2] // size, shape[3] // size

    def _interpolated(self, positions: Tensor, rows: int, columns: int) -> Tensor:
        """The vectors of the positions (apart from registers') for a grid of another size than that learned for."""
        leading, learned = positions[: self.reads.leading], positions[self.reads.leading :]
        side = math.isqrt(len(learned))
        if (rows, columns) == (side, side):
            return positions
        grid = learned.T.reshape(1, -1, side, side).float()  # bicubic in half precision would shift the vectors
        wanted = functional.interpolate(grid, (rows, columns), mode="bicubic", antialias=self.reads.smooth)
        return torch.cat([leading, wanted[0].flatten(1).T.to(positions.dtype)])
