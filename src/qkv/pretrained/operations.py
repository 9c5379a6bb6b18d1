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
class Operation:
    """Moves one tensor of a file to the `targets`, unchanged unless a subclass says otherwise.

    `into` gets the shapes that the targets have here, `out` the tensors they hold.
    """

    targets: tuple[str, ...]

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """The targets' tensors from the file's; each has its own memory, so that training changes one."""
        return [tensor.clone() if number else tensor for number in range(len(self.targets))]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        """The file's tensor from the targets'. Raises CheckpointError for targets that have one place and differ."""
        if any(not torch.equal(one, tensors[0]) for one in tensors[1:]):
            raise CheckpointError(
                f"{' and '.join(self.targets)} differ, and files of this family hold one tensor for them; "
                "save the model as a folder of this package instead"
            )
        return tensors[0]


def same(*targets: str) -> Operation:
    """The tensor as it is; in several places if there are several targets."""
    return Operation(targets)


class Transposed(Operation):
    """A matrix stored as (in, out); vectors stay."""

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.mT if tensor.ndim == 2 else tensor]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].mT if tensors[0].ndim == 2 else tensors[0]


def transposed(target: str) -> Operation:
    """A matrix stored as (in, out)."""
    return Transposed((target,))


@dataclass(frozen=True)
class Stacked(Operation):
    """Several parameters one below the other; `transpose` if the file stores (in, out)."""

    transpose: bool = False

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        rows = tensor.mT if self.transpose and tensor.ndim == 2 else tensor
        return list(torch.split(rows, [shape[0] for shape in shapes]))

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        rows = torch.cat(list(tensors))
        return rows.mT if self.transpose and rows.ndim == 2 else rows


def stacked(*targets: str, transpose: bool = False) -> Operation:
    """Parameters one below the other in one tensor, such as query, key and value."""
    return Stacked(targets, transpose)


@dataclass(frozen=True)
class Grouped(Operation):
    """Query, key and value of each key-value head side by side: its queries, its key, its value."""

    kv_heads: int = 1

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        sizes = [shape[0] // self.kv_heads for shape in shapes]
        groups = tensor.reshape(self.kv_heads, -1, *tensor.shape[1:])
        return [part.flatten(0, 1) for part in torch.split(groups, sizes, dim=1)]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        groups = [part.reshape(self.kv_heads, -1, *part.shape[1:]) for part in tensors]
        return torch.cat(groups, dim=1).flatten(0, 1)


def grouped(*targets: str, kv_heads: int) -> Operation:
    """Query, key and value, taken in turns by key-value head."""
    return Grouped(targets, kv_heads)


class Plus1(Operation):
    """A norm's gain stored as its distance from 1."""

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor + 1]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] - 1


def plus1(target: str) -> Operation:
    """A gain stored as its distance from 1."""
    return Plus1((target,))


@dataclass(frozen=True)
class From(Operation):
    """A table whose first `first` and last `last` rows are never used; written back as zeros."""

    first: int = 0
    last: int = 0

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor[self.first : len(tensor) - self.last]]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        used = tensors[0]
        before, after = (used.new_zeros(unused, *used.shape[1:]) for unused in (self.first, self.last))
        return torch.cat([before, used, after])


def rows_from(first: int, target: str, last: int = 0) -> Operation:
    """A table whose first (and `last`) rows are never used, such as positions that count from 2."""
    return From((target,), first, last)


@dataclass(frozen=True)
class Longer(Operation):
    """A table with `more` rows here than in the file, in any shape; they hold `fill` and are not written back."""

    more: int = 1
    fill: float = 0.0

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        rows = tensor.reshape(-1, *shapes[0][1:])
        return [torch.cat([rows, rows.new_full((self.more, *rows.shape[1:]), self.fill)])]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0][: -self.more]


def longer(target: str, more: int, fill: float = 0.0) -> Operation:
    """A table that has rows here which the file does without, such as a token to begin with."""
    return Longer((target,), more, fill)


@dataclass(frozen=True)
class Unpaired(Operation):
    """Rows whose rotary pairs stand side by side in each of `heads` heads; here they stand half a head apart."""

    heads: int = 1

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.reshape(self.heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).flatten(0, 2)]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        paired = tensors[0].reshape(self.heads, 2, -1, *tensors[0].shape[1:])
        return paired.transpose(1, 2).flatten(0, 2)


def unpaired(target: str, heads: int) -> Operation:
    """Query or key rows with interleaved rotary pairs."""
    return Unpaired((target,), heads)


@dataclass(frozen=True)
class Shaped(Operation):
    """The same numbers in another shape."""

    stored: tuple[int, ...] = ()

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor.reshape(shapes[0])]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].reshape(self.stored)


def shaped(target: str, stored: tuple[int, ...]) -> Operation:
    """A tensor that the file keeps in the shape `stored` (-1: whatever is left)."""
    return Shaped((target,), stored)


class Columns(Operation):
    """Matrices side by side in one."""

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return list(torch.split(tensor, [shape[1] for shape in shapes], dim=1))

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), dim=1)


def columns(*targets: str) -> Operation:
    """Matrices side by side, each for one of several vectors that are read together."""
    return Columns(targets)


@dataclass(frozen=True)
class Scaled(Operation):
    """A tensor that is `by` times as large here."""

    by: float = 1.0

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor * self.by]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] / self.by


def scaled(target: str, by: float) -> Operation:
    """A tensor times a number, such as each part of a mean."""
    return Scaled((target,), by)


class Adjusting(Operation):
    """Changes its targets once they are placed, and has no place of its own."""

    def adjust(self, placed: Tensor, tensor: Tensor) -> Tensor:
        """A target as it was placed -> as the file's tensor makes it."""
        raise NotImplementedError


class RowGain(Adjusting):
    """A number for each row that multiplies the targets once they are placed; written back as ones.

    So a layer scale (Touvron et al. 2021) becomes part of the matrix before it.
    """

    def adjust(self, placed: Tensor, tensor: Tensor) -> Tensor:
        return placed * (tensor[:, None] if placed.ndim == 2 else tensor)

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.ones_like(tensors[0][..., 0] if tensors[0].ndim > 1 else tensors[0])


def row_gain(*targets: str) -> Operation:
    """A gain for each row of the targets (weight and bias), multiplied in."""
    return RowGain(targets)


class UnitSlices(Operation):
    """Directions, whose lengths stand beside them: along the last axis, each slice is made to have length 1."""

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [tensor / _lengths(tensor)]


def unit_slices(target: str) -> Operation:
    """The directions of a normalised weight (Salimans and Kingma 2016), a slice for each place of the last axis."""
    return UnitSlices((target,))


class SliceGain(Adjusting):
    """The length of each slice along the last axis."""

    def adjust(self, placed: Tensor, tensor: Tensor) -> Tensor:
        return placed * tensor

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        return _lengths(tensors[0])


def slice_gain(target: str) -> Operation:
    """The lengths that go with `unit_slices`."""
    return SliceGain((target,))


def _lengths(tensor: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(tensor, dim=tuple(range(tensor.ndim - 1)), keepdim=True)
    return lengths


@dataclass(frozen=True)
class FirstRow(Adjusting):
    """A table of `rows` rows of which the first is added everywhere; written back as zeros."""

    rows: int = 1

    def adjust(self, placed: Tensor, tensor: Tensor) -> Tensor:
        return placed + tensor[0]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].new_zeros(self.rows, *tensors[0].shape)


def first_row(target: str, rows: int) -> Operation:
    """A table whose first row alone is used, and always, so that it becomes part of a bias."""
    return FirstRow((target,), rows)


class Unused(FirstRow):
    """A tensor that says nothing this model needs, but that its files have to hold; written back as zeros."""

    def adjust(self, placed: Tensor, tensor: Tensor) -> Tensor:
        return placed

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        return super().out(tensors) if self.rows else torch.zeros_like(tensors[0])


def unused(like: str, rows: int = 0) -> Operation:
    """A tensor without meaning, of the shape of another, or a table of such rows."""
    return Unused((like,), rows)


@dataclass(frozen=True)
class Older(Operation):
    """A name that only other files have for a tensor, older ones mostly; it is read `like` another operation."""

    like: Operation = Operation(())


def older(target: str | Operation) -> Operation:
    """A tensor under a name that is read and never written."""
    like = same(target) if isinstance(target, str) else target
    return Older(like.targets, like)


@dataclass(frozen=True)
class Experts(Operation):
    """Several experts' tensors in one, matrices as (in, out), the columns of `turns` matrices taken in turns."""

    turns: int = 1

    def into(self, tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        if len(tensor) * self.turns != len(shapes):
            raise ValueError("another number of experts")
        parts = [one[..., turn :: self.turns].contiguous() for one in tensor for turn in range(self.turns)]
        return [part.mT if part.ndim == 2 else part for part in parts]

    def out(self, tensors: Sequence[Tensor]) -> Tensor:
        parts = [part.mT if part.ndim == 2 else part for part in tensors]
        firsts = range(0, len(parts), self.turns)
        return torch.stack([torch.stack(parts[at : at + self.turns], dim=-1).flatten(-2) for at in firsts])


def experts(count: int, *targets: str) -> Operation:
    """The same parameters of each of `count` experts, `{e}` in the targets being its number."""
    return Experts(tuple(one.replace("{e}", str(number)) for number in range(count) for one in targets), len(targets))


class Ignored(Operation):
    """A tensor that says nothing this model needs: a buffer it computes, or a head it was not asked for."""


def ignored() -> Operation:
    """A tensor that is left out; a file is written without it."""
    return Ignored(())
