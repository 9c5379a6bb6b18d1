"""Changes made on the page, as taps and as the Python that makes the same changes.

    {"kind": "knock_out", "keys": [3], "place": "decoder.*.cross_attention", "head": 2, "queries": [4]}
    {"kind": "ablate", "place": "decoder.2.cross_attention", "head": 1, "mode": "zero"}      or "mean"
    {"kind": "swap_values", "place": "decoder.2.cross_attention", "key": 3, "with": 5}

Without a place, "knock_out" concerns all cross-attentions or, where there are none, all self-attentions. Without a head
or queries, a change concerns all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qkv import lens
from qkv.errors import QkvError
from qkv.lens import Trace
from qkv.tap import Tap
from qkv.view.run import Edit

_FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "knock_out": ({"keys"}, {"place", "head", "queries"}),
    "ablate": ({"place", "head", "mode"}, set()),
    "swap_values": ({"place", "key", "with"}, {"head"}),
}
"""The required and the optional fields of each kind of edit."""


def build_tap(edits: Sequence[Edit], base: Trace) -> Tap:
    """Return a tap that makes all edits, one after the other. base: the run without them, for edits that take its mean.

    Raises QkvError for an edit with wrong fields, or of something that the run does not have.
    """
    taps = []
    for edit in edits:
        name, given = _resolve_call(edit, base)
        if given.get("by") == "mean":
            given["of"] = base[given["place"]]
        taps.append(getattr(lens, name)(**given))
    return lens.Compose(*taps)


def format_code(name: str, line: str, answer: str | None, edits: Sequence[Edit], base: Trace) -> str:
    """Return the Python that repeats a run."""
    arguments = f"model, {line!r}" if answer is None else f"model, {line!r}, answer={answer!r}"
    lines = ["import qkv", "", f"model = qkv.load({name!r})" if name else "# model: the one that this page is about"]
    if edits:
        calls = [_resolve_call(edit, base) for edit in edits]
        if any(call.get("by") == "mean" for _, call in calls):
            lines.append(f"base = qkv.look({arguments})")
        formatted = [f"    {_format_call(*call)}," for call in calls]
        lines += [f"trace = qkv.look({arguments}, edits=[", *formatted, "])"]
    else:
        lines.append(f"trace = qkv.look({arguments})")
    return "\n".join([*lines, "print(trace.answer)"])


def _format_call(name: str, arguments: dict[str, Any]) -> str:
    place = repr(arguments.pop("place"))
    words = [place, *(f"{key}={value!r}" for key, value in arguments.items())]
    if arguments.get("by") == "mean":
        words.append(f"of=base[{place}]")
    return f"qkv.{name}({', '.join(words)})"


def _resolve_call(edit: Edit, base: Trace) -> tuple[str, dict[str, Any]]:
    """Return the name of the function that makes an edit, and its arguments."""
    _validate(edit)
    place = edit.get("place") or _default_places(base)
    touched = [one for one in base if _matches_place(place, one.place)]
    if not touched:
        base[place]  # raises an error that names the places there are
    queries, keys = (max(getattr(one, name) for one in touched) for name in ("queries", "keys"))
    positions = [*edit.get("keys", ()), *(edit[name] for name in ("key", "with") if name in edit)]
    for name, wanted, count in (("key", positions, keys), ("query", edit.get("queries") or (), queries)):
        if wrong := [one for one in wanted if not 0 <= one < count]:
            raise QkvError(f"{name} {wrong[0]} was given at {place}; it has {count}, counted from 0")
    given: dict[str, Any] = {"place": place}
    head = edit.get("head")
    if head is not None and not 0 <= head < min(one.heads for one in touched):
        raise QkvError(f"head {head} was given at {place}; it has heads 0 to {touched[0].heads - 1}")
    if edit["kind"] == "swap_values":
        given |= {"first": edit["key"], "second": edit["with"]}
        if head is not None:  # heads that share values are swapped together
            given["head"] = head * touched[0].kv_heads // touched[0].heads
        return "swap_values", given
    if edit["kind"] == "knock_out":
        given["keys"] = list(edit["keys"])
        if edit.get("queries") is not None:
            given["queries"] = list(edit["queries"])
    if head is not None:
        given["head"] = head
    if edit["kind"] == "knock_out":
        return "knock_out", given
    return "ablate", given | {"by": edit["mode"]}


def _validate(edit: Edit) -> None:
    """Raise QkvError unless an edit has the fields of its kind, each of its type."""
    kind = edit.get("kind") if isinstance(edit, dict) else None
    if kind not in _FIELDS:
        raise QkvError(f"the edit {edit!r} was given; expected one of the kinds {', '.join(_FIELDS)}")
    needed, allowed = _FIELDS[kind]
    present = {name for name, value in edit.items() if value is not None} - {"kind"}
    if needed - present or present - needed - allowed:
        raise QkvError(
            f"the edit {edit!r} was given; {kind} has the fields {', '.join(sorted(needed))} and may have "
            f"{', '.join(sorted(allowed)) or 'no others'}"
        )
    for name in present:
        value = edit[name]
        right = {
            "place": isinstance(value, str),
            "mode": value in ("zero", "mean"),
            "keys": isinstance(value, list) and bool(value) and all(type(one) is int for one in value),
            "queries": isinstance(value, list) and all(type(one) is int for one in value),
        }.get(name, type(value) is int)
        if not right:
            raise QkvError(f"the edit {edit!r} was given; its {name} is not what {kind} expects")


def _default_places(base: Trace) -> str:
    """Return the places that "knock_out" applies to by default."""
    crossing = [one.place for one in base if one.place.endswith("cross_attention")]
    places = crossing or [one.place for one in base]
    return ".".join("*" if part.isdigit() else part for part in places[-1].split(".")) if places else ""


def _matches_place(pattern: str, place: str) -> bool:
    names, parts = pattern.split("."), place.split(".")
    return len(names) == len(parts) and all(name in ("*", part) for name, part in zip(names, parts, strict=True))
