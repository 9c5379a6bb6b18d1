"""The page as a widget of a notebook (Jupyter, marimo, VS Code), through anywidget. Needs the extra `notebook`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qkv.errors import MissingExtraError
from qkv.lens import Trace
from qkv.tasks.loader import TaskModel
from qkv.view import html
from qkv.view.document import Document, encode_document
from qkv.view.run import Run
from qkv.view.session import Session


def show(runs: Run | Trace | Sequence[Run], *, title: str = "", note: str = "") -> Any:
    """Show one run, or two side by side, in a notebook: the last value of a cell is shown.

    Raises MissingExtraError without anywidget, QkvError for no run or for more than two.
    """
    return _build_widget(encode_document(runs, title=title, note=note), None)


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
