"""Reference pages of Python modules: every name in a module's `__all__`, in the order classes, functions, values.

Only `__all__` is read, so a page follows the code when names change. A module in `__all__` has a page of its own.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Iterator
from typing import Any

import docstrings

PACKAGE = "qkv"

_SHORT = 100  # characters of a value that is shown


def text(module_name: str) -> str:
    """Return the MyST text about one module: a table of its names, then each of them."""
    module = importlib.import_module(module_name)
    named = {name: getattr(module, name) for name in module.__all__ if not name.startswith("__")}
    ordered = sorted(named, key=lambda name: (_rank(named[name]), name.lower()))
    rows = [f"| {_link(module_name, name, named[name])} | {_summary(module, name, named[name])} |" for name in ordered]
    parts = [
        "\n".join(["| name | |", "| --- | --- |", *rows]),
        "```{eval-rst}",
        *(part for name in ordered for part in _described(module, name, named[name])),
        "```",
    ]
    return "\n\n".join(parts)


def _rank(obj: Any) -> int:
    return 0 if inspect.ismodule(obj) else 1 if inspect.isclass(obj) else 2 if inspect.isroutine(obj) else 3


def _link(module_name: str, name: str, obj: Any) -> str:
    return f"`{name}`" if inspect.ismodule(obj) else f"{{py:obj}}`{name} <{module_name}.{name}>`"


def _described(module: Any, name: str, obj: Any) -> Iterator[str]:
    full = f"{module.__name__}.{name}"
    if inspect.ismodule(obj):
        return
    if inspect.isclass(obj) and typing.get_origin(obj) is None:
        is_error = issubclass(obj, BaseException)
        yield (
            f".. auto{'exception' if is_error else 'class'}:: {full}\n   :members:"
            + "\n   :show-inheritance:" * is_error
            + "\n   :no-index:" * _is_indexed_elsewhere(module, name, obj)
        )
    elif inspect.isroutine(obj):
        yield f".. autofunction:: {full}"
    else:
        lines = docstrings.to_rst(_documented(name, id(obj)) or "")
        value = _value(obj)
        if value:
            lines += [f"Value: ``{value}``"]
        body = "\n".join(f"   {line}" for line in lines)
        yield f".. py:data:: {full}\n\n{body}"


def _is_indexed_elsewhere(module: Any, name: str, obj: Any) -> bool:
    """Whether the package exports the same class, whose page then is the one that the index names."""
    package = importlib.import_module(PACKAGE)
    return module is not package and name in package.__all__ and getattr(package, name) is obj


def _summary(module: Any, name: str, obj: Any) -> str:
    """Return the first sentence of what is said about a name."""
    described = _rank(obj) < 3
    said = (inspect.getdoc(obj) if described else _documented(name, id(obj))) or ""
    if inspect.isclass(obj) and said.startswith(f"{obj.__name__}("):
        said = ""  # what dataclasses writes where nobody wrote anything
    return markdown(docstrings.first_sentence(said))


def markdown(line: str) -> str:
    """Return running text as Markdown: code stays code, and everything else is shown as it is written."""
    parts = line.split("`")
    if len(parts) % 2 == 0:
        parts = ["'".join(parts)]
    shown = []
    for number, part in enumerate(parts):
        if number % 2:
            shown.append("`" + part.replace("|", "\\|") + "`")
        else:
            shown.append("".join(f"\\{letter}" if letter in "\\*_<>[]{}|$#&~" else letter for letter in part))
    return "".join(shown)


def _value(obj: Any) -> str:
    """Return a value that is short enough to show, or nothing."""
    if typing.get_origin(obj) is not None:
        shown = str(obj).replace("typing.", "")
    elif isinstance(obj, str | int | float | tuple | frozenset):
        shown = repr(obj)
    elif isinstance(obj, dict):
        shown = ", ".join(map(str, obj))
    else:
        return ""
    return shown if len(shown) <= _SHORT and "`" not in shown else ""


@functools.cache
def _documented(name: str, identity: int) -> str | None:
    """Return the string below the assignment of a module-level value, wherever in the package that is."""
    for module_name in _modules():
        module = sys.modules.get(module_name)
        if module is None or id(vars(module).get(name)) != identity:
            continue
        if (said := _strings(module_name).get(name)) is not None:
            return said
    return None


@functools.cache
def _modules() -> tuple[str, ...]:
    package = importlib.import_module(PACKAGE)
    return tuple(info.name for info in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."))


@functools.cache
def _strings(module_name: str) -> dict[str, str]:
    """Return the strings that follow assignments in a module's source, by the name assigned."""
    body = ast.parse(inspect.getsource(sys.modules[module_name])).body
    found = {}
    for node, after in zip(body, body[1:], strict=False):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        is_string = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(target, ast.Name) and is_string and isinstance(after.value.value, str):
            found[target.id] = after.value.value
    return found
