"""How a published file's tensors become our parameters, and back: a small vocabulary of reversible operations.

A family's table maps the names in its *files* to targets. A name without a suffix stands for everything under it, so
"h.{n}.ln_1" -> "decoder.blocks.{n}.self_attention_residual.before" moves weight and bias; `{n}` stands for a number.
A target is the name it has here, or an operation on one or more of these. Every operation knows its inverse, so the
same table writes the family's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkv.errors import CheckpointError


@dataclass(frozen=True)
class Conversion:
    """Moves one tensor of a file to the `targets`, unchanged unless a subclass says otherwise.

    `to_parameters` gets the shapes that the targets have here, `to_checkpoint` the tensors they hold.
    """

    targets: tuple[str, ...]

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """The targets' tensors from the file's; each has its own memory, so that training changes one."""
        return [tensor.clone() if number else tensor for number in range(len(self.targets))]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        """The file's tensor from the targets'. Raises CheckpointError for targets that have one place and differ."""
        if any(not torch.equal(one, tensors[0]) for one in tensors[1:]):
            raise CheckpointError(
                f"{' and '.join(self.targets)} differ, and files of this family hold one tensor for them; "
                "save the model as a folder of this package instead"
            )
        return tensors[0]


def rename(*targets: str) -> Conversion:
    """The tensor as it is; in several places if there are several targets."""
    return Conversion(targets)


class Transpose(Conversion):
    """A matrix stored as (in, out); vectors stay."""

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.mT if tensor.ndim == 2 else tensor]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].mT if tensors[0].ndim == 2 else tensors[0]


def transpose(target: str) -> Conversion:
    """A matrix stored as (in, out)."""
    return Transpose((target,))


@dataclass(frozen=True)
class ConcatenateRows(Conversion):
    """Several parameters one below the other; `transpose` if the file stores (in, out)."""

    transpose: bool = False

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        rows = tensor.mT if self.transpose and tensor.ndim == 2 else tensor
        return list(torch.split(rows, [shape[0] for shape in shapes]))

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        rows = torch.cat(list(tensors))
        return rows.mT if self.transpose and rows.ndim == 2 else rows


def concatenate_rows(*targets: str, transpose: bool = False) -> Conversion:
    """Parameters one below the other in one tensor, such as query, key and value."""
    return ConcatenateRows(targets, transpose)


@dataclass(frozen=True)
class InterleaveHeads(Conversion):
    """Query, key and value of each key-value head side by side: its queries, its key, its value."""

    kv_heads: int = 1

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        sizes = [shape[0] // self.kv_heads for shape in shapes]
        groups = tensor.reshape(self.kv_heads, -1, *tensor.shape[1:])
        return [part.flatten(0, 1) for part in torch.split(groups, sizes, dim=1)]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        groups = [part.reshape(self.kv_heads, -1, *part.shape[1:]) for part in tensors]
        return torch.cat(groups, dim=1).flatten(0, 1)


def interleave_heads(*targets: str, kv_heads: int) -> Conversion:
    """Query, key and value, taken in turns by key-value head."""
    return InterleaveHeads(targets, kv_heads)


class AddOne(Conversion):
    """A norm's gain stored as its distance from 1."""

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor + 1]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] - 1


def add_one(target: str) -> Conversion:
    """A gain stored as its distance from 1."""
    return AddOne((target,))


@dataclass(frozen=True)
class SkipRows(Conversion):
    """A table whose first `first` and last `last` rows are never used; written back as zeros."""

    leading: int = 0
    trailing: int = 0

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor[self.leading : len(tensor) - self.trailing]]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        used = tensors[0]
        before, after = (used.new_zeros(unused, *used.shape[1:]) for unused in (self.leading, self.trailing))
        return torch.cat([before, used, after])


def skip_rows(leading: int, target: str, trailing: int = 0) -> Conversion:
    """A table whose first (and `last`) rows are never used, such as positions that count from 2."""
    return SkipRows((target,), leading, trailing)


@dataclass(frozen=True)
class AppendRows(Conversion):
    """A table with `more` rows here than in the file, in any shape; they hold `fill` and are not written back."""

    count: int = 1
    fill_value: float = 0.0

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        rows = tensor.reshape(-1, *shapes[0][1:])
        return [torch.cat([rows, rows.new_full((self.count, *rows.shape[1:]), self.fill_value)])]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0][: -self.count]


def append_rows(target: str, count: int, fill_value: float = 0.0) -> Conversion:
    """A table that has rows here which the file does without, such as a token to begin with."""
    return AppendRows((target,), count, fill_value)


@dataclass(frozen=True)
class PermuteForRotary(Conversion):
    """Rows whose rotary pairs stand side by side in each of `heads` heads; here they stand half a head apart."""

    heads: int = 1

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.reshape(self.heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).flatten(0, 2)]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        paired = tensors[0].reshape(self.heads, 2, -1, *tensors[0].shape[1:])
        return paired.transpose(1, 2).flatten(0, 2)


def permute_for_rotary(target: str, heads: int) -> Conversion:
    """Query or key rows with interleaved rotary pairs."""
    return PermuteForRotary((target,), heads)


@dataclass(frozen=True)
class Reshape(Conversion):
    """The same numbers in another shape."""

    stored_shape: tuple[int, ...] = ()

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.reshape(shapes[0])]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].reshape(self.stored_shape)


def reshape(target: str, stored_shape: tuple[int, ...]) -> Conversion:
    """A tensor that the file keeps in the shape `stored` (-1: whatever is left)."""
    return Reshape((target,), stored_shape)


class ConcatenateColumns(Conversion):
    """Matrices side by side in one."""

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return list(torch.split(tensor, [shape[1] for shape in shapes], dim=1))

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), dim=1)


def concatenate_columns(*targets: str) -> Conversion:
    """Matrices side by side, each for one of several vectors that are read together."""
    return ConcatenateColumns(targets)


@dataclass(frozen=True)
class Scale(Conversion):
    """A tensor that is `by` times as large here."""

    factor: float = 1.0

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor * self.factor]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] / self.factor


def scale(target: str, factor: float) -> Conversion:
    """A tensor times a number, such as each part of a mean."""
    return Scale((target,), factor)


class Adjustment(Conversion):
    """Changes its targets once they are placed, and has no place of its own."""

    def adjust(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        """A target as it was placed -> as the file's tensor makes it."""
        raise NotImplementedError


class ScaleRows(Adjustment):
    """A number for each row that multiplies the targets once they are placed; written back as ones.

    So a layer scale (Touvron et al. 2021) becomes part of the matrix before it.
    """

    def adjust(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        return parameter * (tensor[:, None] if parameter.ndim == 2 else tensor)

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.ones_like(tensors[0][..., 0] if tensors[0].ndim > 1 else tensors[0])


def scale_rows(*targets: str) -> Conversion:
    """A gain for each row of the targets (weight and bias), multiplied in."""
    return ScaleRows(targets)


class WeightNormDirection(Conversion):
    """Directions, whose lengths stand beside them: along the last axis, each slice is made to have length 1."""

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor / _slice_norms(tensor)]


def set_weight_direction(target: str) -> Conversion:
    """The directions of a normalised weight (Salimans and Kingma 2016), a slice for each place of the last axis."""
    return WeightNormDirection((target,))


class WeightNormMagnitude(Adjustment):
    """The length of each slice along the last axis."""

    def adjust(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        return parameter * tensor

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return _slice_norms(tensors[0])


def set_weight_magnitude(target: str) -> Conversion:
    """The lengths that go with `set_weight_direction`."""
    return WeightNormMagnitude((target,))


def _slice_norms(tensor: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(tensor, dim=tuple(range(tensor.ndim - 1)), keepdim=True)
    return lengths


@dataclass(frozen=True)
class AddFirstRow(Adjustment):
    """A table of `rows` rows of which the first is added everywhere; written back as zeros."""

    rows: int = 1

    def adjust(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        return parameter + tensor[0]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].new_zeros(self.rows, *tensors[0].shape)


def add_first_row(target: str, rows: int) -> Conversion:
    """A table whose first row alone is used, and always, so that it becomes part of a bias."""
    return AddFirstRow((target,), rows)


class WriteZeros(AddFirstRow):
    """A tensor that says nothing this model needs, but that its files have to hold; written back as zeros."""

    def adjust(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        return parameter

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        return super().to_checkpoint(tensors) if self.rows else torch.zeros_like(tensors[0])


def write_zeros(like: str, rows: int = 0) -> Conversion:
    """A tensor without meaning, of the shape of another, or a table of such rows."""
    return WriteZeros((like,), rows)


@dataclass(frozen=True)
class LegacyName(Conversion):
    """A name that only other files have for a tensor, older ones mostly; it is read `like` another operation."""

    conversion: Conversion = Conversion(())


def accept_legacy_name(target: str | Conversion) -> Conversion:
    """A tensor under a name that is read and never written."""
    like = rename(target) if isinstance(target, str) else target
    return LegacyName(like.targets, like)


@dataclass(frozen=True)
class StackExperts(Conversion):
    """Several experts' tensors in one, matrices as (in, out), the columns of `turns` matrices taken in turns."""

    interleaved: int = 1

    def to_parameters(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        if len(tensor) * self.interleaved != len(shapes):
            raise ValueError("another number of experts")
        parts = [one[..., turn :: self.interleaved].contiguous() for one in tensor for turn in range(self.interleaved)]
        return [part.mT if part.ndim == 2 else part for part in parts]

    def to_checkpoint(self, tensors: Sequence[Tensor]) -> Tensor:
        parts = [part.mT if part.ndim == 2 else part for part in tensors]
        firsts = range(0, len(parts), self.interleaved)
        return torch.stack([torch.stack(parts[at : at + self.interleaved], dim=-1).flatten(-2) for at in firsts])


def stack_experts(num_experts: int, *targets: str) -> Conversion:
    """The same parameters of each of `count` experts, `{e}` in the targets being its number."""
    return StackExperts(
        tuple(one.replace("{e}", str(number)) for number in range(num_experts) for one in targets), len(targets)
    )


class Ignore(Conversion):
    """A tensor that says nothing this model needs: a buffer it computes, or a head it was not asked for."""


def ignore() -> Conversion:
    """A tensor that is left out; a file is written without it."""
    return Ignore(())
