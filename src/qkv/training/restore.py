"""Check what a checkpoint says before anything of a run is changed.

The checksum of a checkpoint has no key: anyone who can write a file can also write its checksum. Optimizers
compute in fused kernels that trust the sizes of their tensors, so every tensor is compared with the
model's own before it is used.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv.errors import CheckpointError

_MERSENNE_TWISTER_SIZE = 624  # how many numbers the random generator of a CPU draws at once


def copy_tensors(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], path: Path) -> None:
    """Copy every tensor of a file into its place.

    Raises CheckpointError, before anything is copied, unless names, shapes and dtypes are the same.
    """
    check_tensors(targets, sources, path)
    for name, place in targets.items():
        place.data.copy_(sources[name])


def check_tensors(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError unless a file has a tensor for each place, of its shape and dtype, and no others."""
    wrong = sorted(targets.keys() ^ sources.keys())
    if wrong:
        where = "the file" if wrong[0] in sources else "this model"
        raise CheckpointError(
            f"{path} was made for another model: {wrong[0]!r} is only in {where} ({len(wrong)} such names). Expected a "
            "checkpoint of the same spec."
        )
    for name, place in targets.items():
        _check_like(name, sources[name], place, path)


def check_optimizer_state(
    name: str, parameter: Tensor, state: Mapping[str, Tensor], parts: tuple[str, ...], path: Path
) -> None:
    """Raise CheckpointError unless the state of a parameter's optimizer has these parts, each as the optimizer made it.

    A parameter that never had a gradient has no state. The part "step" is one number in float32 from 0 on; all other
    parts are finite, and of the shape and dtype of the parameter. "exp_avg_sq", a mean of squares, is not negative.
    """
    if not state:
        return
    if state.keys() != set(parts):
        raise CheckpointError(
            f"{path}: the optimizer's state of {name} has {', '.join(sorted(state))}; expected {', '.join(parts)}. "
            "Copy the file again, or begin a new run."
        )
    for part, tensor in state.items():
        whole_name = f"optimizer.{name}.{part}"
        _check_like(whole_name, tensor, torch.zeros(()) if part == "step" else parameter, path)
        check_finite(whole_name, tensor, path)
        if part in ("step", "exp_avg_sq") and bool((tensor < 0).any()):
            raise CheckpointError(
                f"{path}: {whole_name} has a number below 0; expected none. Copy the file again, or begin a new run."
            )


def check_finite(name: str, tensor: Tensor, path: Path) -> None:
    """Raise CheckpointError if a tensor of a file holds NaN or infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{path}: {name} holds NaN or infinity; expected finite numbers. Copy the file again, or begin a new run."
        )


def check_random_state(state: Tensor, device: torch.device, path: Path) -> None:
    """Raise CheckpointError unless a generator of random numbers can continue from a state."""
    try:
        torch.Generator(device).set_state(state)
        fits = device.type != "cpu" or _is_within_block(state)
    except (RuntimeError, TypeError):
        fits = False
    if not fits:
        raise CheckpointError(
            f"{path}: the state of the random numbers on {device.type} is not one that torch saved. Copy the file "
            "again, or begin a new run."
        )


def _is_within_block(state: Tensor) -> bool:
    """Return whether the generator stays within its block of numbers: torch checks each count, and not their sum."""
    left, _, following = struct.unpack_from("<iiQ", bytes(state.tolist()), 8)
    return bool(left + following <= _MERSENNE_TWISTER_SIZE + 1)


def check_count(name: str, value: Any, path: Path) -> int:
    """Return a whole number from 0 on; CheckpointError for anything else."""
    if type(value) is not int or not 0 <= value < 2**53:
        raise CheckpointError(
            f"{path}: {name} is {str(value)[:60]}; expected a whole number from 0 on. Copy the file again, or begin a "
            "new run."
        )
    return value


def check_number(name: str, value: Any, path: Path) -> float:
    """Return a number, be it NaN or infinite (a metric can be either); CheckpointError for anything else."""
    if type(value) not in (int, float) or (type(value) is int and abs(value) >= 2**53):
        raise CheckpointError(
            f"{path}: {name} is {str(value)[:60]}; expected a number. Copy the file again, or begin a new run."
        )
    return float(value)


def check_duration(name: str, value: Any, path: Path) -> float:
    """Return a finite number from 0 on; CheckpointError for anything else."""
    number = check_number(name, value, path)
    if not (math.isfinite(number) and number >= 0):
        raise CheckpointError(
            f"{path}: {name} is {number}; expected a finite number from 0 on. Copy the file again, or begin a new run."
        )
    return number


def check_names(name: str, value: Any, expected: set[str], path: Path) -> dict[str, Any]:
    """Return an object of JSON that has exactly the expected names; CheckpointError for anything else."""
    if not isinstance(value, dict) or value.keys() != expected:
        given = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
        raise CheckpointError(
            f"{path}: {name} holds {given[:200] or 'nothing'}; expected {', '.join(sorted(expected))}. Copy the file "
            "again, or begin a new run."
        )
    return value


def _check_like(name: str, tensor: Tensor, place: Tensor, path: Path) -> None:
    given, expected = ((tuple(one.shape), str(one.dtype).removeprefix("torch.")) for one in (tensor, place))
    if given != expected:
        raise CheckpointError(
            f"{path} was made for another model: {name} has shape {given[0]} and dtype {given[1]}, expected shape "
            f"{expected[0]} and dtype {expected[1]}. Use the spec the run began with."
        )
