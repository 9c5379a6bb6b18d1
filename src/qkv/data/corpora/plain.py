"""Corpora of plain text, which has no source: pairs of nothing and a text."""

from __future__ import annotations

from qkv.data.corpora.entry import Choice, Entry
from qkv.data.corpora.fetch import content
from qkv.data.reading import Pair

_LEARNED = 0.9


def one_text(entry: Entry, choice: Choice) -> list[Pair]:
    """Read the only text: its first nine tenths by characters to learn from, the rest to check on."""
    (file,) = entry.files
    text = content(file, entry.name).decode("utf-8")
    cut = int(len(text) * _LEARNED)
    return [("", text[:cut] if choice.split == "train" else text[cut:])]
