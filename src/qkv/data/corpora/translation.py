"""Translation corpora: files side by side, and a table of sentences that is split here."""

from __future__ import annotations

import hashlib
import io

from qkv.data.corpora.entry import Choice, Entry
from qkv.data.corpora.fetch import content
from qkv.data.reading import Pair, lines_of
from qkv.errors import CorpusError

_FILE_OF_SPLIT = {"multi30k": {"valid": "val"}, "flores": {"valid": "flores-dev", "test": "flores-test"}}


def side_by_side(entry: Entry, choice: Choice) -> list[Pair]:
    """Read two of the files `<split>.<language>.gz` line by line."""
    split = _FILE_OF_SPLIT.get(entry.name, {}).get(choice.split, choice.split)
    source, target = (_lines(entry, split, choice, language) for language in (choice.source, choice.target))
    if len(source) != len(target):
        raise CorpusError(f"{entry.name}, {choice.split}: {len(source):,} lines beside {len(target):,}")
    return list(zip(source, target, strict=True))


def _lines(entry: Entry, split: str, choice: Choice, language: str) -> list[str]:
    for file in entry.files:
        name = file.path.rsplit("/", 1)[-1]
        if name.endswith(f".{language}.gz") and (split == "test" or name.startswith(f"{split}.")):
            return list(lines_of(io.BytesIO(content(file, entry.name)), file.path))
    have = sorted({file.path.split(".")[-2] for file in entry.files if f"/{split}." in file.path})
    raise CorpusError(
        f"{entry.name} has no {language!r} for {choice.split}, only {', '.join(have)}: choose one of these"
    )


def tatoeba(entry: Entry, choice: Choice) -> list[Pair]:
    """Read the sentences of Tatoeba and split them by English sentence."""
    (file,) = entry.files
    rows = (line.split("\t") for line in lines_of(io.BytesIO(content(file, entry.name)), file.path))
    pairs = [(german, english) for english, german, *_ in rows]
    chosen = held_out([(english, german) for german, english in pairs], choice.split, entry.name)
    forward = [(german, english) for english, german in chosen]
    return forward if choice.source == "de" else chosen


def held_out(pairs: list[Pair], split: str, salt: str) -> list[Pair]:
    """Give one of "train", "valid" (1%) and "test" (2%), so that no sentence of either side is in two of them.

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
