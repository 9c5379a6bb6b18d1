"""Token numbers of many examples, kept flat: in memory, or in two files that are mapped and not read."""

from __future__ import annotations

import bisect
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate, chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from qkv.errors import DataError, StorageError

Tokens = npt.NDArray[np.unsignedinteger]

_IDS = "ids.npy"
_BOUNDS = "bounds.npy"
_METADATA = "metadata.json"
_CHUNK_SIZE = 100_000


class TokenStore:
    """Examples as (source ids, target ids) without special tokens; the source is None where there is none.

    ids (tokens,) uint16 or uint32 holds all examples one after the other; bounds (examples, 3) int64 says where
    source i starts, where it ends and target i starts, and where that ends (two columns without sources).
    """

    def __init__(self, ids: Tokens, bounds: npt.NDArray[np.int64]) -> None:
        self._ids = ids
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, number: int) -> tuple[Tokens | None, Tokens]:
        bounds = self._bounds[number]
        target = self._ids[bounds[-2] : bounds[-1]]
        return (self._ids[bounds[0] : bounds[1]] if len(bounds) == 3 else None), target

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The length of every source and target with its one special token: (examples, 2), or (examples, 1)."""
        return np.diff(self._bounds, axis=1) + 1

    @property
    def ids(self) -> Tokens:
        """The tokens of all examples, one after the other."""
        return self._ids

    @property
    def token_count(self) -> int:
        """How many tokens there are, without special ones."""
        return len(self._ids)

    def count_containing(self, token: int) -> int:
        """Return how many examples contain a token, on either side."""
        count = 0
        for start in range(0, len(self), _CHUNK_SIZE):
            bounds = self._bounds[start : start + _CHUNK_SIZE]
            first = bounds[0, 0]
            places = first + np.flatnonzero(self._ids[first : bounds[-1, -1]] == token)
            count += len(np.unique(np.searchsorted(bounds[:, -1], places, side="right")))
        return count

    @classmethod
    def from_lists(cls, sources: Sequence[Sequence[int]] | None, targets: Sequence[Sequence[int]]) -> TokenStore:
        """Keep lists of token numbers in memory; DataError if there are not as many sources as targets."""
        if sources is not None and len(sources) != len(targets):
            raise DataError(f"{len(sources)} sources for {len(targets)} targets; give one source for each target")
        writer = TokenStoreBuilder(sources is not None)
        writer.add(sources, targets)
        return writer.build()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TokenStore:
        """Map a store that a `TokenStoreWriter` wrote; DataError if it is missing, truncated or altered."""
        try:
            ids = np.load(Path(folder) / _IDS, mmap_mode="r", allow_pickle=False)
            bounds = np.load(Path(folder) / _BOUNDS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"the token store {folder} cannot be read ({error}); {_REBUILD_ADVICE}") from error
        whole = (
            ids.ndim == 1
            and ids.dtype in (np.uint16, np.uint32)
            and bounds.ndim == 2
            and bounds.shape[1] in (2, 3)
            and bounds.dtype == np.int64
            and (int(bounds[-1, -1]) if len(bounds) else 0) == len(ids)
        )
        if not whole:
            raise DataError(f"the token store {folder} does not fit together; {_REBUILD_ADVICE}")
        return cls(np.asarray(ids), np.asarray(bounds))  # still mapped; a memmap itself is slow to cut pieces from

    @staticmethod
    def read_metadata(folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Read the note that was saved with a store; DataError if it is missing or damaged."""
        try:
            record = json.loads((Path(folder) / _METADATA).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"the token store {folder} cannot be read ({error}); {_REBUILD_ADVICE}") from error
        if not isinstance(record, dict):
            raise DataError(f"the token store {folder} does not fit together; {_REBUILD_ADVICE}")
        return record


_REBUILD_ADVICE = "delete that folder, it is made again from the text"


class TokenStoreBuilder:
    """Collects examples in memory, 2 or 4 bytes a token."""

    def __init__(self, has_source: bool) -> None:
        self._has_source = has_source
        self._ids: list[Tokens] = []
        self._lengths: list[npt.NDArray[np.int64]] = []

    def add(self, sources: Sequence[Sequence[int]] | None, targets: Sequence[Sequence[int]]) -> None:
        """Add some examples, in order."""
        flat, lengths = _flatten(sources if self._has_source else None, targets)
        self._ids.append(flat.astype(np.uint16) if flat.max(initial=0) < 2**16 else flat)
        self._lengths.append(lengths)

    def build(self) -> TokenStore:
        """Give what was collected."""
        columns = 2 if self._has_source else 1
        widest = np.uint32 if any(part.dtype == np.uint32 for part in self._ids) else np.uint16
        ids = np.concatenate([np.empty(0, widest), *self._ids])
        lengths = np.concatenate([np.empty((0, columns), np.int64), *self._lengths])
        return TokenStore(ids, _compute_bounds(lengths, 0))


class TokenStoreWriter:
    """Writes a store as its examples come, however many they are; `vocab` tells how many bytes a token takes.

    A context: the store is there once `save` was called, whole or not at all. Raises StorageError if there is no room.
    """

    def __init__(self, folder: str | os.PathLike[str], has_source: bool, vocab_size: int) -> None:
        self._target = Path(folder)
        self._columns = 2 if has_source else 1
        self._type = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        self._tokens = self._examples = 0

    def __enter__(self) -> Self:
        with self._storage_errors(), ExitStack() as files:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(dir=self._target.parent, prefix=f".{self._target.name}.")
            self._part = Path(files.enter_context(temporary))
            self._ids, self._bounds = (files.enter_context(open(self._part / name, "wb")) for name in (_IDS, _BOUNDS))
            self._write_headers()
            self._files = files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what was being written is given up
            self._files.close()

    def add(self, sources: Sequence[Sequence[int]] | None, targets: Sequence[Sequence[int]]) -> None:
        """Add some examples, in order."""
        flat, lengths = _flatten(sources if self._columns == 2 else None, targets)
        with self._storage_errors():
            self._ids.write(flat.astype(self._type).tobytes())
            self._bounds.write(_compute_bounds(lengths, self._tokens).tobytes())
        self._tokens += len(flat)
        self._examples += len(lengths)

    def save(self, metadata: Mapping[str, Any] | None = None) -> TokenStore:
        """Put the store and a note about it into their place, and map it.

        A store that another process wrote there in the meantime is left as it is.
        """
        with self._storage_errors():
            self._write_headers()
            for file in (self._ids, self._bounds):
                file.flush()
                os.fsync(file.fileno())
                file.close()
            (self._part / _METADATA).write_text(json.dumps(metadata or {}), encoding="utf-8")
            if not self._target.exists():
                whole = self._part / "whole"
                whole.mkdir()
                for name in (_IDS, _BOUNDS, _METADATA):
                    os.rename(self._part / name, whole / name)
                os.rename(whole, self._target)
        return TokenStore.open(self._target)

    def _write_headers(self) -> None:
        """Write how much there is at the start of both files: NumPy leaves as much room for any number of rows."""
        shapes: tuple[tuple[int, ...], ...] = ((self._tokens,), (self._examples, self._columns + 1))
        kinds = self._type, np.dtype(np.int64)
        for file, shape, kind in zip((self._ids, self._bounds), shapes, kinds, strict=True):
            file.seek(0)
            head = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, head)

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"cannot write the token store {self._target}: {error}; free some space or choose another folder"
            ) from error


def _flatten(
    sources: Sequence[Sequence[int]] | None, targets: Sequence[Sequence[int]]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Return all tokens of some examples in one array, and the lengths of their parts, (examples, 1 or 2)."""
    columns = [targets] if sources is None else [sources, targets]
    rows = [row for example in zip(*columns, strict=True) for row in example]
    count = sum(map(len, rows))
    flat = np.fromiter(chain.from_iterable(rows), dtype=np.uint32, count=count)
    return flat, np.array([len(row) for row in rows], dtype=np.int64).reshape(-1, len(columns))


def _compute_bounds(lengths: npt.NDArray[np.int64], offset: int) -> npt.NDArray[np.int64]:
    """Return where each example starts and its parts end. offset: the number of tokens before the first."""
    ends = offset + np.cumsum(lengths.reshape(-1)).reshape(lengths.shape)
    return np.concatenate([ends[:, :1] - lengths[:, :1], ends], axis=1)


class ConcatStore:
    """Several stores as one: the numbers count through them one after the other, as a `Mixture` draws them."""

    def __init__(self, parts: Sequence[TokenStore]) -> None:
        self._parts = parts
        self._starts = list(accumulate((len(part) for part in parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> tuple[Tokens | None, Tokens]:
        if not 0 <= number < len(self):
            raise IndexError(f"example {number} of {len(self)}")
        part = bisect.bisect_right(self._starts, number) - 1
        return self._parts[part][number - self._starts[part]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The lengths of all parts, as `TokenPairs.lengths`."""
        return np.concatenate([part.lengths for part in self._parts])
