"""Folders that are whole or not there, and what goes into them beside a model."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qkv.errors import MissingExtraError, StorageError

_SIDECAR_SUFFIXES = (".json", ".txt", ".model", ".spm", ".jinja")
"""The endings of files that say how text is cut, sound and images are prepared, and answers are found."""


@contextmanager
def create_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to write to; on leaving, it becomes `path` in one step, and after an error is gone.

    Raises StorageError if something is there already, or if it cannot be written.
    """
    place = Path(path)
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise StorageError(f"{place} is there already; expected a new or empty folder: delete it or choose another")
    part: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
        os.chmod(part, 0o755)
        yield part
        os.replace(part, place)
    except OSError as error:
        raise StorageError(
            f"{place} could not be written: {error}; expected a writable place with enough room: choose another"
        ) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def copy_sidecar_files(source: str | Path, folder: Path) -> list[str]:
    """Copy what stands beside the weights of a published model and is not in the folder yet; return the names."""
    found = [
        file
        for file in sorted(Path(source).iterdir())
        if file.is_file()
        and file.suffix in _SIDECAR_SUFFIXES
        and file.name != "config.json"
        and not file.name.endswith(".index.json")
        and not (folder / file.name).exists()
    ]
    for file in found:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in found]


def import_library(name: str, extra: str) -> Any:
    """Import a library that only a conversion needs. Raises MissingExtraError naming the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"this conversion needs {name}, which is not installed; install it with: pip install 'qkv[{extra}]'"
        ) from error
