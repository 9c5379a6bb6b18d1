"""What every host of the page is given: one JSON document, and the blocks of numbers that it names.

See docs/explanation/lens.md for the document; frontend/ reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qkv.errors import QkvError
from qkv.lens import Trace
from qkv.view import overview
from qkv.view.blocks import Blocks, StorageDtype
from qkv.view.run import Run, shorten_names

VERSION = 1

_MAX_NUMBERS = 20_000_000
"""Numbers (queries, keys, values and contexts) beyond which a run is shown from afar, as a long one."""

_DTYPE_BUDGETS: tuple[tuple[StorageDtype, int, int], ...] = (("float32", 4, 4_000_000), ("float16", 2, 8_000_000))
"""Numbers are kept in the first kind, of so many bytes each, in which all of them stay below so many bytes."""


@dataclass(frozen=True)
class Document:
    """One page: its JSON, and the blocks that it names."""

    data: dict[str, Any]
    blocks: bytes

    @property
    def json(self) -> str:
        """The JSON, which holds no character that could end or begin an element of HTML."""
        return dump_html_safe_json(self.data)


def encode_document(
    runs_or_trace: Run | Trace | Sequence[Run],
    *,
    title: str = "",
    note: str = "",
    live: bool = False,
    dtype: StorageDtype | None = None,
) -> Document:
    """Describe one run, or two to be seen side by side.

    title, note: what stands at the head, e.g. the word and the model's name. live: whether somebody answers the
    page's questions. kind: how numbers are kept; by their number, unless given.
    Raises QkvError for no run or for more than two.
    """
    runs = (
        [Run(runs_or_trace)]
        if isinstance(runs_or_trace, Trace)
        else [runs_or_trace]
        if isinstance(runs_or_trace, Run)
        else list(runs_or_trace)
    )
    if not 1 <= len(runs) <= 2:
        raise QkvError(f"{len(runs)} runs were given to show; expected one, or two side by side")
    long = _count_numbers(runs) > _MAX_NUMBERS or any(overview.is_long(one) for run in runs for one in run.trace)
    dtype = dtype or ("float32" if long else _choose_dtype(_count_numbers(runs)))
    blocks = Blocks(dtype)
    # in int8, what the model itself computed would be no check of what is recomputed
    shown_runs = [
        run.to_json(blocks, label=label, contexts=dtype != "int8", long=long)
        for run, label in zip(runs, shorten_names([run.name for run in runs]), strict=True)
    ]
    errors = (one.get("error", 0.0) for run in shown_runs for one in run["attentions"])
    described = {
        "version": VERSION,
        "title": title,
        "note": note,
        "runs": shown_runs,
        "precision": {"dtype": dtype, "error": max(errors, default=0.0)},
        "live": live,
    }
    return Document(described, blocks.to_bytes())


def dump_html_safe_json(value: object) -> str:
    """JSON in ASCII that cannot end its <script> element, whatever the tokens are."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _choose_dtype(count: int) -> StorageDtype:
    return next((kind for kind, size, room in _DTYPE_BUDGETS if count * size <= room), "int8")


def _count_numbers(runs: Sequence[Run]) -> int:
    """How many numbers all queries, keys, values and contexts are."""
    count = 0
    for run in runs:
        for one in run.trace:
            asked = one.heads * one.queries * (one.query.shape[-1] + one.value.shape[-1])
            count += asked + one.kv_heads * one.keys * (one.key.shape[-1] + one.value.shape[-1])
    return count
