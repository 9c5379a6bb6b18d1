"""Translation corpora: parallel files, and a table of sentences that is split here."""

from __future__ import annotations

import hashlib
import io

from qkv.data.corpora.fetch import read_content
from qkv.data.corpora.info import CorpusInfo, CorpusSelection
from qkv.data.text.pairs import Pair, decode_lines
from qkv.errors import CorpusError

_FILE_OF_SPLIT = {"multi30k": {"valid": "val"}, "flores": {"valid": "flores-dev", "test": "flores-test"}}


def read_parallel_files(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read two of the files `<split>.<language>.gz` line by line."""
    split = _FILE_OF_SPLIT.get(info.name, {}).get(selection.split, selection.split)
    source, target = (
        _read_language(info, split, selection, language) for language in (selection.source, selection.target)
    )
    if len(source) != len(target):
        raise CorpusError(f"{info.name}, {selection.split}: {len(source):,} lines and {len(target):,}")
    return list(zip(source, target, strict=True))


def _read_language(info: CorpusInfo, split: str, selection: CorpusSelection, language: str) -> list[str]:
    for file in info.files:
        name = file.path.rsplit("/", 1)[-1]
        if name.endswith(f".{language}.gz") and (split == "test" or name.startswith(f"{split}.")):
            return list(decode_lines(io.BytesIO(read_content(file, info.name)), file.path))
    have = sorted({file.path.split(".")[-2] for file in info.files if f"/{split}." in file.path})
    raise CorpusError(
        f"{info.name} has no {language!r} for {selection.split}, only {', '.join(have)}: choose one of these"
    )


def read_tatoeba(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read the sentences of Tatoeba and split them by English sentence."""
    (file,) = info.files
    rows = (line.split("\t") for line in decode_lines(io.BytesIO(read_content(file, info.name)), file.path))
    pairs = [(german, english) for english, german, *_ in rows]
    chosen = split_by_hash([(english, german) for german, english in pairs], selection.split, info.name)
    forward = [(german, english) for english, german in chosen]
    return forward if selection.source == "de" else chosen


def split_by_hash(pairs: list[Pair], split: str, salt: str) -> list[Pair]:
    """Return one of "train", "valid" (1%) and "test" (2%), so that no sentence of either side is in two of them.

    The hash of a pair's first side decides. A pair for training or validation is left out if either of its sides
    belongs to a pair held out for testing (or, for training, validation) as well.
    """
    parts: dict[str, list[Pair]] = {"test": [], "valid": [], "train": []}
    for pair in dict.fromkeys(pairs):
        place = int.from_bytes(hashlib.sha256(f"{salt}\n{pair[0]}".encode()).digest()[:8], "big") % 100
        parts["test" if place < 2 else "valid" if place < 3 else "train"].append(pair)
    taken: tuple[set[str], set[str]] = (set(), set())
    for name, part in parts.items():
        kept = [pair for pair in part if pair[0] not in taken[0] and pair[1] not in taken[1]]
        if name == split:
            return kept
        for side in (0, 1):
            taken[side].update(pair[side] for pair in part)
    raise CorpusError(f"no split {split!r}; expected one of {', '.join(parts)}")
