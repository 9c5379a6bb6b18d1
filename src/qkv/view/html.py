"""The page as one HTML file, which holds its document, numbers and program, and opens from disk without a network."""

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
from qkv.view.document import Document, build_document
from qkv.view.run import Run


def write_html(
    runs: Run | Trace | Sequence[Run | Trace] | Document,
    path: Path | str,
    *,
    title: str | None = None,
    note: str | None = None,
) -> Path:
    """Write a self-contained page about one run, or about two side by side, and return its path.

    title, note: the heading and the line below it; by default the input and the answers.
    Raises QkvError for no run or for more than two, StorageError if the file cannot be written.
    """
    document = runs if isinstance(runs, Document) else build_document(runs, title=title, note=note)
    path = Path(path)
    with atomic_write(path) as part:
        part.write_text(render_html(document), encoding="utf-8")
    return path


def render_html(document: Document) -> str:
    """Return the page with everything in it."""
    blocks = base64.b64encode(zlib.compress(document.blocks)).decode()
    return _fill_template(
        {
            "title": html.escape(document.data["title"] or "query, key, value"),
            "connect": "'none'",
            "host": 'data-qkv-host="file"',
            "data": f'<script type="application/json" id="document">{document.json}</script>\n'
            f'<script type="application/octet-stream" id="blocks" data-encoding="deflate">{blocks}</script>',
            "script": f'<script type="module">\n{read_script()}\n</script>',
        }
    )


def render_live_html(title: str, token: str) -> str:
    """Return the page that fetches its document, numbers and program from the server."""
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
    """Return the program of all pages: one ES module, built from frontend/."""
    return resources.files(__package__).joinpath("look.js").read_text(encoding="utf-8")


def _fill_template(parts: Mapping[str, str]) -> str:
    """Return the template with each {{name}} replaced in one pass, so that no part is searched for names."""
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
