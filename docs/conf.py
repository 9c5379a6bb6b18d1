"""How Sphinx builds the documentation: `scripts/docs`. The build uses no network."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE / "_ext")]

import qkv  # noqa: E402 (found through the path above)

project = "qkv"
author = "The qkv contributors"
copyright = "The qkv contributors"  # noqa: A001 (the name Sphinx gives it)
version = release = qkv.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "generated", "docstrings"]
exclude_patterns = ["_ext"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
smartquotes = False  # -- is an option, not a dash
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = f"qkv {release}"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def setup(app: object) -> None:
    """Let a toctree's glob match nothing: a folder may be empty. Sphinx gives this warning no type to suppress."""
    toctrees = logging.getLogger("sphinx.sphinx.directives.other")
    toctrees.addFilter(lambda record: getattr(record, "subtype", None) != "empty_glob")
