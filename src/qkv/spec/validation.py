"""What the nodes of a spec check when they are made."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal, get_args

from qkv.errors import SpecError


def require(condition: bool, node: object, message: str) -> None:
    if not condition:
        raise SpecError(f"{type(node).__name__}: {message}")


def require_positive(node: Any, *names: str) -> None:
    for name in names:
        value = getattr(node, name)
        require(value is None or value > 0, node, f"{name}={value} was given; it must be greater than 0")


def require_choices(node: Any) -> None:
    for name, choices in _list_choices(type(node)).items():
        value = getattr(node, name)
        require(
            value in choices, node, f"{name}={value!r} was given; it must be one of {', '.join(map(repr, choices))}"
        )


def _list_choices(cls: type[object]) -> dict[str, tuple[Any, ...]]:
    """The fields of `cls` that are a choice between words, with the words (and None where it is allowed)."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        parts = (
            get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
        )
        if any(typing.get_origin(part) is Literal for part in parts):
            found[name] = tuple(w for p in parts for w in (get_args(p) if typing.get_origin(p) is Literal else (None,)))
    return found
