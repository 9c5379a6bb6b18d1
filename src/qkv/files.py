"""Atomic writing of files: a path always contains either the complete old contents or the complete new ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from qkv.errors import StorageError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on exit, its file is flushed and replaces `path` in one step.

    Raises StorageError if it cannot be written; `path` is then unchanged.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.chmod(part, 0o644)  # safetensors makes files that only the owner can read; these are meant to be shared
        _flush(part)
        os.replace(part, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path} could not be written: {error}. Expected a writable folder with enough space. The files that were "
            "there before are unchanged: free some space or choose another folder, then try again."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and its renames are durable without this
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
