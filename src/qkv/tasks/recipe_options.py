"""The options of a recipe with their types, values and meanings, from the dataclasses and their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from qkv import config


def list_options(node: Any, above: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield the dotted name, the type, the value and the meaning of every option of a recipe, in its own order.

    The meaning is what the docstring of the dataclass says after `name: `, or "".
    """
    meanings, hints = find_meanings(type(node)), typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value, name = getattr(node, field.name), f"{above}{field.name}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from list_options(value, f"{name}.")
        else:
            yield name, config.describe_type(hints[field.name]), _format(value), meanings.get(field.name, "")


def find_meanings(cls: type) -> dict[str, str]:
    """Return what the docstring of a dataclass says about each of its fields."""
    names = [field.name for field in dataclasses.fields(cls)]
    text = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
    starts = list(re.finditer(rf"(?:^|(?<=[.;] ))((?:{'|'.join(names)})(?:, \w+)*): ", text)) if names else []
    found: dict[str, str] = {}
    for number, start in enumerate(starts):
        end = starts[number + 1].start() if number + 1 < len(starts) else len(text)
        for name in start[1].split(", "):
            found.setdefault(name, text[start.end() : end].strip().rstrip(";."))
    return found


def _format(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{len(value)} entries]" if any(map(dataclasses.is_dataclass, value)) else str(list(value))
    return str(value)
