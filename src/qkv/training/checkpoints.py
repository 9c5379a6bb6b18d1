"""Checkpoint files: tensors as safetensors, and the remaining state as JSON in the header of the same file.

A file is written under another name, flushed to the disk and renamed, so that its path always holds either the old
file or the new one. The file contains a SHA-256 of its contents, which is checked when it is read. Nothing is pickled,
so reading a file from someone else runs no code of theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qkv.errors import CheckpointError
from qkv.files import atomic_write, parse_json

_METADATA_KEY = "qkv"  # a single entry: the order of several would change from run to run


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write `tensors` and the JSON-able `state` to `path`, atomically.

    Raises StorageError if there is no space or no permission; an older file at `path` is then unchanged.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state, sort_keys=True)
    header = {"sha256": _sha256(plain, text), "state": text}
    with atomic_write(path) as part:
        save_file(plain, part, metadata={_METADATA_KEY: json.dumps(header)})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the state that `save_checkpoint` wrote.

    Raises CheckpointError if the file is missing, truncated, altered or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Expected a checkpoint that a training run wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {})[_METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        text, expected = header["state"], header["sha256"]
        state = parse_json(text)
        found = _sha256(tensors, text)
        if not isinstance(state, dict):
            raise TypeError(f"its state is a {type(state).__name__}")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is truncated, damaged or not a checkpoint of this package ({type(error).__name__}: {error}). "
            "Expected a complete file as it was written. Copy it again, or delete it and resume from another one."
        ) from error
    if found != expected:
        raise CheckpointError(
            f"{path} was altered after it was written: its contents have SHA-256 {found[:12]}..., expected "
            f"{str(expected)[:12]}.... Copy it again, or delete it and resume from another one."
        )
    return tensors, state


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of the weights in `paths`, summed in float64; integers and booleans come from the last file.

    Raises CheckpointError if the files do not hold the same names, shapes and dtypes.
    """
    if not paths:
        raise CheckpointError("No checkpoints were given to average. Expected at least one file of weights.")
    sums: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    for path in paths:
        tensors, _ = load_checkpoint(path)
        shapes = [{name: (t.shape, t.dtype) for name, t in some.items()} for some in (tensors, last)]
        if last and shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{path} does not hold the same parameters as {paths[0]}. Expected checkpoints of one model: average "
                "only those of one run."
            )
        last = tensors
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                sums[name] = sums[name] + tensor.double() if name in sums else tensor.double()
    return {
        name: (sums[name] / len(paths)).to(tensor.dtype) if name in sums else tensor for name, tensor in last.items()
    }


def _sha256(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
