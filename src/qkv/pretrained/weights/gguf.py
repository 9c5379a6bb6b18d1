"""GGUF: key-values, a table of tensors, and their data, usually quantised in blocks.

Layout: the GGUF specification of ggml, versions 2 and 3, little-endian. The header is read here with bounds checks,
because the reader in the package `gguf` trusts the lengths that it finds. Block sizes and dequantisation come from
that package, except for the simplest kinds of blocks, which torch dequantises several times as fast.
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
from qkv.pretrained import quantized_tensor
from qkv.pretrained.weights.cursor import Cursor, count_elements, view_as_tensor
from qkv.pretrained.weights.lazy_weights import LazyWeights, TensorEntry

_NUMBER_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4  # nested lists; the specification sets no limit, Python's recursion does
_MAX_RANK = 4  # GGML_MAX_DIMS
_MIN_ROW_SIZE = 4096  # elements; the package takes 16 rows at a time, which is slow for short ones
_PLAIN_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


def read(path: Path, *, keep_quantized: bool = False) -> LazyWeights:
    """Map a GGUF file: tensors under their names with torch's shapes (rows first), dequantised on access.

    Quantised tensors become float32 or, with `keep_quantized`, a `QuantizedTensor` if they are matrices in simple
    blocks;
    others stay as stored. metadata: the file's key-values; lists of numbers are NumPy arrays. Raises CheckpointError
    for a
    damaged file and MissingExtraError without the package `gguf`.
    """
    library = _import_gguf()
    cursor = Cursor(path)
    cursor.read_bytes(4, "the magic")
    version = cursor.read_number("I", "the version")
    if version not in (2, 3):
        raise cursor.make_error(f"GGUF version {version}", "2 or 3, little-endian", "Convert the model again.", 4)
    tensors = cursor.read_count("Q", 24, "tensors")
    metadata: dict[str, Any] = {}
    for _ in range(cursor.read_count("Q", 13, "key-values")):
        at = cursor.offset
        key = _read_text(cursor, "a key")
        if key in metadata:
            raise cursor.make_error(f"a second key {key!r}", "each key once", offset=at)
        metadata[key] = _read_value(cursor, cursor.read_number("I", f"the type of {key!r}"), key)
    if metadata.get("split.count", 1) not in (0, 1):
        raise cursor.make_error(
            "one part of several", "a whole model", "Join the parts with llama-gguf-split --merge.", 0
        )
    return LazyWeights(path, _read_entries(cursor, library, tensors, metadata, keep_quantized), metadata)


def _import_gguf() -> Any:
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "reading GGUF needs gguf, which is not installed; install it with: pip install 'qkv[gguf]'"
        ) from error


def _read_text(cursor: Cursor, description: str) -> str:
    return cursor.read_text(cursor.read_number("Q", f"the length of {description}"), description)


def _read_value(cursor: Cursor, kind: int, key: str, nesting: int = 0) -> Any:
    if kind in _NUMBER_FORMATS:
        return cursor.read_number(_NUMBER_FORMATS[kind], f"the value of {key!r}")
    if kind == _STRING:
        return _read_text(cursor, f"the value of {key!r}")
    if kind != _ARRAY or nesting == _MAX_NESTING:
        raise cursor.make_error(
            f"{key!r} has the type {kind}, {nesting} lists deep", f"a type up to 12, {_MAX_NESTING} deep"
        )
    kind = cursor.read_number("I", f"the type of the list {key!r}")
    if kind == _STRING:
        return cursor.read_texts(cursor.read_count("Q", 8, f"entries of {key!r}"), f"the list {key!r}'s text")
    if kind not in _NUMBER_FORMATS:
        count = cursor.read_count("Q", 12, f"entries of {key!r}")
        return [_read_value(cursor, kind, key, nesting + 1) for _ in range(count)]
    dtype = np.dtype(_NUMBER_FORMATS[kind]).newbyteorder("<")
    count = cursor.read_count("Q", dtype.itemsize, f"entries of {key!r}")
    return cursor.read_bytes(count * dtype.itemsize, f"the list {key!r}").view(dtype)


def _read_entries(
    cursor: Cursor, library: Any, count: int, metadata: dict[str, Any], keep_quantized: bool
) -> dict[str, TensorEntry]:
    found: dict[str, tuple[Any, tuple[int, ...], int, int]] = {}
    for _ in range(count):
        at = cursor.offset
        name = _read_text(cursor, "a tensor's name")
        if name in found:
            raise cursor.make_error(f"a second tensor {name!r}", "each name once", offset=at)
        found[name] = _read_tensor_info(cursor, library, name)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.make_error(f"the alignment is {alignment!r}", "a power of two")
    start = cursor.offset + -cursor.offset % alignment
    end, entries = start, {}
    for name, (kind, shape, offset, size) in sorted(found.items(), key=lambda item: item[1][2]):
        at = start + offset
        if offset % alignment or at < end or at + size > len(cursor.bytes):
            raise cursor.make_error(
                f"{name!r} lies at bytes {at:,} to {at + size:,}",
                f"a place between {end:,} and {len(cursor.bytes):,}, aligned to {alignment}",
            )
        end = at + size
        load: Callable[[], Tensor]
        if kind.name in _PLAIN_DTYPES:
            load = functools.partial(view_as_tensor, cursor.bytes[at:end], _PLAIN_DTYPES[kind.name], shape)
        elif keep_quantized and kind.name in _BLOCK_UNPACKERS and len(shape) == 2 and size:
            load = functools.partial(_load_quantized, cursor, at, end, kind, shape[0])
        else:
            load = functools.partial(_load_dequantized, library, cursor, at, end, kind, shape)
        entries[name] = TensorEntry(shape, load)
    if len(cursor.bytes) - end >= alignment and entries:
        cursor.offset = end
        cursor.require_end()
    return {name: entries[name] for name in found}


def _read_tensor_info(cursor: Cursor, library: Any, name: str) -> tuple[Any, tuple[int, ...], int, int]:
    at = cursor.offset
    rank = cursor.read_number("I", f"the rank of {name!r}")
    if not 1 <= rank <= _MAX_RANK:
        raise cursor.make_error(f"{name!r} has the rank {rank}", f"1 to {_MAX_RANK}", offset=at)
    shape = cursor.read_numbers("Q", rank, f"the shape of {name!r}")[::-1]  # the file lists the fastest dimension first
    number, offset = cursor.read_number("I", f"the type of {name!r}"), cursor.read_number("Q", f"the place of {name!r}")
    try:
        kind = library.GGMLQuantizationType(number)
    except ValueError as error:
        advice = "Upgrade the package gguf, or convert the model to a common type such as Q8_0."
        raise cursor.make_error(f"{name!r} has the unknown type {number}", "a type of ggml", advice, at) from error
    block, size = library.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise cursor.make_error(
            f"{name!r} has rows of {shape[-1]:,}", f"whole blocks of {block} ({kind.name})", offset=at
        )
    return kind, shape, offset, count_elements(shape) // block * size


def _load_quantized(cursor: Cursor, start: int, end: int, kind: Any, rows: int) -> Tensor:
    matrix = _BLOCK_UNPACKERS[kind.name](torch.from_numpy(cursor.bytes[start:end]), rows)
    cursor.release_memory(start, end)  # read once: the file's own pages are not needed besides the copy
    return matrix


def _load_dequantized(library: Any, cursor: Cursor, start: int, end: int, kind: Any, shape: tuple[int, ...]) -> Tensor:
    numbers = _dequantize(library, cursor.bytes[start:end], kind, shape)
    cursor.release_memory(start, end)
    return numbers


def _dequantize(library: Any, data: NDArray[np.uint8], kind: Any, shape: tuple[int, ...]) -> Tensor:
    if not data.size:
        return torch.empty(shape)
    if kind.name in _BLOCK_UNPACKERS:
        return quantized_tensor.dequantize_blocks(kind.name, torch.from_numpy(data)).view(shape)
    rows = count_elements(shape[:-1])
    while rows % 2 == 0 and count_elements(shape) // rows < _MIN_ROW_SIZE:
        rows //= 2
    with np.errstate(all="ignore"):  # a damaged scale may be infinite; it is the file's number, not ours to change
        return torch.from_numpy(library.quants.dequantize(data.reshape(rows, -1), kind)).view(shape)


_BLOCK_UNPACKERS = {
    "Q8_0": quantized_tensor.unpack_q8_0,
    "Q4_0": quantized_tensor.unpack_q4_0,
    "Q4_1": quantized_tensor.unpack_q4_1,
}
