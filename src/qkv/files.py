"""Atomic writing of files, so that a path always contains the complete old or new contents; locks; bounded JSON."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from qkv.errors import StorageError, TrainingError

_MAX_DEPTH = 64
_MAX_DIGITS = 19  # of 64 bits


def parse_json(text: str) -> Any:
    """Read JSON that may come from anyone; the same values as `json.loads`.

    Raises ValueError for what is not JSON, for lists and objects that are nested more than 64 deep, for whole numbers
    of more than 19 digits, and for text that is not Unicode (half of a surrogate pair).
    """
    try:
        value = json.loads(text, parse_int=_parse_int)
    except RecursionError:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep") from None
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, list | dict)]:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        level = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a surrogate pair, which is no Unicode text") from None
    return value


def replace_nonfinite(value: Any) -> Any:
    """Return a value for JSON, which has no NaN and no infinities, with null (None) in their place."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: replace_nonfinite(one) for name, one in value.items()}
    return [replace_nonfinite(one) for one in value] if isinstance(value, list | tuple) else value


def _parse_int(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits; expected at most {_MAX_DIGITS}")
    return int(digits)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on exit, its file is flushed and replaces `path` in one step.

    Raises StorageError if it cannot be written; `path` is then unchanged.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # two processes do not write the same file
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


def remove_leftovers(folder: Path) -> None:
    """Remove what `atomic_write` left in a folder where a process was killed; nobody else may be writing there."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            part.unlink()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the only lock of a folder that a run is written to; the system releases it even if the process is killed.

    Raises TrainingError if another process holds it, StorageError if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(f"{folder} could not be created: {error}; choose a writable folder") from error
    try:
        if sys.platform != "win32":  # Windows has no such locks
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TrainingError(
                    f"{folder} is in use by another training run. Expected one run in a folder at a time: wait for "
                    "that run, stop it, or choose another folder (--folder). A launcher that starts several processes, "
                    "such as torchrun, is not supported: use training.workers."
                ) from error
            except OSError as error:
                raise StorageError(
                    f"{folder} could not be locked: {error}. Expected a file system with locks: choose another folder."
                ) from error
        yield
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and its renames are durable without this
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
