"""Specs as JSON."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args

from qkv.errors import SpecError
from qkv.files import parse_json
from qkv.spec.blocks import (
    SSRU,
    AcrossHeads,
    Alibi,
    Attention,
    Block,
    Experts,
    FeedForward,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Norm,
    RelativeBias,
    Rotary,
    YarnScaling,
)
from qkv.spec.heads import Actions, Classes, Dense, Labels, PointerGenerator, States, Vector, Vocabulary
from qkv.spec.inputs import (
    Convolution,
    Convolutional,
    Frames,
    Learned,
    Patches,
    Segments,
    Sinusoidal,
    Tokens,
    Trajectory,
    Waveform,
)
from qkv.spec.models import DualEncoder, Recurrent, Spec, Stack, Transformer

_NODES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Norm, AcrossHeads, LinearScaling, Llama3Scaling, YarnScaling, LongRopeScaling, Rotary, RelativeBias, Alibi,
        Attention,
        SSRU, FeedForward, Experts, Block, Segments, Tokens, Patches, Frames, Convolution, Waveform,
        Trajectory, Learned, Sinusoidal, Convolutional, Stack, Dense, Vocabulary, PointerGenerator, Labels, Classes,
        Vector, Actions, States, Transformer, DualEncoder, Recurrent,
    )
}  # fmt: skip


def to_json(spec: Spec) -> str:
    """Write a spec as JSON: each node an object whose "node" names its class."""

    def encode(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"node": type(value).__name__, **fields}
        return [encode(item) for item in value] if isinstance(value, tuple) else value

    return json.dumps(encode(spec), indent=1)


def from_json(text: str) -> Spec:
    """Read a spec that `to_json` wrote. Raises SpecError for text that is not one, naming the place."""

    def decode(value: Any, where: str) -> Any:
        if isinstance(value, list):
            return tuple(decode(item, f"{where}[{number}]") for number, item in enumerate(value))
        if not isinstance(value, Mapping):
            return value
        name = value.get("node")
        if not isinstance(name, str) or name not in _NODES:
            raise SpecError(f"{where}: node={name!r} was given; it must be one of {', '.join(_NODES)}")
        cls, fields = (
            _NODES[name],
            {key: decode(item, f"{where}.{key}") for key, item in value.items() if key != "node"},
        )
        hints = typing.get_type_hints(cls)
        for key, item in fields.items():
            if key not in hints:
                raise SpecError(f"{where}: {name} has no field {key!r}; it has {', '.join(hints)}")
            if not _matches_type(item, hints[key]):
                raise SpecError(f"{where}.{key}={item!r} was given; {name} takes {hints[key]} there")
        try:
            return cls(**fields)
        except TypeError as error:
            raise SpecError(f"{where}: {error}") from None

    try:
        spec = decode(parse_json(text), "spec")
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(f"the spec is not JSON: {error}") from None
    if not isinstance(spec, Spec):
        raise SpecError(
            f"the spec is a {type(spec).__name__}; it must be a Transformer or a Recurrent, or a DualEncoder"
        )
    return spec


def _matches_type(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches_type(item, get_args(hint)[0]) for item in value)
    if origin is typing.Union or isinstance(hint, types.UnionType):
        return any(_matches_type(value, part) for part in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
