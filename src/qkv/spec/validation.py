"""Checks that the nodes of a spec run when they are created."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal, get_args

from qkv.errors import SpecError


def require(condition: bool, node: object, message: str) -> None:
    """Raise SpecError with the class of `node` and the message unless the condition is true."""
    if not condition:
        raise SpecError(f"{type(node).__name__}: {message}")


def require_positive(node: Any, *names: str) -> None:
    """Raise SpecError if a named field is neither None nor greater than 0."""
    for name in names:
        value = getattr(node, name)
        require(value is None or value > 0, node, f"{name}={value} was given; it must be greater than 0")


def require_choices(node: Any) -> None:
    """Raise SpecError if a field with a Literal type has another value."""
    for name, choices in _list_choices(type(node)).items():
        value = getattr(node, name)
        require(
            value in choices, node, f"{name}={value!r} was given; it must be one of {', '.join(map(repr, choices))}"
        )


def _list_choices(cls: type[object]) -> dict[str, tuple[Any, ...]]:
    """Return the fields of `cls` with a Literal type, each with its choices (and None where it is allowed)."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        parts = (
            get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
        )
        if any(typing.get_origin(part) is Literal for part in parts):
            found[name] = tuple(w for p in parts for w in (get_args(p) if typing.get_origin(p) is Literal else (None,)))
    return found
