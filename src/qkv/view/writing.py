"""One HTML file that shows the queries, keys, values, scores, weights and context behind one prediction.

The file holds the tensors themselves, as raw little-endian blocks; its own script recomputes every score, weight and
context from them and compares with the context the model used. It needs no network and opens from disk.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from qkv.attend import additions
from qkv.errors import QkvError, StorageError
from qkv.lens import AttentionTrace, Trace

Names = Callable[[list[int]], list[str]]
"""The display strings of token numbers, e.g. `Tokenizer.tokens`."""

_SCRIPTS = ("data.js", "draw.js", "cell.js", "page.js")
_ALTERNATIVES = 5


def page(
    trace: Trace,
    path: Path | str,
    *,
    source_tokens: Sequence[str] = (),
    target_tokens: Sequence[str] = (),
    names: Names | None = None,
    title: str = "",
    note: str = "",
    row: int = 0,
) -> Path:
    """Write a self-contained page about one row of the batch in a trace, and return its path.

    source_tokens, target_tokens: what to call the tokens on the axes, one string for each number the model was given.
    names: names the answers, e.g. the target tokenizer's `tokens`; without it answers are shown as numbers.
    title, note: what stands at the head, e.g. the word and the model's name.
    Raises QkvError if the tokens do not match the trace, StorageError if the file cannot be written.
    """
    _check(source_tokens, trace.source, "source_tokens")
    _check(target_tokens, trace.target, "target_tokens")
    blocks = _Blocks()
    document = {
        "title": title,
        "note": note,
        "source": list(source_tokens) or _numbers(trace.source, row),
        "target": list(target_tokens) or _numbers(trace.target, row),
        "answers": _answers(trace, row, names),
        "attentions": [_attention(attention, row, blocks) for attention in trace],
    }
    text = _fill(
        {
            "title": html.escape(title or "query, key, value"),
            "style": _file("page.css"),
            "script": "\n".join(_file(name) for name in _SCRIPTS),
            "document": _safe_json(document),
            "blocks": base64.b64encode(blocks.bytes()).decode(),
        }
    )
    path = Path(path)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}. Choose another path") from error
    return path


class _Blocks:
    """Raw little-endian arrays one after the other; a tensor that several places share is kept once."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._kept: dict[bytes, dict[str, Any]] = {}

    def add(self, tensor: Tensor) -> dict[str, Any]:
        kind = "uint8" if tensor.dtype == torch.bool else "float32"
        array = tensor.detach().cpu().to(torch.uint8 if kind == "uint8" else torch.float32).contiguous().numpy()
        raw = array.astype(numpy.dtype(kind).newbyteorder("<")).tobytes()
        if raw not in self._kept:
            self._kept[raw] = {"at": self._size, "kind": kind}
            raw_padded = raw + bytes(-len(raw) % 4)
            self._parts.append(raw_padded)
            self._size += len(raw_padded)
        return {**self._kept[raw], "shape": list(tensor.shape)}

    def bytes(self) -> bytes:
        return b"".join(self._parts)


def _attention(attention: AttentionTrace, row: int, blocks: _Blocks) -> dict[str, Any]:
    """One attention for the page: what it is, and its tensors for one row of the batch."""
    parts = attention.place.split(".")
    added, visible = _additions(attention, row)
    described: dict[str, Any] = {
        "place": attention.place,
        "stack": parts[0],
        "layer": next((int(part) for part in parts if part.isdigit()), 0),
        "kind": parts[-1],
        "scale": attention.scale,
        "softcap": attention.terms.get("softcap"),
        "certified": attention.certify().tolist(),
        "query": blocks.add(attention.query[row]),
        "key": blocks.add(attention.key[row]),
        "value": blocks.add(attention.value[row]),
        "context": blocks.add(attention.context[row]),
    }
    if attention.terms.get("score") is not None:
        # Not a dot product: the page cannot recompute it, so it is told.
        scores = attention.scores()[row]
        described["scores"] = blocks.add(scores.masked_fill(scores == -torch.inf, 0.0))
    elif added is not None:
        described["added"] = blocks.add(added)
    if visible is not None and not visible.all():
        described["visible"] = blocks.add(visible)
    if (sinks := attention.terms.get("sinks")) is not None:
        described["sinks"] = blocks.add(sinks)
    if attention.output_parameter is not None:
        value = attention.value[row].float()
        value = value.repeat_interleave(attention.heads // attention.kv_heads, dim=0)
        described["norms"] = blocks.add((value @ attention.output_parameter.float()).norm(dim=-1))
    return described


def _additions(attention: AttentionTrace, row: int) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the scores, and what is visible: (heads or 1, queries, keys), over all calls."""
    added_parts: list[Tensor] = []
    visible_parts: list[Tensor] = []
    for call in attention.calls:
        query, key = call["query"], call["key"]
        added, visible = additions(call.terms.get("mask"), call.terms.get("bias"), query, key)
        shape, absent = (query.shape[0], attention.heads, query.shape[2], key.shape[2]), attention.keys - key.shape[2]
        added = torch.zeros(()) if added is None else added.detach()
        visible = torch.ones((), dtype=torch.bool) if visible is None else visible
        added_parts.append(torch.nn.functional.pad(added.expand(shape)[row], (0, absent)))
        visible_parts.append(torch.nn.functional.pad(visible.expand(shape)[row], (0, absent), value=False))
    added, visible = torch.cat(added_parts, dim=1), torch.cat(visible_parts, dim=1)
    return (added if added.any() else None), _one_if_alike(visible)


def _one_if_alike(tensor: Tensor) -> Tensor:
    return tensor[:1] if bool((tensor == tensor[:1]).all()) else tensor


def _answers(trace: Trace, row: int, names: Names | None) -> list[dict[str, Any]]:
    """For each position what was answered there, how probable it was, and the likeliest answers."""
    if trace.logits is None:
        return []
    logits = trace.logits[row].float()
    probabilities = (logits if logits.dim() == 2 else logits[None]).softmax(dim=-1)
    chosen = probabilities.argmax(dim=-1).tolist()
    if trace.target is not None:
        chosen[:-1] = trace.target[row, 1:].tolist()
    top = probabilities.topk(min(_ALTERNATIVES, probabilities.shape[-1]), dim=-1)
    answers = []
    for position, number in enumerate(chosen):
        numbers = [number, *top.indices[position].tolist()]
        strings = names(numbers) if names is not None else [str(item) for item in numbers]
        shares = [probabilities[position, item].item() for item in numbers]
        pairs = [[string, share] for string, share in zip(strings, shares, strict=True)]
        answers.append({"chosen": pairs[0], "best": pairs[1:]})
    return answers


def _check(tokens: Sequence[str], numbers: Tensor | None, what: str) -> None:
    if numbers is not None and numbers.is_floating_point():  # an image or a sound: what it became is not known here
        return
    expected = 0 if numbers is None else numbers.shape[1]
    if tokens and len(tokens) != expected:
        raise QkvError(
            f"{what}: {len(tokens)} strings were given for a trace of {expected} tokens; "
            "give one string for each number the model was given, <s> and </s> included"
        )


def _numbers(numbers: Tensor | None, row: int) -> list[str]:
    if numbers is None or numbers.is_floating_point():
        return []
    return [str(number) for number in numbers[row].tolist()]


def _safe_json(document: object) -> str:
    """JSON that cannot end its <script> element, whatever the tokens are."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _fill(parts: Mapping[str, str]) -> str:
    """The template with each {{name}} replaced, in one pass, so that no part is searched for names."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file("page.html"))
