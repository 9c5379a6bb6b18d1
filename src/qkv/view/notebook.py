"""The page as a widget of a notebook (Jupyter, marimo, VS Code), through anywidget. Needs the extra `notebook`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from qkv.errors import MissingExtraError
from qkv.lens import Trace
from qkv.lens.trace import _RENDERERS
from qkv.tasks.base import TaskModel
from qkv.view import html
from qkv.view.builder import build_trace_run
from qkv.view.document import Document, encode_document
from qkv.view.run import Run
from qkv.view.session import Session


def show(runs: Run | Trace | Sequence[Run], *, title: str = "", note: str = "") -> Any:
    """Show one run, or two side by side, in a notebook: the last value of a cell is shown.

    Raises MissingExtraError without anywidget, QkvError for no run or for more than two.
    """
    return _build_widget(encode_document(runs, title=title, note=note), None)


class TracePage:
    """A page that a notebook displays and `str` gives as HTML."""

    def __init__(self, html_text: str) -> None:
        self._html = html_text

    def __str__(self) -> str:
        return self._html

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self._html)}" width="100%" height="900" frameborder="0"></iframe>'


def show_traces(traces: Sequence[Trace], path: Path | str | None = None, title: str = "") -> Path | TracePage:
    """Write the page about one trace, or about two side by side, to `path`, or return it for a notebook to display."""
    runs = [build_trace_run(trace, str(number + 1)) for number, trace in enumerate(traces)]
    title = title or (traces[0].text if traces else "")
    if path is not None:
        return html.write_html(runs, path, title=title)
    return TracePage(html.render_html(encode_document(runs, title=title)))


def _render_trace(trace: Trace) -> str:
    return show_traces([trace])._repr_html_()  # type: ignore[union-attr]


_RENDERERS[0] = _render_trace


def explore(*models: TaskModel, line: str, answer: str | None = None, names: Sequence[str] = ()) -> Any:
    """Show in a notebook what one model, or two side by side, see in a line, and answer what is asked on the page.

    names: what the models are called, and opened by. Raises MissingExtraError without anywidget, and as `look` does.
    """
    named = [*names, *("" for _ in models[len(names) :])]
    session = Session(list(zip(named, models, strict=True)), line, answer)
    return _build_widget(session.build_document(), session)


def _build_widget(page_document: Document, session: Session | None) -> Any:
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise MissingExtraError(
            "pages in a notebook need anywidget, which is not installed; run: pip install 'qkv[notebook]'"
        ) from error

    class Look(anywidget.AnyWidget):
        """The page, what it shows, and what answers it."""

        _esm = html.read_script()
        document = traitlets.Dict().tag(sync=True)
        blocks = traitlets.Bytes().tag(sync=True)

    widget = Look(document=page_document.data, blocks=page_document.blocks)
    if session is not None:

        def answer(_: object, content: Any, buffers: object) -> None:
            """Answer {"id", "request"} by {"id", "reply"} and the reply's blocks."""
            if not isinstance(content, dict):
                return
            reply, blocks = session.ask(content.get("request"))
            widget.send({"id": content.get("id"), "reply": reply}, [blocks] if blocks else None)

        widget.on_msg(answer)
    return widget
