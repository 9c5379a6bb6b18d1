"""The numbers of a page: raw little-endian blocks, and descriptions of the position of each one."""

from __future__ import annotations

from typing import Any, Literal

import numpy
import torch
from torch import Tensor

StorageDtype = Literal["float32", "float16", "int8"]
"""The storage of real numbers. int8: each last dimension has its own scale, its largest entry / 127."""

Block = dict[str, Any]
"""The position of a tensor: {"offset": its first byte, "dtype", "shape"} and, for int8, "scale", the block of
scales."""

_ALIGNMENT = 8  # so that every kind of typed array can view the bytes


class Blocks:
    """Blocks that are written one after the other; a tensor that several places share is stored once."""

    def __init__(self, dtype: StorageDtype = "float32") -> None:
        self.dtype: StorageDtype = dtype
        self._parts: list[bytes] = []
        self._size = 0
        self._offsets: dict[tuple[str, bytes], int] = {}

    def add(self, tensor: Tensor, dtype: StorageDtype | None = None) -> Block:
        """Store a tensor in the dtype of the blocks by default, bool and uint8 as uint8, and return its position."""
        tensor = tensor.detach().cpu()
        if tensor.dtype in (torch.bool, torch.uint8):
            return self._add(tensor.to(torch.uint8), "uint8")
        dtype = dtype or self.dtype
        if dtype != "int8":
            return self._add(tensor.to(getattr(torch, dtype)), dtype)
        steps, whole = quantize_int8(tensor)
        return {**self._add(whole, "int8"), "scale": self._add(steps, "float16")}

    def to_bytes(self) -> bytes:
        """Return all blocks."""
        return b"".join(self._parts)

    def _add(self, tensor: Tensor, dtype: str) -> Block:
        raw = tensor.contiguous().numpy().astype(numpy.dtype(dtype).newbyteorder("<")).tobytes()
        key = dtype, raw
        if key not in self._offsets:
            self._offsets[key] = self._size
            padded = raw + bytes(-len(raw) % _ALIGNMENT)
            self._parts.append(padded)
            self._size += len(padded)
        return {"offset": self._offsets[key], "dtype": dtype, "shape": list(tensor.shape)}


def quantize_int8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tensor (..., d) as steps (...) float16 and multiples of them (..., d) int8."""
    tensor = tensor.float()
    largest = tensor.abs().amax(dim=-1)
    # float16 rounds: a step that is a little too small would need a multiple beyond 127
    steps = (largest / 127).clamp(max=6e4).to(torch.float16)
    divisor = steps.float().clamp(min=torch.finfo(torch.float32).tiny)
    return steps, (tensor / divisor.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)


def round_trip(tensor: Tensor, dtype: StorageDtype) -> Tensor:
    """Return a tensor, as float32, after it was stored in a dtype."""
    if dtype == "int8":
        steps, whole = quantize_int8(tensor)
        return whole.float() * steps.float().unsqueeze(-1)
    return tensor.to(getattr(torch, dtype)).float()
