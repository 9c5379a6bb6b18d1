"""Writes the parts of the reference that come from the code: each page names one in a comment of its own line.

    <!-- generated: api qkv.lens -->        every public name of a module, from its docstrings (api.py)
    <!-- generated: command -->             the command `qkv`, from its click commands (command.py)
    <!-- generated: recipes -->             the options of recipes, from their dataclasses (recipes.py)

The comment is replaced by MyST text before the page is parsed. Nothing is written into docs/.
"""

from __future__ import annotations

import re

import api
import command
import recipes
from sphinx.application import Sphinx

_GENERATORS = {"api": api.text, "command": command.text, "recipes": recipes.text}
_MARKER = re.compile(r"^<!-- generated: (\w+)((?: [\w.]+)*) -->$", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = _MARKER.sub(lambda match: _GENERATORS[match[1]](*match[2].split()), source[0])
