"""safetensors: one file, checked by the library of that name, and mapped here so that memory can be given back."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qkv.pretrained.weights.cursor import Cursor, as_tensor
from qkv.pretrained.weights.mapping import Entry, Weights, fault

_TYPES = {
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


def read(path: Path) -> Weights:
    """Map a safetensors file: its own names, tensors as stored; metadata is its `__metadata__`.

    Raises CheckpointError for anything that is not whole.
    """
    try:
        checked: Any = safe_open(path, framework="numpy")  # the header: types, shapes and places, without gaps
        with checked as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise fault(path, f"not a whole safetensors file ({error})", "one") from error
    cursor = Cursor(path)
    said = json.loads(cursor.text(cursor.number("Q", "the header's length"), "the header"))
    return Weights(path, {name: _entry(cursor, name, said[name]) for name in names}, metadata)


def _entry(cursor: Cursor, name: str, said: dict[str, Any]) -> Entry:
    begin, end = (cursor.at + offset for offset in said["data_offsets"])
    shape = tuple(said["shape"])
    return Entry(shape, functools.partial(_load, cursor, name, said["dtype"], shape, begin, end))


def _load(cursor: Cursor, name: str, kind: str, shape: tuple[int, ...], begin: int, end: int) -> Tensor:
    if kind not in _TYPES:
        raise fault(cursor.path, f"{name!r} holds numbers of the type {kind}", f"one of {', '.join(_TYPES)}")
    return as_tensor(cursor.bytes[begin:end], _TYPES[kind], shape)
