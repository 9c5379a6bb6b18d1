"""Corpora, files and lines to batches of token numbers.

The names are loaded when they are first used: naming a corpus or reading a recipe needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qkv.data.batch import IGNORE, Batch, Example, SpecialTokens, collate, in_one, source_batch
    from qkv.data.cleaning import Cleaning, Encoder, Finding, Report, leakage, prepare, references, without
    from qkv.data.corpora import Corpus
    from qkv.data.packing import Windows, WindowSampler, pack
    from qkv.data.reading import Files, Jsonl, Pair, Tsv, lines, lines_of, read_pairs
    from qkv.data.sampler import BatchSampler, Mixture
    from qkv.data.store import Joined, StoreWriter, TokenPairs, TokenWriter

_HOMES = {
    "qkv.data.batch": ("IGNORE", "Batch", "Example", "SpecialTokens", "collate", "in_one", "source_batch"),
    "qkv.data.cleaning": ("Cleaning", "Encoder", "Finding", "Report", "leakage", "prepare", "references", "without"),
    "qkv.data.corpora": ("Corpus",),
    "qkv.data.packing": ("WindowSampler", "Windows", "pack"),
    "qkv.data.reading": ("Files", "Jsonl", "Pair", "Tsv", "lines", "lines_of", "read_pairs"),
    "qkv.data.sampler": ("BatchSampler", "Mixture"),
    "qkv.data.store": ("Joined", "StoreWriter", "TokenPairs", "TokenWriter"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "IGNORE",
    "Batch",
    "BatchSampler",
    "Cleaning",
    "Corpus",
    "Encoder",
    "Example",
    "Files",
    "Finding",
    "Joined",
    "Jsonl",
    "Mixture",
    "Pair",
    "Report",
    "SpecialTokens",
    "StoreWriter",
    "TokenPairs",
    "TokenWriter",
    "Tsv",
    "WindowSampler",
    "Windows",
    "collate",
    "in_one",
    "leakage",
    "lines",
    "lines_of",
    "pack",
    "prepare",
    "read_pairs",
    "references",
    "source_batch",
    "without",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
