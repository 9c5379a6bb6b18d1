"""safetensors: one file, checked by the library of that name, and mapped here so that memory can be released."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qkv.pretrained.weights.cursor import Cursor, view_as_tensor
from qkv.pretrained.weights.lazy_weights import LazyWeights, TensorEntry, make_error

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read(path: Path) -> LazyWeights:
    """Map a safetensors file: its own names, tensors as stored; metadata is its `__metadata__`.

    Raises CheckpointError for a damaged file.
    """
    try:
        checked: Any = safe_open(path, framework="numpy")  # the header: types, shapes and offsets, without gaps
        with checked as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise make_error(path, f"not a whole safetensors file ({error})", "one") from error
    cursor = Cursor(path)
    header = json.loads(cursor.read_text(cursor.read_number("Q", "the header's length"), "the header"))
    return LazyWeights(path, {name: _build_entry(cursor, name, header[name]) for name in names}, metadata)


def _build_entry(cursor: Cursor, name: str, header: dict[str, Any]) -> TensorEntry:
    begin, end = (cursor.offset + offset for offset in header["data_offsets"])
    shape = tuple(header["shape"])
    return TensorEntry(shape, functools.partial(_load, cursor, name, header["dtype"], shape, begin, end))


def _load(cursor: Cursor, name: str, dtype: str, shape: tuple[int, ...], begin: int, end: int) -> Tensor:
    if dtype not in _DTYPES:
        raise make_error(cursor.path, f"{name!r} holds numbers of the type {dtype}", f"one of {', '.join(_DTYPES)}")
    return view_as_tensor(cursor.bytes[begin:end], _DTYPES[dtype], shape)
