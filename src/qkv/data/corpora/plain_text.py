"""Corpora of plain text, which have no source: pairs of an empty source and a text."""

from __future__ import annotations

from qkv.data.corpora.fetch import read_content
from qkv.data.corpora.info import CorpusInfo, CorpusSelection
from qkv.data.text.pairs import Pair

_TRAIN_FRACTION = 0.9


def read_text(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read the only text: the first nine tenths of its characters for training, the rest for validation."""
    (file,) = info.files
    text = read_content(file, info.name).decode("utf-8")
    cut = int(len(text) * _TRAIN_FRACTION)
    return [("", text[:cut] if selection.split == "train" else text[cut:])]
