"""Turns the docstrings of this package, which are plain text, into reStructuredText for autodoc.

What the docstrings hold, and what becomes of it:

    a paragraph                               a paragraph
    `code` in backticks                       code
    name: what this parameter or field means  an item of a list, when the function or class has such a name
    an indented block                         a block of code, as it stands
    >>> an example                            a doctest block, as it stands

Nothing else has a meaning, so characters such as * and | are shown as they are written.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from sphinx.application import Sphinx

_NAMES = re.compile(r"([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): ")
_ABBREVIATION = re.compile(r"(?:al|eq|e\.g|i\.e|ch|sec|vs|etc)\.$")
_ITEM = re.compile(r"(?:[-*]|\d+\.) ")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def to_rst(text: str, names: Iterable[str] = ()) -> list[str]:
    """Return the lines of a docstring as reStructuredText; `names` are the parameters or fields it may describe."""
    known = frozenset(names)
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        rows = block.splitlines()
        if not block.strip():
            continue
        if rows[0].lstrip().startswith(">>>"):
            lines += inspect.cleandoc(block).splitlines()
        elif all(row.startswith("    ") for row in rows):
            lines += ["::", "", *rows]
        else:
            lines += _paragraph(rows, known)
        lines.append("")
    return lines


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring."""
    words = text.partition("\n\n")[0].split()
    for number, word in enumerate(words[:-1]):
        if word.endswith(".") and not _ABBREVIATION.search(word.lstrip("(")) and not words[number + 1][0].islower():
            return " ".join(words[: number + 1])
    return " ".join(words)


def names_of(obj: Any) -> tuple[str, ...]:
    """Return the parameters of a function, or the fields or constructor's parameters of a class."""
    if dataclasses.is_dataclass(obj):
        return tuple(field.name for field in dataclasses.fields(obj))
    try:
        return tuple(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return ()


def inline(text: str) -> str:
    """Return running text as reStructuredText: code stays code, and everything else is shown as it is written."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a lone backtick is no code
        parts = ["'".join(parts)]
    return "".join(f"``{part}``" if number % 2 else _escape(part) for number, part in enumerate(parts))


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rst("\n".join(lines), names_of(obj))


def _paragraph(rows: list[str], names: frozenset[str]) -> Iterator[str]:
    """Yield one paragraph, or the list that it is."""
    parts: list[str] = []
    between = re.compile(rf"(?<=[.;]) (?=(?:{'|'.join(map(re.escape, names)) or '$.'}): )")
    for row in itertools.chain.from_iterable(map(between.split, rows)):
        match = _NAMES.match(row)
        is_name = match is not None and set(match[1].split(", ")) <= names
        if is_name or _ITEM.match(row) or not parts:
            parts.append(row.strip())
        else:
            parts[-1] += f" {row.strip()}"
    for number, part in enumerate(parts):
        match = _NAMES.match(part)
        if match is not None and set(match[1].split(", ")) <= names:
            shown = ", ".join(f"``{name}``" for name in match[1].split(", "))
            yield f"- {shown}: {inline(part[match.end() :])}"
        elif _ITEM.match(part):
            yield f"- {inline(_ITEM.sub('', part, count=1))}"
        else:
            yield inline(part)
            if number + 1 < len(parts):
                yield ""


def _escape(text: str) -> str:
    escaped = re.sub(r"([\\*|])", r"\\\1", text)
    return re.sub(r"_(?!\w)", r"\\_", escaped)
