"""Matrices that stay quantised in blocks: dequantised where they are used, some rows at a time.

A block of 32 elements of a row is stored as integers with one scale, and possibly their minimum: ggml's Q4_0, Q4_1 and
Q8_0, which are defined in ggml's source (ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree

BLOCK_SIZE = 32
_MATMUL_CHUNK = 2**19  # elements; 2 MiB of them stay in the processor's cache between dequantisation and multiplication
_HALF_BLOCK = 16
_UNPACK_CHUNK = 2**16  # elements that are unpacked at a time


class QuantizedTensor(Tensor):
    """A matrix (rows, columns) that presents itself as float32 and is stored in blocks.

    codes: (rows, columns) int8, or (rows, columns / 2) uint8 of two nibbles, the lower one of a column in the first
    half
    of the row, the upper one of the same column in the second half. scale and block_min: (rows, columns / 32) float16;
    an
    element is (code - zero_point) * scale + block_min. As the weight of `functional.linear` and `functional.embedding`,
    and
    when its rows are indexed, it is not dequantised as a whole; every other operation uses the float32 matrix. It
    cannot
    be written to and receives no gradient; the tensor that it is multiplied by does.
    """

    codes: Tensor
    scale: Tensor
    block_min: Tensor | None
    zero_point: int

    @staticmethod
    def __new__(
        cls, codes: Tensor, scale: Tensor, block_min: Tensor | None = None, zero_point: int = 0
    ) -> QuantizedTensor:
        shape = (scale.shape[0], scale.shape[1] * BLOCK_SIZE)
        tensor: QuantizedTensor = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)
        tensor.codes, tensor.scale, tensor.block_min, tensor.zero_point = codes, scale, block_min, zero_point
        return tensor

    def __init__(self, codes: Tensor, scale: Tensor, block_min: Tensor | None = None, zero_point: int = 0) -> None:
        super().__init__()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"QuantizedTensor({tuple(self.shape)}, {8 * self.codes[0].numel() // self.shape[1]} bits)"

    def select_rows(self, index: Tensor | slice) -> QuantizedTensor:
        """Return some rows in their quantised form."""
        least = None if self.block_min is None else self.block_min[index]
        return QuantizedTensor(self.codes[index], self.scale[index], least, self.zero_point)

    def dequantize(self, out: Tensor | None = None) -> Tensor:
        """Return the float32 matrix that the blocks represent, in the first rows of `out` if given."""
        rows, columns = self.shape
        numbers = torch.empty(rows, columns) if out is None else out[:rows]
        if self.codes.dtype == torch.uint8:
            numbers[:, : columns // 2] = self.codes & (_HALF_BLOCK - 1)
            numbers[:, columns // 2 :] = self.codes >> 4
        else:
            numbers.copy_(self.codes)
        if self.zero_point:
            numbers.sub_(self.zero_point)
        blocks = numbers.view(rows, -1, BLOCK_SIZE).mul_(self.scale.float().unsqueeze(-1))
        if self.block_min is not None:
            blocks.add_(self.block_min.float().unsqueeze(-1))
        return numbers

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        by_itself = not kwargs or set(kwargs) <= {"bias"}
        if func is functional.linear and by_itself and isinstance(args[1], QuantizedTensor):
            product = _QuantizedMatmul.apply(args[0], args[1])  # type: ignore[no-untyped-call]
            bias = args[2] if len(args) == 3 else (kwargs or {}).get("bias")
            return product if bias is None else product + bias
        if func is Tensor.contiguous:  # used by everything that writes files
            return args[0].dequantize()
        if func is functional.embedding and isinstance(args[1], QuantizedTensor):
            chosen = args[1].select_rows(args[0].reshape(-1)).dequantize()
            return chosen.view(*args[0].shape, -1)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return args[0].select_rows(slice(None))
        if func is torch.ops.aten.index.Tensor and _is_row_index(args[1]):
            return args[0].select_rows(args[1][0])
        args, kwargs = _pytree.tree_map_only(QuantizedTensor, QuantizedTensor.dequantize, (args, dict(kwargs or {})))
        return func(*args, **kwargs)


def _is_row_index(index: Any) -> bool:
    return len(index) == 1 and index[0] is not None and index[0].dim() == 1 and index[0].dtype == torch.int64


class _QuantizedMatmul(torch.autograd.Function):
    """The product of hidden states (..., columns) and a quantised matrix -> (..., rows), with a small
    buffer for rows."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, matrix: QuantizedTensor) -> Tensor:
        context.matrix = matrix
        rows, columns = matrix.shape
        step = min(rows, max(1, _MATMUL_CHUNK // columns))
        flat, room = hidden.reshape(-1, columns), torch.empty(step, columns)
        product = flat.new_empty(len(flat), rows)
        for first in range(0, rows, step):
            part = slice(first, min(first + step, rows))
            torch.mm(flat, matrix.select_rows(part).dequantize(room).T, out=product[:, part])
        return product.view(*hidden.shape[:-1], rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ context.matrix.dequantize(), None


def dequantize_blocks(format: str, data: Tensor) -> Tensor:
    """Dequantise blocks of Q8_0, Q4_0 or Q4_1 as a file stores them to (blocks, 32) float32. data: uint8.

    The result equals that of `QuantizedTensor.dequantize`, without the intermediate form.
    """
    head = 4 if format == "Q4_1" else 2
    blocks = data.view(-1, head + (BLOCK_SIZE if format == "Q8_0" else _HALF_BLOCK))
    found = torch.empty(len(blocks), BLOCK_SIZE)
    step = _UNPACK_CHUNK // BLOCK_SIZE
    for part, own in zip(torch.split(blocks, step), torch.split(found, step), strict=True):
        scale, codes = _view_as_float16(part[:, :head]).float(), part[:, head:]
        if format == "Q8_0":
            own.copy_(codes.view(torch.int8))
        else:
            own[:, :_HALF_BLOCK], own[:, _HALF_BLOCK:] = codes & (_HALF_BLOCK - 1), codes >> 4
        if format == "Q4_0":
            own.sub_(8)
        own.mul_(scale[:, :1])
        if format == "Q4_1":
            own.add_(scale[:, 1:])
    return found


def unpack_q8_0(data: Tensor, rows: int) -> QuantizedTensor:
    """Unpack blocks of 32 elements: a scale (float16) and one byte for each. data: uint8."""
    blocks = data.view(rows, -1, 2 + BLOCK_SIZE)
    return QuantizedTensor(
        blocks[..., 2:].contiguous().view(torch.int8).flatten(1), _view_as_float16(blocks[..., :2])[..., 0]
    )


def unpack_q4_0(data: Tensor, rows: int) -> QuantizedTensor:
    """Unpack blocks of 32 elements: a scale (float16) and half a byte for each, minus 8; high nibbles
    are the last 16."""
    blocks = data.view(rows, -1, 2 + BLOCK_SIZE // 2)
    return QuantizedTensor(_rearrange_nibbles(blocks[..., 2:]), _view_as_float16(blocks[..., :2])[..., 0], zero_point=8)


def unpack_q4_1(data: Tensor, rows: int) -> QuantizedTensor:
    """Unpack blocks like Q4_0 whose elements are relative to a minimum, which follows the scale."""
    blocks = data.view(rows, -1, 4 + BLOCK_SIZE // 2)
    scale, least = _view_as_float16(blocks[..., :4]).unbind(-1)
    return QuantizedTensor(_rearrange_nibbles(blocks[..., 4:]), scale.contiguous(), least.contiguous())


def _view_as_float16(data: Tensor) -> Tensor:
    """View bytes (..., 2 n) as float16 (..., n), with memory of their own."""
    return data.contiguous().view(torch.float16)


def _rearrange_nibbles(packed: Tensor) -> Tensor:
    """Rearrange nibbles from blocks (rows, blocks, 16) to halves of a row (rows, columns / 2).

    It takes some rows at a time, because large temporary buffers fragment the memory.
    """
    codes = packed.new_empty(len(packed), packed[0].numel())
    step = max(1, _UNPACK_CHUNK // codes.shape[1])
    for first in range(0, len(packed), step):
        part = packed[first : first + step]
        split = torch.stack((part & (_HALF_BLOCK - 1), part >> 4), dim=2).view(len(part), 2, -1)
        torch.bitwise_or(split[:, 1] << 4, split[:, 0], out=codes[first : first + step])
    return codes
