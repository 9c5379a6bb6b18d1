"""safetensors, with the library of that name: one file, checked and mapped by it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from qkv.pretrained.weights.mapping import Entry, Weights, fault


def read(path: Path) -> Weights:
    """Map a safetensors file: its own names, tensors as stored; metadata is its `__metadata__`.

    Raises CheckpointError for anything that is not whole.
    """
    try:
        file: Any = safe_open(path, framework="pt")
        entries = {
            name: Entry(tuple(file.get_slice(name).get_shape()), functools.partial(_load, path, file, name))
            for name in file.keys()
        }
        return Weights(path, entries, dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError) as error:
        raise fault(path, f"not a whole safetensors file ({error})", "one") from error


def _load(path: Path, file: Any, name: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
        return tensor
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise fault(path, f"{name!r} cannot be read ({error})", "numbers that torch knows") from error
