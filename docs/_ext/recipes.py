"""The reference of recipes, from their dataclasses: name, type, default and meaning of every option.

Names this file relies on: `TASKS_PACKAGE`, and that this package has a public mapping from the name of a task to the
dataclass of its recipe, or to something that holds that dataclass (`recipe_classes`). The mapping is recognised by
what it holds, not by its name, so that it may be called anything.

What an option means is taken from the docstring of its class: the text after `name: `, or else the sentences that
have the name in backticks; failing that, the first sentence of the class that the option holds.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from api import markdown
from docstrings import first_sentence

TASKS_PACKAGE = "qkv.tasks"

_PLAIN = {bool: "`true` or `false`", int: "integer", float: "number", str: "text", Path: "path"}


def text() -> str:
    """Return the MyST text about all recipes: one section for each task's tree, then one for each part."""
    roots = recipe_classes()
    tasks: dict[type, list[str]] = {}
    for task, root in roots.items():
        tasks.setdefault(root, []).append(task)
    nodes = list(_walk(tasks))
    parts = ["## Recipes"]
    for root, names in tasks.items():
        parts += [f"({_anchor(root)})=\n### {', '.join(names)}", *_about(root), _table(root)]
    parts.append("## Parts of recipes")
    for node in sorted(
        (node for node in nodes if node not in tasks), key=lambda node: (node.__name__, node.__module__)
    ):
        parts += [f"({_anchor(node)})=\n### {node.__name__}", *_where(node, nodes), *_about(node), _table(node)]
    return "\n\n".join(parts)


def recipe_classes() -> dict[str, type]:
    """Return the recipe's dataclass of each task."""
    package = importlib.import_module(TASKS_PACKAGE)
    for name in package.__all__:
        mapping = getattr(package, name)
        if isinstance(mapping, Mapping) and mapping:
            found = {str(task): _recipe_class(value) for task, value in mapping.items()}
            if all(found.values()):
                return typing.cast("dict[str, type]", found)
    raise LookupError(f"{TASKS_PACKAGE} has no public mapping from the name of a task to the class of its recipe")


def _recipe_class(value: Any) -> type | None:
    """Return a recipe's dataclass: the value itself, or one that it holds."""
    held = [value] if isinstance(value, type) else [getattr(value, name, None) for name in dir(value)]
    for one in held:
        if isinstance(one, type) and dataclasses.is_dataclass(one) and {"data", "training"} <= _fields(one).keys():
            return one
    return None


def _walk(roots: Mapping[type, Any]) -> Iterator[type]:
    """Yield every dataclass in the trees, each once, in the order in which it is met."""
    seen: set[type] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        yield node
        for hint in typing.get_type_hints(node).values():
            waiting += _nodes(hint)


def _nodes(hint: Any) -> list[type]:
    """Return the dataclasses that a type may hold."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [node for argument in typing.get_args(hint) for node in _nodes(argument)]


def _fields(node: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(node) if field.init}


def _anchor(node: type) -> str:
    return f"recipe-{node.__module__.replace('.', '-').replace('_', '-')}-{node.__name__}".lower()


def _where(node: type, nodes: list[type]) -> Iterator[str]:
    """Yield where a part is used, and the `kind` by which a recipe chooses it among others."""
    places = []
    for other in nodes:
        for name, hint in typing.get_type_hints(other).items():
            inside = _nodes(hint)
            if node in inside:
                kind = f" with `kind: {node.__name__.lower()}`" if len(inside) > 1 else ""
                places.append(f"`{name}` of [{other.__name__}](#{_anchor(other)}){kind}")
    if places:
        yield f"Used as {'; '.join(places)}."


def _about(node: type) -> Iterator[str]:
    """Yield as Markdown what a class docstring says before it describes options by name."""
    return map(markdown, _before_options(node))


def _before_options(node: type) -> Iterator[str]:
    names = _fields(node)
    for block in re.split(r"\n\s*\n", _doc(node)):
        rows = block.splitlines()
        kept = []
        for row in rows:
            match = re.match(r"([a-z_]\w*(?:, [a-z_]\w*)*): ", row)
            if match and set(match[1].split(", ")) <= names.keys():
                break
            kept.append(row.strip())
        if kept and not block.startswith("    "):
            yield " ".join(kept)
        if len(kept) < len(rows):
            return


def _doc(node: type) -> str:
    said = inspect.cleandoc(node.__doc__ or "")
    return "" if said.startswith(f"{node.__name__}(") else said  # what dataclasses writes where nobody did


def _table(node: type) -> str:
    fields, hints = _fields(node), typing.get_type_hints(node)
    if not fields:
        return "It has no options."
    meanings = _meanings(_doc(node), list(fields), " ".join(_before_options(node)))
    rows = []
    for name, field in fields.items():
        meaning = meanings.get(name) or _of_class(hints[name])
        rows.append(f"| `{name}` | {_type(hints[name])} | {_default(field)} | {markdown(meaning)} |")
    return "\n".join(["| option | type | default | meaning |", "| --- | --- | --- | --- |", *rows])


def _meanings(said: str, names: list[str], shown: str) -> dict[str, str]:
    """Return what a docstring says of each option; `shown` is the part of it that stands above the table."""
    flat = " ".join(said.split())
    either = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    marked = _lines_marked(said)
    starts = list(re.finditer(rf"(?:(?<=[.;)] )|^)((?:{either})(?:, (?:{either}))*): ", marked))
    found: dict[str, str] = {}
    for number, start in enumerate(starts):
        end = starts[number + 1].start() if number + 1 < len(starts) else len(marked)
        meaning = " ".join(marked[start.end() : end].partition("\0")[0].split()).rstrip("; .")
        for name in start[1].split(", "):
            found.setdefault(name, f"{meaning[:1].upper()}{meaning[1:]}.")
    sentences = re.split(r"(?<=\.) (?=[A-Z`])", flat)
    for name in names:
        if name not in found:
            about = [one for one in sentences if f"`{name}`" in one]
            if about:
                found[name] = "See above." if all(map(shown.__contains__, about)) else " ".join(about)
    return found


def _lines_marked(said: str) -> str:
    """Return a docstring on one line, where a paragraph ends in NUL and a line that names an option follows a stop."""
    named = re.compile(r"\n(?=[a-z_]\w*(?:, [a-z_]\w*)*: )")
    blocks = [" ".join(named.sub("\n. ", block).split()) for block in said.split("\n\n")]
    return " \0. ".join(blocks)


def _of_class(hint: Any) -> str:
    nodes = _nodes(hint)
    if len(nodes) != 1:
        return ""
    return first_sentence(_doc(nodes[0]))


def _type(hint: Any) -> str:
    """Return a type in words, with links to the parts."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    if hint is types.NoneType:
        return "`null`"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {', '.join(map(_type, arguments))}"
    if arguments:
        return " or ".join(map(_type, arguments))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{_anchor(hint)})"
    return f"`{getattr(hint, '__name__', hint)}`"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _value(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else _value(field.default)


def _value(value: Any) -> str:
    """Return a default as a recipe writes it; of a part, its class and what differs from that class's own defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = [
            f"{name}: {getattr(value, name)}"
            for name, field in _fields(value).items()
            if field.default is dataclasses.MISSING or getattr(value, name) != field.default
            if not dataclasses.is_dataclass(getattr(value, name))
            if field.default_factory is dataclasses.MISSING
        ]
        return f"{type(value).__name__}" + (f" ({', '.join(changed)})" if changed else "")
    if isinstance(value, tuple):
        has_parts = any(map(dataclasses.is_dataclass, value))
        return f"list of {len(value)}" if has_parts else f"`{list(value)}`"
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower()}`".replace("none", "null")
    return f"`{value}`" if value != "" else '`""`'
