"""The requests of a live page and the replies: runs with changes, explanations, rows, tiles and statistics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from qkv import lens
from qkv.errors import QkvError
from qkv.lens import AttentionTrace
from qkv.tasks.base import TaskModel
from qkv.view import overview
from qkv.view.blocks import Blocks
from qkv.view.builder import build_run
from qkv.view.document import Document, build_document
from qkv.view.run import Edit, Run, explanation_to_json, shorten_names

Request = Mapping[str, Any]

_MAX_TILE_SIZE = 512  # rows and columns of a tile


class Session:
    """One live page: its models, which are shown side by side, and their current runs.

    models: each with the name or path that it was loaded by. All of them read the same line. Requests are answered one
    at a time.
    """

    def __init__(self, models: Sequence[tuple[str, TaskModel]], line: str, answer: str | None = None) -> None:
        self.models = list(models)
        self.line, self.answer = line, answer
        self.runs = [self._build_run(number, line, answer, ()) for number in range(len(self.models))]
        self._lock = threading.Lock()

    def build_document(self) -> Document:
        """Return the page as it is now."""
        return build_document(self.runs, live=True)

    def ask(self, request: object) -> tuple[dict[str, Any], bytes]:
        """Answer a request: return the reply, and the blocks that it names.

        The reply to a request that cannot be answered is {"error": message}; it raises nothing.
        """
        blocks = Blocks()
        try:
            with self._lock, torch.no_grad():
                reply = self._dispatch(request, blocks)
        except QkvError as error:
            return {"error": str(error)}, b""
        return reply, blocks.to_bytes()

    def _dispatch(self, request: object, blocks: Blocks) -> dict[str, Any]:
        handlers: dict[str, Callable[[_RequestReader, int, Blocks], dict[str, Any]]] = {
            "look": self._look,
            "explain": self._explain,
            "row": self._row,
            "tile": self._tile,
            "statistics": self._statistics,
        }
        reader = _RequestReader(request)
        number = reader.integer("run", 0)
        if not 0 <= number < len(self.runs):
            raise QkvError(f"run {number} was requested; there are {len(self.runs)}, counted from 0")
        return handlers[reader.choice("ask", handlers)](reader, number, blocks)

    def _look(self, request: _RequestReader, number: int, blocks: Blocks) -> dict[str, Any]:
        line = request.string("text") or self.line
        answer = request.string("answer")
        if answer is None and line == self.line:
            answer = self.answer
        run = self._build_run(number, line, answer, request.edits())
        description = run.to_json(blocks, label=shorten_names([name for name, _ in self.models])[number])
        self.line, self.answer = line, answer
        self.runs[number] = run
        return {"run": description}

    def _explain(self, request: _RequestReader, number: int, blocks: Blocks) -> dict[str, Any]:
        run, (_, runner) = self.runs[number], self.models[number]
        if "generation" not in runner.capabilities:
            raise QkvError(
                "an explanation was requested of a model that writes no text; expected one that answers token by token"
            )
        if run.edits:
            raise QkvError("an explanation was requested of a run with changes; undo them first")
        assert run.trace.target is not None
        found = lens.explain(runner.module, run.trace.source, run.trace.target, request.integer("position"))
        return {"explanation": explanation_to_json(found, runner.token_names([found.token])[0])}

    def _row(self, request: _RequestReader, number: int, blocks: Blocks) -> dict[str, Any]:
        run, attention, head = self._find_head(request, number)
        query = request.integer("query")
        weights = attention.compute_weights(head, [query])[run.row, 0]
        scores = attention.compute_scores(head, [query])[run.row, 0]
        return {"row": blocks.add(weights), "scores": blocks.add(scores)}

    def _tile(self, request: _RequestReader, number: int, blocks: Blocks) -> dict[str, Any]:
        run, attention, head = self._find_head(request, number)
        rows, columns = request.pair("rows"), request.pair("columns")
        size = min(request.integer("size", 256), _MAX_TILE_SIZE)
        if size < 1:
            raise QkvError(f"a tile of size {size} was requested; expected 1 to {_MAX_TILE_SIZE}")
        long = overview.is_long(attention)
        logsumexp = overview.measure_head(attention, head, run.statistics).logsumexp if long else None
        tile, pooled = overview.compute_tile(attention, head, rows, columns, size, logsumexp, run.row)
        return {"tile": blocks.add(tile), "rows": list(rows), "columns": list(columns), "pooled": list(pooled)}

    def _statistics(self, request: _RequestReader, number: int, blocks: Blocks) -> dict[str, Any]:
        run, attention, head = self._find_head(request, number)
        numbers = overview.measure_head(attention, head, run.statistics)
        return {"head": head} | overview.overview_to_json(attention, numbers, blocks, run.row)

    def _find_head(self, request: _RequestReader, number: int) -> tuple[Run, AttentionTrace, int]:
        run = self.runs[number]
        place = request.string("place")
        attention = run.trace["" if place is None else place]
        head = request.integer("head", 0)
        if not 0 <= head < attention.heads:
            raise QkvError(f"{place}: head {head} was requested; it has heads 0 to {attention.heads - 1}")
        return run, attention, head

    def _build_run(self, number: int, line: str, answer: str | None, edits: Sequence[Edit]) -> Run:
        name, runner = self.models[number]
        return build_run(runner, line, answer, name=name, edits=edits)


class _RequestReader:
    """A request, whose fields are read with their types checked."""

    def __init__(self, request: object) -> None:
        if not isinstance(request, Mapping):
            raise QkvError(f"a request of type {type(request).__name__} was given; expected an object with `ask`")
        self._request = request

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._request.get(name, default)
        if type(value) is not int:
            raise QkvError(f"{name}={value!r} was given; expected a whole number")
        return value

    def string(self, name: str) -> str | None:
        value = self._request.get(name)
        if value is not None and not isinstance(value, str):
            raise QkvError(f"{name}={value!r} was given; expected a string")
        return value

    def choice(self, name: str, known: Mapping[str, object]) -> str:
        value = self._request.get(name)
        if not isinstance(value, str) or value not in known:
            raise QkvError(f"{name}={value!r} was given; expected one of {', '.join(known)}")
        return value

    def pair(self, name: str) -> tuple[int, int]:
        value = self._request.get(name)
        if not isinstance(value, list) or len(value) != 2 or any(type(one) is not int for one in value):
            raise QkvError(f"{name}={value!r} was given; expected [first, one after the last]")
        return value[0], value[1]

    def edits(self) -> list[Edit]:
        value = self._request.get("edits") or []
        if not isinstance(value, list):
            raise QkvError(f"edits={value!r} was given; expected a list")
        return value
