"""Models of Marian: binary files of version 1, and `.npz` files.

Layout of the binary as Marian's `binary.cpp` writes it, little-endian: version u64; number of items u64; per item the
lengths of its name, its shape and its data and its type, u64 each; all names, terminated by zero bytes; all shapes,
i32; a u64 count of padding bytes and these; all data.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkv.pretrained.weights.cursor import Cursor, count_elements, view_as_tensor
from qkv.pretrained.weights.lazy_weights import LazyWeights, TensorEntry

SETTINGS_KEY = "special:model.yml"
_DTYPES = {
    0x0101: torch.int8,
    0x0102: torch.int16,
    0x0104: torch.int32,
    0x0108: torch.int64,
    0x0201: torch.uint8,
    0x0402: torch.float16,
    0x0404: torch.float32,
    0x0408: torch.float64,
}
_QUANTIZED_DTYPES = {
    0x4101: torch.int8,
    0x4102: torch.int16,
}  # intgemm, in the order that is the same on all processors
_PADDING = 256  # Marian allocates memory in such units, and items are written at their allocated length


def read(path: Path) -> LazyWeights:
    """Map a Marian binary: matrices under Marian's names, (inputs, outputs) as Marian multiplies them (x @ W).

    Quantised matrices become float32, transposed where the file stores them transposed (all but the embeddings, whose
    names contain "Wemb"). metadata: "special:model.yml", the model's settings as YAML text, if there are any.
    Raises CheckpointError for a damaged file.
    """
    cursor = Cursor(path)
    version = cursor.read_number("Q", "the version")
    if version != 1:
        raise cursor.make_error(f"binary version {version}", "1", "Convert the model again.", 0)
    headers = [cursor.read_numbers("Q", 4, "an item") for _ in range(cursor.read_count("Q", 32, "items"))]
    names = [_read_name(cursor, length) for length, _, _, _ in headers]
    if len(set(names)) != len(names):
        raise cursor.make_error("two items have the same name", "each name once")
    shapes = [
        cursor.read_numbers("i", length, f"the shape of {name!r}")
        for name, (_, _, length, _) in zip(names, headers, strict=True)
    ]
    cursor.read_bytes(cursor.read_number("Q", "the length of the padding"), "the padding")
    entries: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for name, (_, kind, _, size), shape in zip(names, headers, shapes, strict=True):
        if name == SETTINGS_KEY:
            metadata[name] = cursor.read_text(size, "the model's settings").rstrip("\0")
        else:
            entries[name] = _read_item(cursor, name, kind, shape, size)
    cursor.require_end()
    return LazyWeights(path, entries, metadata)


def _read_name(cursor: Cursor, length: int) -> str:
    at = cursor.offset
    name = cursor.read_text(length, "a name")
    if not name.endswith("\0"):
        raise cursor.make_error("a name does not end in a zero byte", "one that does", offset=at)
    return name[:-1]


def _read_item(cursor: Cursor, name: str, kind: int, shape: tuple[int, ...], size: int) -> TensorEntry:
    at = cursor.offset
    dtype = _DTYPES.get(kind) or _QUANTIZED_DTYPES.get(kind)
    if dtype is None:
        raise cursor.make_error(
            f"{name!r} has the type {kind:#06x}",
            "numbers, or intgemm8 or intgemm16 for all processors",
            "Convert the model with marian-conv without packing it for one processor.",
        )
    quantised = kind in _QUANTIZED_DTYPES
    if not shape or min(shape) < 0 or (quantised and len(shape) != 2):
        raise cursor.make_error(f"{name!r} has the shape {shape}", "a matrix" if quantised else "dimensions from 0 on")
    used = count_elements(shape) * dtype.itemsize
    if not 0 <= size - used - 4 * quantised < _PADDING:
        raise cursor.make_error(f"{name!r} of shape {shape} has {size:,} bytes", f"{used + 4 * quantised:,}")
    data = cursor.read_bytes(size, f"the data of {name!r}")
    if not quantised:
        return TensorEntry(shape, functools.partial(view_as_tensor, data[:used], dtype, shape))
    multiplier = float(data[used : used + 4].view("<f4")[0])
    if not np.isfinite(multiplier) or multiplier <= 0:
        raise cursor.make_error(f"{name!r} was multiplied by {multiplier}", "a positive number", offset=at + used)
    return TensorEntry(shape, functools.partial(_dequantize, data[:used], dtype, shape, multiplier, "Wemb" not in name))


def _dequantize(
    data: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...], multiplier: float, transposed: bool
) -> Tensor:
    matrix = view_as_tensor(data, dtype, shape[::-1] if transposed else shape).to(torch.float32).div_(multiplier)
    return matrix.T if transposed else matrix
