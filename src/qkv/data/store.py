"""Token numbers of many examples, kept flat: in memory, or in two files that are mapped and not read."""

from __future__ import annotations

import bisect
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qkv.errors import DataError, StorageError

Tokens = npt.NDArray[np.unsignedinteger]

_IDS = "ids.npy"
_BOUNDS = "bounds.npy"
_NOTE = "note.json"


class TokenPairs:
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
    def tokens(self) -> int:
        """How many tokens there are, without special ones."""
        return len(self._ids)

    @classmethod
    def from_lists(cls, sources: Sequence[Sequence[int]] | None, targets: Sequence[Sequence[int]]) -> TokenPairs:
        """Keep lists of token numbers in memory; DataError if there are not as many sources as targets."""
        if sources is not None and len(sources) != len(targets):
            raise DataError(f"{len(sources)} sources for {len(targets)} targets; give one source for each target")
        writer = TokenWriter(sources is not None)
        writer.add(sources, targets)
        return writer.in_memory()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TokenPairs:
        """Map a store that `TokenWriter.save` wrote; DataError if it is missing, cut short or altered."""
        try:
            ids = np.load(Path(folder) / _IDS, mmap_mode="r", allow_pickle=False)
            bounds = np.load(Path(folder) / _BOUNDS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"the token store {folder} cannot be read ({error}); {_REMEDY}") from error
        whole = (
            ids.ndim == 1
            and ids.dtype in (np.uint16, np.uint32)
            and bounds.ndim == 2
            and bounds.shape[1] in (2, 3)
            and bounds.dtype == np.int64
            and (int(bounds[-1, -1]) if len(bounds) else 0) == len(ids)
        )
        if not whole:
            raise DataError(f"the token store {folder} does not fit together; {_REMEDY}")
        return cls(ids, bounds)

    @staticmethod
    def note(folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Read the note that was saved with a store; DataError if it is missing or damaged."""
        try:
            record = json.loads((Path(folder) / _NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"the token store {folder} cannot be read ({error}); {_REMEDY}") from error
        if not isinstance(record, dict):
            raise DataError(f"the token store {folder} does not fit together; {_REMEDY}")
        return record


_REMEDY = "delete that folder, it is made again from the text"


class TokenWriter:
    """Collects examples for a store, 2 or 4 bytes a token."""

    def __init__(self, with_source: bool) -> None:
        self._with_source = with_source
        self._ids: list[Tokens] = []
        self._lengths: list[npt.NDArray[np.int64]] = []

    def add(self, sources: Sequence[Sequence[int]] | None, targets: Sequence[Sequence[int]]) -> None:
        """Add some examples, in order."""
        columns = [sources, targets] if self._with_source and sources is not None else [targets]
        rows = [row for example in zip(*columns, strict=True) for row in example]
        flat = np.array([number for row in rows for number in row], dtype=np.uint32)
        self._ids.append(flat.astype(np.uint16) if flat.max(initial=0) < 2**16 else flat)
        self._lengths.append(np.array([len(row) for row in rows], dtype=np.int64).reshape(-1, len(columns)))

    def in_memory(self) -> TokenPairs:
        """Give what was collected."""
        return TokenPairs(*self._arrays())

    def save(self, folder: str | os.PathLike[str], note: Mapping[str, Any] | None = None) -> TokenPairs:
        """Write a store and a note about it, whole or not at all, and map it; StorageError if there is no room.

        A store that another process wrote there in the meantime is left as it is.
        """
        target = Path(folder)
        ids, bounds = self._arrays()
        temporary = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.")
            for name, array in ((_IDS, ids), (_BOUNDS, bounds)):
                with open(Path(temporary) / name, "wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
            (Path(temporary) / _NOTE).write_text(json.dumps(note or {}), encoding="utf-8")
            if not target.exists():
                os.rename(temporary, target)
        except OSError as error:
            if not target.exists():
                raise StorageError(
                    f"cannot write the token store {target}: {error}; free some space or choose another folder"
                ) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return TokenPairs.open(target)

    def _arrays(self) -> tuple[Tokens, npt.NDArray[np.int64]]:
        columns = 2 if self._with_source else 1
        widest = np.uint32 if any(part.dtype == np.uint32 for part in self._ids) else np.uint16
        ids = np.concatenate([np.empty(0, widest), *self._ids])
        lengths = np.concatenate([np.empty((0, columns), np.int64), *self._lengths])
        ends = np.cumsum(lengths.reshape(-1)).reshape(-1, columns)
        return ids, np.concatenate([ends[:, :1] - lengths[:, :1], ends], axis=1)


class Joined:
    """Several stores as one: the numbers count through them one after the other, as a `Mixture` draws them."""

    def __init__(self, parts: Sequence[TokenPairs]) -> None:
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
