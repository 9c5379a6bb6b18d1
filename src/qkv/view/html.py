"""The page as one HTML file: it holds its document, its numbers and its program, needs no network, opens from disk."""

from __future__ import annotations

import base64
import html
import re
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from qkv.files import atomic_write
from qkv.lens import Trace
from qkv.view.document import Document, encode_document
from qkv.view.run import Run


def write_html(
    runs: Run | Trace | Sequence[Run] | Document, path: Path | str, *, title: str = "", note: str = ""
) -> Path:
    """Write a self-contained page about one run, or about two side by side, and return its path.

    title, note: what stands at the head, e.g. the word and the model's name.
    Raises QkvError for no run or for more than two, StorageError if the file cannot be written.
    """
    made = runs if isinstance(runs, Document) else encode_document(runs, title=title, note=note)
    path = Path(path)
    with atomic_write(path) as part:
        part.write_text(render_html(made), encoding="utf-8")
    return path


def render_html(page_document: Document) -> str:
    """The page with everything in it."""
    blocks = base64.b64encode(zlib.compress(page_document.blocks)).decode()
    return _fill_template(
        {
            "title": html.escape(page_document.data["title"] or "query, key, value"),
            "connect": "'none'",
            "host": 'data-qkv-host="file"',
            "data": f'<script type="application/json" id="document">{page_document.json}</script>\n'
            f'<script type="application/octet-stream" id="blocks" data-encoding="deflate">{blocks}</script>',
            "script": f'<script type="module">\n{read_script()}\n</script>',
        }
    )


def render_live_html(title: str, token: str) -> str:
    """The page that fetches the rest from where it came from."""
    return _fill_template(
        {
            "title": html.escape(title or "query, key, value"),
            "connect": "'self'",
            "host": f'data-qkv-host="serve" data-token="{html.escape(token)}"',
            "data": "",
            "script": f'<script type="module" src="/look.js?token={html.escape(token)}"></script>',
        }
    )


def read_script() -> str:
    """The program of all pages: one ES module, built from frontend/."""
    return resources.files(__package__).joinpath("look.js").read_text(encoding="utf-8")


def _fill_template(parts: Mapping[str, str]) -> str:
    """The template with each {{name}} replaced, in one pass, so that no part is searched for names."""
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
