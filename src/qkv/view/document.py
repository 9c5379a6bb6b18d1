"""The content of the page for every host: one JSON document, and the blocks of numbers that it names.

See docs/explanation/lens.md for the document, and frontend/src/protocol.ts for its types.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkv.errors import QkvError
from qkv.lens import Trace
from qkv.view import overview
from qkv.view.blocks import Blocks, StorageDtype
from qkv.view.builder import build_trace_run
from qkv.view.run import Run, shorten_names

VERSION = 1

_MAX_NUMBERS = 20_000_000
"""Numbers (queries, keys, values and contexts) beyond which a run is shown by overviews, as a long one."""

_DTYPE_BUDGETS: tuple[tuple[StorageDtype, int, int], ...] = (("float32", 4, 4_000_000), ("float16", 2, 8_000_000))
"""(dtype, bytes of one number, limit): numbers are stored in the first dtype in which all fit below the limit."""


@dataclass(frozen=True)
class Document:
    """One page: its JSON, and the blocks that it names."""

    data: dict[str, Any]
    blocks: bytes

    @property
    def json(self) -> str:
        """The JSON, without any character that could begin or end an HTML element."""
        return dump_html_safe_json(self.data)


def build_document(
    runs_or_traces: Run | Trace | Sequence[Run | Trace],
    *,
    title: str | None = None,
    note: str | None = None,
    live: bool = False,
    dtype: StorageDtype | None = None,
) -> Document:
    """Describe one run, or two that are shown side by side.

    title, note: the heading and the line below it; by default the input and the answers. live: whether a model
    answers the requests of the page. dtype: the storage of numbers; by default it depends on how many there are.
    Raises QkvError for no run or for more than two.
    """
    given = [runs_or_traces] if isinstance(runs_or_traces, Run | Trace) else runs_or_traces
    runs = [build_trace_run(one) if isinstance(one, Trace) else one for one in given]
    if not 1 <= len(runs) <= 2:
        raise QkvError(f"{len(runs)} runs were given to show; expected one, or two side by side")
    long = _count_numbers(runs) > _MAX_NUMBERS or any(overview.is_long(one) for run in runs for one in run.trace)
    dtype = dtype or ("float32" if long else _choose_dtype(_count_numbers(runs)))
    blocks = Blocks(dtype)
    # contexts stored as int8 would be no check of what the page recomputes
    shown_runs = [
        run.to_json(blocks, label=label, contexts=dtype != "int8", long=long)
        for run, label in zip(runs, shorten_names([run.name for run in runs]), strict=True)
    ]
    errors = (one.get("error", 0.0) for run in shown_runs for one in run["attentions"])
    document = {
        "version": VERSION,
        "title": _describe_input(runs[0]) if title is None else title,
        "note": _describe_answers(runs) if note is None else note,
        "runs": shown_runs,
        "precision": {"dtype": dtype, "error": max(errors, default=0.0)},
        "live": live,
    }
    return Document(document, blocks.to_bytes())


def _describe_input(run: Run) -> str:
    """Return the text of the input, or the name of its file."""
    line = run.trace.text
    if run.source is not None and run.source.kind in ("image", "audio"):
        path, *texts = line.strip().split("\t")
        line = " ".join([Path(path).name, *texts])
    return textwrap.shorten(line, 200, placeholder=" ...")


def _describe_answers(runs: Sequence[Run]) -> str:
    names = shorten_names([run.name for run in runs])
    answers = [textwrap.shorten(run.answer, 300, placeholder=" ...") for run in runs]
    return "; ".join(": ".join(filter(None, pair)) for pair in zip(names, answers, strict=True))


def dump_html_safe_json(value: object) -> str:
    """Return JSON in ASCII that cannot end its <script> element, whatever the tokens are."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _choose_dtype(count: int) -> StorageDtype:
    return next((kind for kind, size, room in _DTYPE_BUDGETS if count * size <= room), "int8")


def _count_numbers(runs: Sequence[Run]) -> int:
    """Count the numbers in all queries, keys, values and contexts."""
    count = 0
    for run in runs:
        for one in run.trace:
            by_query = one.heads * one.queries * (one.query.shape[-1] + one.value.shape[-1])
            count += by_query + one.kv_heads * one.keys * (one.key.shape[-1] + one.value.shape[-1])
    return count
