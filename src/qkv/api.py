"""Functions for notebooks: look inside a model, change it, and show the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from qkv import lens, view
from qkv.errors import QkvError
from qkv.lens import Compose, Trace
from qkv.tap import NO_TAP, Tap
from qkv.tasks.base import TaskModel


def look(
    model: TaskModel | nn.Module, *inputs: Any, answer: Any = None, edits: Sequence[Tap] = (), **tensors: Any
) -> Trace:
    """Predict from an input and return a Trace of every attention, exact and without leaving the fast path.

    model: what `qkv.load` returns, with one input as text (or the path of an image or audio file); or a bare module,
    with the token ids or tensors that it reads (see `qkv.lens.look`). answer: the output to trace instead of the
    model's
    own. edits: interventions during the prediction, such as `qkv.ablate("decoder.1.cross_attention", head=0)`.
    Raises QkvError for an edit whose place does not exist, and whatever the model raises for an unreadable input.

    Example: `qkv.look(qkv.load("pronunciation"), "knight")["decoder.2.cross_attention"].weights`
    """
    tap: Tap = Compose(*edits) if edits else NO_TAP
    if isinstance(model, TaskModel):
        if len(inputs) != 1 or tensors:
            raise QkvError(f"{len(inputs)} inputs were given; expected one to look at, such as qkv.look(model, 'text')")
        return model.look(inputs[0], answer, tap=tap)
    if answer is not None:
        raise QkvError(
            "answer was given with a bare module; expected its target tokens: qkv.look(module, source, target)"
        )
    module: Any = model
    return lens.look(module, *inputs, **{**tensors, "tap": tap})


def show(*traces: Trace, path: Path | str | None = None, title: str | None = None) -> Any:
    """Show one trace, or two side by side, on the page: in a notebook, or in the HTML file `path`.

    title: the heading, by default the input.
    Returns the path that was written, or an object that a notebook displays.
    Raises QkvError for no trace or more than two, and StorageError for a file that cannot be written.
    """
    *shown, last = traces or (None,)
    if path is None and isinstance(last, str | Path):  # qkv.show(trace, "look.html")
        traces, path = tuple(shown), last
    return view.show(*traces, title=title) if path is None else view.write_html(traces, path, title=title)
