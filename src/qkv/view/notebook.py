"""The page in a notebook (Jupyter, marimo, VS Code): static, or as a widget with a live model."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from qkv.errors import MissingExtraError
from qkv.lens.trace import Trace
from qkv.tasks.base import TaskModel
from qkv.view import html
from qkv.view.document import build_document
from qkv.view.run import Run
from qkv.view.session import Session


class Page:
    """A page that a notebook displays; `str` returns its HTML."""

    def __init__(self, html_text: str) -> None:
        self._html = html_text

    def __str__(self) -> str:
        return self._html

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self._html)}" width="100%" height="900" frameborder="0"></iframe>'


def show(*traces: Trace | Run, title: str | None = None) -> Page:
    """Return the page about one trace, or about two side by side, for a notebook to display.

    title: the heading, by default the input. Raises QkvError for no trace or more than two.
    """
    return Page(html.render_html(build_document(traces, title=title)))


def _render_trace(trace: Trace) -> str:
    return show(trace)._repr_html_()


Trace.html_renderer = _render_trace


def explore(*models: TaskModel, line: str, answer: str | None = None, names: Sequence[str] = ()) -> Any:
    """Show the page of one model, or of two side by side, as a widget that answers the requests of the page.

    names: the names or paths that the models were loaded by. Raises MissingExtraError without anywidget, and as
    `model.look` does.
    """
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise MissingExtraError(
            "a live page in a notebook needs anywidget, which is not installed; run: pip install 'qkv[notebook]'"
        ) from error

    class Look(anywidget.AnyWidget):
        """The page with its document and blocks."""

        _esm = html.read_script()
        document = traitlets.Dict().tag(sync=True)
        blocks = traitlets.Bytes().tag(sync=True)

    named = [*names, *("" for _ in models[len(names) :])]
    session = Session(list(zip(named, models, strict=True)), line, answer)
    document = session.build_document()
    widget = Look(document=document.data, blocks=document.blocks)

    def reply(_: object, content: Any, buffers: object) -> None:
        """Answer {"id", "request"} by {"id", "reply"} and the blocks of the reply."""
        if not isinstance(content, dict):
            return
        answered, blocks = session.ask(content.get("request"))
        widget.send({"id": content.get("id"), "reply": answered}, [blocks] if blocks else None)

    widget.on_msg(reply)
    return widget
