"""`model.bin` of CTranslate2: variables, some of them quantised, followed by aliases.

Layout as CTranslate2's `model_spec.py` writes it (binary versions 4 to 6), little-endian: version u32; name of the
model's kind; revision u32; number of variables u32; per variable its name, rank u8, dimensions u32 each, dtype u8,
bytes u32 and data; number of aliases u32; per alias its name and the variable's. A string is a u16 length, which
includes a terminating zero byte, and the bytes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkv.pretrained.weights.cursor import Cursor, count_elements, view_as_tensor
from qkv.pretrained.weights.lazy_weights import LazyWeights, TensorEntry

_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
_VERSIONS = range(4, 7)
_QUANTIZED_DTYPES = (torch.int8, torch.int16)
_SCALE_SUFFIX = "_scale"


@dataclass(frozen=True)
class _Variable:
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def load(self) -> Tensor:
        return view_as_tensor(self.data, self.dtype, self.shape)


def read(path: Path) -> LazyWeights:
    """Map a CTranslate2 model: its own names ("encoder/layer_0/ffn/linear_0/weight") and aliases, tensors as stored.

    A quantised variable, `NAME` with `NAME_scale`, is offered as float32 under NAME alone: the integers divided by the
    scale of their row. metadata: "specification", "revision" and "aliases", which maps each alias to a name.
    Raises CheckpointError for a damaged file.
    """
    cursor = Cursor(path)
    version = cursor.read_number("I", "the version")
    if version not in _VERSIONS:
        raise cursor.make_error(
            f"binary version {version}", "4, 5 or 6", "Convert the model with a newer CTranslate2.", 0
        )
    specification, revision = _read_text(cursor, "the model's kind"), cursor.read_number("I", "the revision")
    variables: dict[str, _Variable] = {}
    for _ in range(cursor.read_count("I", 9, "variables")):
        at = cursor.offset
        name = _read_text(cursor, "a variable's name")
        if name in variables:
            raise cursor.make_error(f"a second variable {name!r}", "each name once", offset=at)
        variables[name] = _read_variable(cursor, name)
    aliases: dict[str, str] = {}
    for _ in range(cursor.read_count("I", 6, "aliases")):
        at = cursor.offset
        alias, name = _read_text(cursor, "an alias"), _read_text(cursor, "an alias's variable")
        if alias in variables or alias in aliases or name not in variables:
            raise cursor.make_error(
                f"the alias {alias!r} of {name!r}", "a new name for a variable of the file", offset=at
            )
        aliases[alias] = name
    cursor.require_end()
    entries = _build_entries(cursor, variables)
    entries |= {alias: entries[name] for alias, name in aliases.items() if name in entries}
    return LazyWeights(path, entries, {"specification": specification, "revision": revision, "aliases": aliases})


def _read_text(cursor: Cursor, description: str) -> str:
    at = cursor.offset
    text = cursor.read_text(cursor.read_number("H", f"the length of {description}"), description)
    if not text.endswith("\0"):
        raise cursor.make_error(f"{description} does not end in a zero byte", "a text that does", offset=at)
    return text[:-1]


def _read_variable(cursor: Cursor, name: str) -> _Variable:
    at = cursor.offset
    rank = cursor.read_number("B", f"the rank of {name!r}")
    shape = cursor.read_numbers("I", rank, f"the shape of {name!r}")
    kind, size = cursor.read_number("B", f"the dtype of {name!r}"), cursor.read_number("I", f"the size of {name!r}")
    if kind >= len(_DTYPES):
        raise cursor.make_error(f"{name!r} has the dtype {kind}", f"a number below {len(_DTYPES)}", offset=at)
    n_bytes = count_elements(shape) * _DTYPES[kind].itemsize
    if size != n_bytes:
        raise cursor.make_error(
            f"{name!r} of shape {shape} has {size:,} bytes", f"{n_bytes:,} ({_DTYPES[kind]})", offset=at
        )
    return _Variable(at, _DTYPES[kind], shape, cursor.read_bytes(size, f"the data of {name!r}"))


def _build_entries(cursor: Cursor, variables: dict[str, _Variable]) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for name, variable in variables.items():
        scale = variables.get(name + _SCALE_SUFFIX)
        plain = variables.get(name.removesuffix(_SCALE_SUFFIX)) if name.endswith(_SCALE_SUFFIX) else None
        if plain is not None and plain.dtype in _QUANTIZED_DTYPES:
            continue
        if variable.dtype not in _QUANTIZED_DTYPES or scale is None:
            entries[name] = TensorEntry(variable.shape, variable.load)
            continue
        rows = variable.shape[:1]
        if scale.dtype != torch.float32 or scale.shape not in (rows, (), (1,)):
            raise cursor.make_error(
                f"the scale of {name!r} is {scale.dtype} of shape {scale.shape}",
                f"float32 of {rows} or ()",
                offset=scale.offset,
            )
        entries[name] = TensorEntry(variable.shape, functools.partial(_dequantize, variable, scale))
    return entries


def _dequantize(variable: _Variable, scale: _Variable) -> Tensor:
    scales = scale.load()
    if scale.shape == variable.shape[:1]:
        scales = scales.view(-1, *[1] * (len(variable.shape) - 1))
    return variable.load().to(torch.float32).div_(scales)
