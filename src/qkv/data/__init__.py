"""Corpora, files and lines to batches of token numbers.

The names are loaded when they are first used: naming a corpus or reading a recipe needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkv.lazy import export_lazily

if TYPE_CHECKING:
    from qkv.data.batch import (
        IGNORE_INDEX,
        Batch,
        Example,
        SupportsSpecialTokens,
        collate,
        collate_decoder_only,
        collate_sources,
    )
    from qkv.data.cleaning import (
        CleaningConfig,
        CleaningReport,
        IssueCount,
        SupportsEncode,
        exclude_sources,
        find_leakage,
        group_references,
        tokenize_pairs,
    )
    from qkv.data.corpora import Corpus
    from qkv.data.sampler import BatchSampler, MixtureSampler
    from qkv.data.store import ConcatStore, TokenStore, TokenStoreBuilder, TokenStoreWriter
    from qkv.data.text.packing import TokenWindows, WindowSampler, tokenize_documents
    from qkv.data.text.pairs import Jsonl, Pair, ParallelFiles, Tsv, decode_lines, read_lines, read_pairs

_HOMES = {
    "qkv.data.batch": (
        "IGNORE_INDEX",
        "Batch",
        "Example",
        "SupportsSpecialTokens",
        "collate",
        "collate_decoder_only",
        "collate_sources",
    ),
    "qkv.data.cleaning": (
        "CleaningConfig",
        "SupportsEncode",
        "IssueCount",
        "CleaningReport",
        "find_leakage",
        "tokenize_pairs",
        "group_references",
        "exclude_sources",
    ),
    "qkv.data.corpora": ("Corpus",),
    "qkv.data.text.packing": ("WindowSampler", "TokenWindows", "tokenize_documents"),
    "qkv.data.text.pairs": ("ParallelFiles", "Jsonl", "Pair", "Tsv", "read_lines", "decode_lines", "read_pairs"),
    "qkv.data.sampler": ("BatchSampler", "MixtureSampler"),
    "qkv.data.store": ("ConcatStore", "TokenStoreWriter", "TokenStore", "TokenStoreBuilder"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "BatchSampler",
    "CleaningConfig",
    "Corpus",
    "SupportsEncode",
    "Example",
    "ParallelFiles",
    "IssueCount",
    "ConcatStore",
    "Jsonl",
    "MixtureSampler",
    "Pair",
    "CleaningReport",
    "SupportsSpecialTokens",
    "TokenStoreWriter",
    "TokenStore",
    "TokenStoreBuilder",
    "Tsv",
    "WindowSampler",
    "TokenWindows",
    "collate",
    "collate_decoder_only",
    "find_leakage",
    "read_lines",
    "decode_lines",
    "tokenize_documents",
    "tokenize_pairs",
    "read_pairs",
    "group_references",
    "collate_sources",
    "exclude_sources",
]


__getattr__, __dir__ = export_lazily(__name__, _HOME_OF)
