"""Conversions between a published file's tensors and our parameters: a small vocabulary of invertible operations.

A family's table maps the names in its *files* to targets. A name without a suffix covers everything under it, so
"h.{n}.ln_1" -> "decoder.blocks.{n}.self_attention_residual.before" moves weight and bias; `{n}` is a number. A target
is a parameter's name here, or an operation on one or more of these. Every operation knows its inverse, so the same
table writes the family's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkv.errors import CheckpointError


@dataclass(frozen=True)
class Conversion:
    """A conversion of one tensor of a file to its `targets`, which is the identity unless a subclass overrides it.

    `to_parameters` receives the shapes of the targets, `to_checkpoint` their tensors.
    """

    targets: tuple[str, ...]

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Convert the file's tensor to the targets' tensors, each with its own memory, so that training changes only
        one.
        """
        return [tensor.clone() if number else tensor for number in range(len(self.targets))]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        """Convert the targets' tensors to the file's. Raises CheckpointError if targets that share a tensor differ."""
        if any(not torch.equal(one, tensors[0]) for one in tensors[1:]):
            raise CheckpointError(
                f"{' and '.join(self.targets)} differ, and files of this family hold one tensor for them; "
                "save the model as a folder of this package instead"
            )
        return tensors[0]


def rename(*targets: str) -> Conversion:
    """Rename a tensor, and copy it if there are several targets."""
    return Conversion(targets)


class Transpose(Conversion):
    """A matrix stored as (in, out); vectors are unchanged."""

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.mT if tensor.ndim == 2 else tensor]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].mT if tensors[0].ndim == 2 else tensors[0]


def transpose(target: str) -> Conversion:
    """Transpose a matrix that is stored as (in, out)."""
    return Transpose((target,))


@dataclass(frozen=True)
class ConcatenateRows(Conversion):
    """Several parameters concatenated along the rows; `transpose` if the file stores (in, out)."""

    transpose: bool = False

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        rows = tensor.mT if self.transpose and tensor.ndim == 2 else tensor
        return list(torch.split(rows, [shape[0] for shape in shapes]))

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        rows = torch.cat(list(tensors))
        return rows.mT if self.transpose and rows.ndim == 2 else rows


def concatenate_rows(*targets: str, transpose: bool = False) -> Conversion:
    """Split a tensor into parameters that are concatenated along its rows, such as query, key and value."""
    return ConcatenateRows(targets, transpose)


@dataclass(frozen=True)
class InterleaveHeads(Conversion):
    """Query, key and value interleaved by key-value head: its queries, its key, its value."""

    kv_heads: int = 1

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        sizes = [shape[0] // self.kv_heads for shape in shapes]
        groups = tensor.reshape(self.kv_heads, -1, *tensor.shape[1:])
        return [part.flatten(0, 1) for part in torch.split(groups, sizes, dim=1)]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        groups = [part.reshape(self.kv_heads, -1, *part.shape[1:]) for part in tensors]
        return torch.cat(groups, dim=1).flatten(0, 1)


def interleave_heads(*targets: str, kv_heads: int) -> Conversion:
    """Separate query, key and value that are interleaved by key-value head."""
    return InterleaveHeads(targets, kv_heads)


class AddOne(Conversion):
    """A norm's gain stored as its distance from 1."""

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor + 1]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] - 1


def add_one(target: str) -> Conversion:
    """Add one to a gain that is stored as its distance from 1."""
    return AddOne((target,))


@dataclass(frozen=True)
class SkipRows(Conversion):
    """A table whose first `leading` and last `trailing` rows are never used; written back as zeros."""

    leading: int = 0
    trailing: int = 0

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor[self.leading : len(tensor) - self.trailing]]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        used = tensors[0]
        before, after = (used.new_zeros(unused, *used.shape[1:]) for unused in (self.leading, self.trailing))
        return torch.cat([before, used, after])


def skip_rows(leading: int, target: str, trailing: int = 0) -> Conversion:
    """Skip the first `leading` and last `trailing` rows of a table, such as positions that count from 2."""
    return SkipRows((target,), leading, trailing)


@dataclass(frozen=True)
class AppendRows(Conversion):
    """A table with `count` rows more than in the file, of any shape; they contain `fill_value` and are not written
    back.
    """

    count: int = 1
    fill_value: float = 0.0

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        rows = tensor.reshape(-1, *shapes[0][1:])
        return [torch.cat([rows, rows.new_full((self.count, *rows.shape[1:]), self.fill_value)])]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0][: -self.count]


def append_rows(target: str, count: int, fill_value: float = 0.0) -> Conversion:
    """Append rows to a table that the file lacks, such as a start token."""
    return AppendRows((target,), count, fill_value)


@dataclass(frozen=True)
class PermuteForRotary(Conversion):
    """Rows whose rotary pairs are adjacent within each of `heads` heads; here they are half a head apart."""

    heads: int = 1

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.reshape(self.heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).flatten(0, 2)]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        paired = tensors[0].reshape(self.heads, 2, -1, *tensors[0].shape[1:])
        return paired.transpose(1, 2).flatten(0, 2)


def permute_for_rotary(target: str, heads: int) -> Conversion:
    """Permute query or key rows with interleaved rotary pairs."""
    return PermuteForRotary((target,), heads)


@dataclass(frozen=True)
class Reshape(Conversion):
    """The same elements in another shape."""

    stored_shape: tuple[int, ...] = ()

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.reshape(shapes[0])]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].reshape(self.stored_shape)


def reshape(target: str, stored_shape: tuple[int, ...]) -> Conversion:
    """Reshape a tensor that the file stores in `stored_shape` (-1: the remaining size)."""
    return Reshape((target,), stored_shape)


class ConcatenateColumns(Conversion):
    """Matrices concatenated along the columns."""

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return list(torch.split(tensor, [shape[1] for shape in shapes], dim=1))

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), dim=1)


def concatenate_columns(*targets: str) -> Conversion:
    """Split a matrix by columns, one part for each of several vectors that are read together."""
    return ConcatenateColumns(targets)


@dataclass(frozen=True)
class Scale(Conversion):
    """A tensor that is `factor` times as large here."""

    factor: float = 1.0

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor * self.factor]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] / self.factor


def scale(target: str, factor: float) -> Conversion:
    """Multiply a tensor by a number, such as each part of a mean."""
    return Scale((target,), factor)


class Adjustment(Conversion):
    """A conversion that changes its targets after they have been filled, and fills none itself."""

    def adjust(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        """Return the target `parameter` as the file's `tensor` changes it."""
        raise NotImplementedError


class ScaleRows(Adjustment):
    """A factor for each row that is multiplied into the targets; written back as ones.

    In this way a layer scale (Touvron et al. 2021) becomes part of the matrix before it.
    """

    def adjust(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        return parameter * (tensor[:, None] if parameter.ndim == 2 else tensor)

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.ones_like(tensors[0][..., 0] if tensors[0].ndim > 1 else tensors[0])


def scale_rows(*targets: str) -> Conversion:
    """Multiply a factor for each row into the targets (weight and bias)."""
    return ScaleRows(targets)


class WeightNormDirection(Conversion):
    """Directions whose magnitudes are stored separately: each slice along the last axis is normalised to length 1."""

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor / _slice_norms(tensor)]


def set_weight_direction(target: str) -> Conversion:
    """Set the directions of a normalised weight (Salimans and Kingma 2016), one slice for each index
    of the last axis."""
    return WeightNormDirection((target,))


class WeightNormMagnitude(Adjustment):
    """The magnitude of each slice along the last axis."""

    def adjust(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        return parameter * tensor

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return _slice_norms(tensors[0])


def set_weight_magnitude(target: str) -> Conversion:
    """Multiply in the magnitudes that belong to `set_weight_direction`."""
    return WeightNormMagnitude((target,))


def _slice_norms(tensor: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(tensor, dim=tuple(range(tensor.ndim - 1)), keepdim=True)
    return lengths


@dataclass(frozen=True)
class AddFirstRow(Adjustment):
    """A table of `rows` rows whose first row is added everywhere; written back as zeros."""

    rows: int = 1

    def adjust(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        return parameter + tensor[0]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].new_zeros(self.rows, *tensors[0].shape)


def add_first_row(target: str, rows: int) -> Conversion:
    """Add the first row of a table to a bias, where every position uses that row and no other."""
    return AddFirstRow((target,), rows)


class WriteZeros(AddFirstRow):
    """A tensor that this model does not need but its files must contain; written back as zeros."""

    def adjust(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        return parameter

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return super().to_checkpoint(tensors) if self.rows else torch.zeros_like(tensors[0])


def write_zeros(like: str, rows: int = 0) -> Conversion:
    """Write zeros for a meaningless tensor, of the shape of another or a table of `rows` such rows."""
    return WriteZeros((like,), rows)


@dataclass(frozen=True)
class LegacyName(Conversion):
    """A name that only other, mostly older files use for a tensor; it is read like another operation."""

    conversion: Conversion = Conversion(())


def accept_legacy_name(target: str | Conversion) -> Conversion:
    """Accept a name that is read and never written."""
    like = rename(target) if isinstance(target, str) else target
    return LegacyName(like.targets, like)


@dataclass(frozen=True)
class StackExperts(Conversion):
    """Several experts' tensors in one, matrices as (in, out), with the columns of its matrices interleaved."""

    interleaved: int = 1

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        if len(tensor) * self.interleaved != len(shapes):
            raise ValueError("the number of experts differs")
        parts = [one[..., turn :: self.interleaved].contiguous() for one in tensor for turn in range(self.interleaved)]
        return [part.mT if part.ndim == 2 else part for part in parts]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        parts = [part.mT if part.ndim == 2 else part for part in tensors]
        firsts = range(0, len(parts), self.interleaved)
        return torch.stack([torch.stack(parts[at : at + self.interleaved], dim=-1).flatten(-2) for at in firsts])


def stack_experts(num_experts: int, *targets: str) -> Conversion:
    """Split stacked parameters by expert; `{e}` in the targets is the expert's index."""
    return StackExperts(
        tuple(one.replace("{e}", str(number)) for number in range(num_experts) for one in targets), len(targets)
    )


class Ignore(Conversion):
    """A tensor that this model does not need: a buffer that it computes, or an unused head."""


def ignore() -> Conversion:
    """Ignore a tensor; files are written without it."""
    return Ignore(())
