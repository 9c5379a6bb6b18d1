"""Files of `torch.save`, which are pickles: read only on request, by torch's restricted reader."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv.errors import CheckpointError
from qkv.pretrained.weights.cursor import map_file
from qkv.pretrained.weights.lazy_weights import LazyWeights, TensorEntry, make_error


def read(path: Path) -> LazyWeights:
    """Read a state dict with `torch.load(weights_only=True)`, mapped into memory where torch's zip format is used.

    A dict that contains exactly one dict of tensors ("model", "state_dict", ...) yields that one, and the rest as
    metadata. Raises CheckpointError for anything else, and if torch refuses the file.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        # The older format cannot be mapped tensor by tensor, so nothing can be checked but the size of the file.
        file: Any = path if zipped else map_file(path)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises whatever error the damaged bytes lead to
        raise make_error(
            path,
            f"torch cannot read it as plain tensors ({str(error).splitlines()[0] if str(error) else type(error)})",
            "a file of torch.save with tensors only",
            "Download it again; if it holds other objects, ask its author for a safetensors file.",
        ) from error
    tensors, rest = _split_tensors(path, content)
    entries = {
        name: TensorEntry(tuple(tensor.shape), functools.partial(_return_tensor, tensor))
        for name, tensor in tensors.items()
    }
    return LazyWeights(path, entries, rest)


def _return_tensor(tensor: Tensor) -> Tensor:
    return tensor


def _split_tensors(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not isinstance(content, Mapping):
        raise make_error(path, f"a {type(content).__name__}", "a dict of tensors", "Save the model's state_dict().")
    groups = [name for name, value in content.items() if isinstance(value, Mapping) and _is_state_dict(value)]
    plain = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if plain and not groups:
        chosen: Mapping[Any, Any] = plain
        rest = {str(name): value for name, value in content.items() if name not in plain}
    elif len(groups) == 1 and not plain:
        chosen = content[groups[0]]
        rest = {str(name): value for name, value in content.items() if name != groups[0]}
    else:
        raise CheckpointError(
            f"{path}: {len(plain)} tensors and the dicts of tensors {groups} are at the top level. Expected tensors, "
            "or one dict of them: save the dict of the model as a separate file."
        )
    if strange := [name for name in chosen if not isinstance(name, str)]:
        raise make_error(
            path, f"a tensor under the name {strange[0]!r}", "texts as names", "Save the model's state_dict()."
        )
    return {name: tensor.detach() for name, tensor in chosen.items()}, rest


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())
