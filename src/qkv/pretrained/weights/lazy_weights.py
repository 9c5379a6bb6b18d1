"""Tensors of a file by name, each read on access."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qkv.errors import CheckpointError

DOWNLOAD_AGAIN = "It is cut short, altered or of another kind: fetch or convert it again."


def make_error(
    path: Path, found: str, expected: str, advice: str = DOWNLOAD_AGAIN, offset: int | None = None
) -> CheckpointError:
    """Return an error that says what a file contains (and at which byte), what was expected there and what to do."""
    place = "" if offset is None else f" at byte {offset:,}"
    return CheckpointError(f"{path}: {found}{place}. Expected {expected}. {advice}")


class UnknownTensorError(CheckpointError, KeyError):
    """A name that a file does not contain. It is also a KeyError, as mappings require."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show the message in quotes


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its shape, known from the header, and how to read it."""

    shape: tuple[int, ...]
    load: Callable[[], Tensor]


class LazyWeights(Mapping[str, Tensor]):
    """The tensors of a file or folder by name, in the file's order, each read on access only.

    A tensor may share its memory with the mapped file: writing to it changes later reads through this object, never the
    file. An unknown name raises UnknownTensorError, which is a CheckpointError and a KeyError.
    """

    path: Path
    metadata: Mapping[str, Any]  # the file's own metadata

    def __init__(self, path: Path, entries: Mapping[str, TensorEntry], metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.metadata = metadata
        self._entries = entries

    def __getitem__(self, name: str) -> Tensor:
        """Read the tensor of that name. Raises UnknownTensorError, or CheckpointError if its bytes are damaged."""
        return self._entry(name).load()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"LazyWeights({str(self.path)!r}, {len(self)} tensors)"

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape from the header alone. Raises UnknownTensorError."""
        return self._entry(name).shape

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._entries[name]
        except KeyError:
            some = ", ".join(list(self._entries)[:3])
            raise UnknownTensorError(
                f"{self.path} holds no tensor {name!r}. Expected one of its {len(self)} names ({some}, ...); "
                "list(weights) shows them all."
            ) from None
