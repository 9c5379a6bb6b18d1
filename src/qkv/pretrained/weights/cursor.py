"""Bounds-checked sequential reading of a mapped file."""

from __future__ import annotations

import math
import mmap
import struct
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkv.errors import CheckpointError
from qkv.pretrained.weights.lazy_weights import DOWNLOAD_AGAIN, make_error


def map_file(path: Path) -> mmap.mmap:
    """Map a file into memory, so that its bytes are read on demand and writes never reach it.

    Raises CheckpointError if it cannot be read or is empty.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}. Expected a file of weights: check its place and its permissions."
        ) from error
    raise make_error(path, "it is empty", "a file of weights")


_OPEN_MAPS: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()
"""The open maps, and the address at which each begins."""


def release_memory(tensor: Tensor) -> None:
    """Release the memory of a tensor in a mapped file after its conversion; another access reads it again.

    Changes that were written to it are lost. Other tensors are left alone.
    """
    storage = tensor.untyped_storage()
    for view, begin in list(_OPEN_MAPS.items()):
        start = storage.data_ptr() - begin
        if 0 <= start and start + storage.nbytes() <= len(view):
            _drop_pages(view, start, start + storage.nbytes())


def _drop_pages(view: mmap.mmap, start: int, end: int) -> None:
    """Release the memory of the whole pages within a range."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and hasattr(mmap, "MADV_DONTNEED"):
        view.madvise(mmap.MADV_DONTNEED, first, last - first)


def view_as_tensor(data: NDArray[Any], dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Return bytes of a mapped file as a tensor, without a copy where the processor can read them in place."""
    if not data.size:
        return torch.empty(tuple(shape), dtype=dtype)
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()
    return torch.from_numpy(data).view(dtype).view(tuple(shape))


class Cursor:
    """A reader of numbers, texts and arrays in a little-endian file. A length beyond its end raises CheckpointError.

    Nothing is allocated for a length that the file merely claims.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._map = map_file(path)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        _OPEN_MAPS[self._map] = self.bytes.ctypes.data

    @property
    def num_bytes_left(self) -> int:
        return len(self._map) - self.offset

    def make_error(
        self, found: str, expected: str, advice: str = DOWNLOAD_AGAIN, offset: int | None = None
    ) -> CheckpointError:
        """Return the error for the content at this position, or at byte `offset`."""
        return make_error(self.path, found, expected, advice, self.offset if offset is None else offset)

    def skip(self, count: int, description: str) -> int:
        """Skip `count` bytes and return where they began. Raises CheckpointError beyond the end."""
        if count > self.num_bytes_left:
            raise self.make_error(
                f"{description} of {count:,} bytes, and {self.num_bytes_left:,} are left", "a whole file"
            )
        start = self.offset
        self.offset += count
        return start

    def read_bytes(self, count: int, description: str) -> NDArray[np.uint8]:
        """Return the next `count` bytes without reading them from disk yet."""
        start = self.skip(count, description)
        return self.bytes[start : start + count]

    def release_memory(self, start: int, end: int) -> None:
        """Release the memory of whole pages of bytes; another access reads them again from the file."""
        _drop_pages(self._map, start, end)

    def read_number(self, code: str, description: str) -> Any:
        """Return the next number, of a struct code such as "I" or "q"."""
        layout = "<" + code
        return struct.unpack_from(layout, self._map, self.skip(struct.calcsize(layout), description))[0]

    def read_numbers(self, code: str, count: int, description: str) -> tuple[int, ...]:
        """Return the next `count` numbers of one struct code."""
        size = struct.calcsize("<" + code)
        start = self.skip(size * count, description)
        return struct.unpack_from(f"<{count}{code}", self._map, start)

    def read_text(self, count: int, description: str) -> str:
        """Return the next `count` bytes as UTF-8. Raises CheckpointError if they are not."""
        start = self.skip(count, description)
        try:
            return str(self._map[start : self.offset], "utf-8")
        except UnicodeDecodeError as error:
            raise self.make_error(f"{description} is not UTF-8 text", "UTF-8", offset=start) from error

    def read_texts(self, count: int, description: str) -> list[str]:
        """Return the next `count` texts, each a u64 length and UTF-8 bytes, quickly: there may be 100,000 of them."""
        length = struct.Struct("<Q").unpack_from
        found, at, size = [], self.offset, len(self._map)
        try:
            for _ in range(count):
                start = at + 8
                at = start + length(self._map, at)[0]
                if at > size:
                    break
                found.append(str(self._map[start:at], "utf-8"))
        except (struct.error, UnicodeDecodeError) as error:
            raise self.make_error(
                f"{description} number {len(found):,} is not whole UTF-8 text", "text", offset=at
            ) from error
        if len(found) < count:
            raise self.make_error(
                f"{description} number {len(found):,} ends beyond the file", "a whole file", offset=start
            )
        self.offset = at
        return found

    def read_count(self, code: str, min_item_size: int, description: str) -> int:
        """Return a number of items of at least `min_item_size` bytes each, checked against the bytes that are left."""
        start, count = self.offset, int(self.read_number(code, f"the number of {description}"))
        if count * min_item_size > self.num_bytes_left:
            raise self.make_error(
                f"{count:,} {description} are announced, and {self.num_bytes_left:,} bytes are left",
                f"at most {self.num_bytes_left // min_item_size:,}",
                offset=start,
            )
        return count

    def require_end(self) -> None:
        """Raise CheckpointError if anything follows."""
        if self.num_bytes_left:
            raise self.make_error(f"{self.num_bytes_left:,} bytes follow the last entry", "the end of the file")


def count_elements(shape: Sequence[int]) -> int:
    """Return the number of elements of a shape, without overflow."""
    return math.prod(shape)
