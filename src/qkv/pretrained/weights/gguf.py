"""GGUF: key-values, a table of tensors, and their data, most often quantised in blocks.

Layout: the GGUF specification of ggml, versions 2 and 3, little-endian. The header is read here, within its bounds
(the reader in the package `gguf` believes the lengths it finds); block sizes and dequantisation are that package's, but
for the simplest kinds of blocks, which torch turns into numbers several times as fast.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkv.errors import MissingExtraError
from qkv.pretrained import quantised
from qkv.pretrained.weights.cursor import Cursor, as_tensor, elements
from qkv.pretrained.weights.mapping import Entry, Weights

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_NESTING = 4  # lists in lists; the specification sets no limit, Python's recursion does
_RANK = 4  # GGML_MAX_DIMS
_ROW = 4096  # numbers; the package takes 16 rows at a time, which is slow for short ones
_PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


def read(path: Path, *, blocks: bool = False) -> Weights:
    """Map a GGUF file: tensors under their names in shapes as torch has them (rows first), dequantised when read.

    Quantised tensors come as float32, or with `blocks` as `Quantised` where there is a simple kind of blocks and a
    matrix; the others as stored. metadata: the file's key-values; lists of numbers are
    NumPy arrays. Raises CheckpointError for anything that is not whole, MissingExtraError without the package `gguf`.
    """
    library = _library()
    cursor = Cursor(path)
    cursor.take(4, "the magic")
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        raise cursor.fault(f"GGUF version {version}", "2 or 3, little-endian", "Convert the model again.", 4)
    tensors = cursor.count("Q", 24, "tensors")
    metadata: dict[str, Any] = {}
    for _ in range(cursor.count("Q", 13, "key-values")):
        at = cursor.at
        key = _text(cursor, "a key")
        if key in metadata:
            raise cursor.fault(f"a second key {key!r}", "each key once", at=at)
        metadata[key] = _value(cursor, cursor.number("I", f"the type of {key!r}"), key)
    if metadata.get("split.count", 1) not in (0, 1):
        raise cursor.fault("one part of several", "a whole model", "Join the parts with llama-gguf-split --merge.", 0)
    return Weights(path, _entries(cursor, library, tensors, metadata, blocks), metadata)


def _library() -> Any:
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "reading GGUF needs gguf, which is not installed; install it with: pip install 'qkv[gguf]'"
        ) from error


def _text(cursor: Cursor, what: str) -> str:
    return cursor.text(cursor.number("Q", f"the length of {what}"), what)


def _value(cursor: Cursor, kind: int, key: str, nesting: int = 0) -> Any:
    if kind in _NUMBERS:
        return cursor.number(_NUMBERS[kind], f"the value of {key!r}")
    if kind == _STRING:
        return _text(cursor, f"the value of {key!r}")
    if kind != _ARRAY or nesting == _NESTING:
        raise cursor.fault(f"{key!r} has the type {kind}, {nesting} lists deep", f"a type up to 12, {_NESTING} deep")
    kind = cursor.number("I", f"the type of the list {key!r}")
    if kind == _STRING:
        return cursor.texts(cursor.count("Q", 8, f"entries of {key!r}"), f"the list {key!r}'s text")
    if kind not in _NUMBERS:
        count = cursor.count("Q", 12, f"entries of {key!r}")
        return [_value(cursor, kind, key, nesting + 1) for _ in range(count)]
    dtype = np.dtype(_NUMBERS[kind]).newbyteorder("<")
    count = cursor.count("Q", dtype.itemsize, f"entries of {key!r}")
    return cursor.take(count * dtype.itemsize, f"the list {key!r}").view(dtype)


def _entries(cursor: Cursor, library: Any, count: int, metadata: dict[str, Any], blocks: bool) -> dict[str, Entry]:
    found: dict[str, tuple[Any, tuple[int, ...], int, int]] = {}
    for _ in range(count):
        at = cursor.at
        name = _text(cursor, "a tensor's name")
        if name in found:
            raise cursor.fault(f"a second tensor {name!r}", "each name once", at=at)
        found[name] = _tensor(cursor, library, name)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.fault(f"the alignment is {alignment!r}", "a power of two")
    start = cursor.at + -cursor.at % alignment
    end, entries = start, {}
    for name, (kind, shape, offset, size) in sorted(found.items(), key=lambda item: item[1][2]):
        at = start + offset
        if offset % alignment or at < end or at + size > len(cursor.bytes):
            raise cursor.fault(
                f"{name!r} lies at bytes {at:,} to {at + size:,}",
                f"a place between {end:,} and {len(cursor.bytes):,}, aligned to {alignment}",
            )
        end = at + size
        load: Callable[[], Tensor]
        if kind.name in _PLAIN:
            load = functools.partial(as_tensor, cursor.bytes[at:end], _PLAIN[kind.name], shape)
        elif blocks and kind.name in _SIMPLE and len(shape) == 2 and size:
            load = functools.partial(_kept, cursor, at, end, kind, shape[0])
        else:
            load = functools.partial(_widened, library, cursor, at, end, kind, shape)
        entries[name] = Entry(shape, load)
    if len(cursor.bytes) - end >= alignment and entries:
        cursor.at = end
        cursor.end()
    return {name: entries[name] for name in found}


def _tensor(cursor: Cursor, library: Any, name: str) -> tuple[Any, tuple[int, ...], int, int]:
    at = cursor.at
    rank = cursor.number("I", f"the rank of {name!r}")
    if not 1 <= rank <= _RANK:
        raise cursor.fault(f"{name!r} has the rank {rank}", f"1 to {_RANK}", at=at)
    shape = cursor.numbers("Q", rank, f"the shape of {name!r}")[::-1]  # the file says the fastest dimension first
    number, offset = cursor.number("I", f"the type of {name!r}"), cursor.number("Q", f"the place of {name!r}")
    try:
        kind = library.GGMLQuantizationType(number)
    except ValueError as error:
        advice = "Upgrade the package gguf, or convert the model to a common type such as Q8_0."
        raise cursor.fault(f"{name!r} has the unknown type {number}", "a type of ggml", advice, at) from error
    block, size = library.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise cursor.fault(f"{name!r} has rows of {shape[-1]:,}", f"whole blocks of {block} ({kind.name})", at=at)
    return kind, shape, offset, elements(shape) // block * size


def _kept(cursor: Cursor, start: int, end: int, kind: Any, rows: int) -> Tensor:
    matrix = _SIMPLE[kind.name](torch.from_numpy(cursor.bytes[start:end]), rows)
    cursor.forget(start, end)  # read once: the file's own pages are not wanted beside the copy
    return matrix


def _widened(library: Any, cursor: Cursor, start: int, end: int, kind: Any, shape: tuple[int, ...]) -> Tensor:
    numbers = _dequantised(library, cursor.bytes[start:end], kind, shape)
    cursor.forget(start, end)
    return numbers


def _dequantised(library: Any, data: NDArray[np.uint8], kind: Any, shape: tuple[int, ...]) -> Tensor:
    if not data.size:
        return torch.empty(shape)
    if kind.name in _SIMPLE:
        return quantised.numbers(kind.name, torch.from_numpy(data)).view(shape)
    rows = elements(shape[:-1])
    while rows % 2 == 0 and elements(shape) // rows < _ROW:
        rows //= 2
    with np.errstate(all="ignore"):  # a damaged scale may be infinite; the numbers are the file's, not ours to mend
        return torch.from_numpy(library.quants.dequantize(data.reshape(rows, -1), kind)).view(shape)


_SIMPLE = {"Q8_0": quantised.q8_0, "Q4_0": quantised.q4_0, "Q4_1": quantised.q4_1}
