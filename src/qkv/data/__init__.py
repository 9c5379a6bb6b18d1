"""Corpora, files and lines to batches of token numbers.

The names are loaded when they are first used: naming a corpus or reading a recipe needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qkv.data.batch import IGNORE, Batch, Example, SpecialTokens, collate, source_batch
    from qkv.data.sampler import BatchSampler, Mixture
    from qkv.data.store import Joined, TokenPairs, TokenWriter

_HOMES = {
    "qkv.data.batch": ("IGNORE", "Batch", "Example", "SpecialTokens", "collate", "source_batch"),
    "qkv.data.sampler": ("BatchSampler", "Mixture"),
    "qkv.data.store": ("Joined", "TokenPairs", "TokenWriter"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "IGNORE",
    "Batch",
    "BatchSampler",
    "Example",
    "Joined",
    "Mixture",
    "SpecialTokens",
    "TokenPairs",
    "TokenWriter",
    "collate",
    "source_batch",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
