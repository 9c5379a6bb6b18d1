"""Output folders that appear whole or not at all, and the files next to a model."""

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
"""The suffixes of files that describe tokenization, preprocessing of audio and images, and generation."""


@contextmanager
def create_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to write to, which becomes `path` in one step on exit and is removed after an error.

    Raises StorageError if `path` already exists or cannot be written.
    """
    place = Path(path)
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise StorageError(f"{place} already exists; expected a new or empty folder: delete it or choose another")
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
    """Copy the files next to the weights of a published model that the folder lacks, and return their names."""
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
    """Import a library that only one export needs. Raises MissingExtraError with the name of its extra."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"this conversion needs {name}, which is not installed; install it with: pip install 'qkv[{extra}]'"
        ) from error
