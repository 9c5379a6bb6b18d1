"""NumPy's `.npz`: a zip archive of `.npy` arrays, including Marian's."""

from __future__ import annotations

import functools
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkv.errors import CheckpointError
from qkv.pretrained.weights.cursor import Cursor, count_elements, view_as_tensor
from qkv.pretrained.weights.lazy_weights import LazyWeights, TensorEntry, make_error
from qkv.pretrained.weights.marian import SETTINGS_KEY

_DTYPES = {
    "b1": torch.bool,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
}
_NPY_SUFFIX = ".npy"
_LOCAL_HEADER_SIZE = 30  # bytes before the name, in the zip specification's "local file header"


def read(path: Path) -> LazyWeights:
    """Open an `.npz`: names of arrays as NumPy reports them, tensors as stored; pickled objects are refused.

    Uncompressed arrays are mapped, compressed ones inflated on access. metadata: "special:model.yml" as text, if Marian
    wrote one. Raises CheckpointError for a damaged file.
    """
    cursor = Cursor(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {}
            for info in archive.infolist():
                name = info.filename.removesuffix(_NPY_SUFFIX)
                if not info.filename.endswith(_NPY_SUFFIX) or name in entries:
                    raise make_error(path, f"{info.filename!r}, or a second one", "arrays (.npy), each name once")
                entries[name] = _read_entry(cursor, archive, info)
        metadata = {}
        if SETTINGS_KEY in entries:
            metadata[SETTINGS_KEY] = (
                bytes(entries.pop(SETTINGS_KEY).load().to(torch.uint8).tolist()).decode().rstrip("\0")
            )
        return LazyWeights(path, entries, metadata)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and NumPy raise a dozen kinds of errors for damaged bytes
        raise make_error(path, f"not a whole .npz file ({error})", "a zip archive of NumPy arrays") from error


def _read_entry(cursor: Cursor, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> TensorEntry:
    if info.header_offset + info.compress_size > len(cursor.bytes):  # zipfile allocates as much as the archive claims
        raise make_error(
            cursor.path, f"{info.filename!r} of {info.compress_size:,} bytes ends beyond the file", "a whole file"
        )
    with archive.open(info) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of headers that Python 2 wrote, and reads them
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise make_error(cursor.path, f"{info.filename!r} has the version {version}", "1.0 or 2.0")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(file)
        start = file.tell()
    kind = _DTYPES.get(f"{dtype.kind}{dtype.itemsize}")
    if kind is None or dtype.names or dtype.subdtype:
        raise make_error(
            cursor.path, f"{info.filename!r} holds {dtype}", "numbers: pickled objects and texts are not read"
        )
    if any(not isinstance(size, int) or size < 0 for size in shape):
        raise make_error(cursor.path, f"{info.filename!r} has the shape {shape}", "sizes from 0 on")
    if start + count_elements(shape) * dtype.itemsize != info.file_size:
        raise make_error(
            cursor.path, f"{info.filename!r} of shape {shape} has {info.file_size:,} bytes", "as many as it needs"
        )
    return TensorEntry(shape, functools.partial(_load, cursor, info, start, dtype, kind, shape, bool(by_columns)))


def _load(
    cursor: Cursor,
    info: zipfile.ZipInfo,
    start: int,
    dtype: np.dtype[Any],
    kind: torch.dtype,
    shape: tuple[int, ...],
    is_fortran_order: bool,
) -> Tensor:
    data = (_map_array if info.compress_type == zipfile.ZIP_STORED else _inflate_array)(cursor, info)[start:]
    if dtype.byteorder == ">":
        data = data.view(dtype).byteswap().view(np.uint8)
    if is_fortran_order:
        return view_as_tensor(data, kind, shape[::-1]).permute(*reversed(range(len(shape))))
    return view_as_tensor(data, kind, shape)


def _map_array(cursor: Cursor, info: zipfile.ZipInfo) -> NDArray[np.uint8]:
    cursor.offset = info.header_offset
    header = cursor.read_bytes(_LOCAL_HEADER_SIZE, f"the header of {info.filename!r}")
    cursor.skip(sum(struct.unpack("<2H", header[26:30].tobytes())), "a name")
    return cursor.read_bytes(info.file_size, f"the array {info.filename!r}")


def _inflate_array(cursor: Cursor, info: zipfile.ZipInfo) -> NDArray[np.uint8]:
    try:
        with zipfile.ZipFile(cursor.path) as archive:
            data = np.frombuffer(bytearray(archive.read(info)), dtype=np.uint8)
    except Exception as error:  # as above
        raise make_error(cursor.path, f"{info.filename!r} cannot be inflated ({error})", "a whole archive") from error
    if len(data) != info.file_size:
        raise make_error(cursor.path, f"{info.filename!r} inflates to {len(data):,} bytes", f"{info.file_size:,}")
    return data
