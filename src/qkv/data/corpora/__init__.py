"""Corpora by name: checked against a recorded sha256, with fixed splits."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from qkv.data.cleaning import exclude_sources
from qkv.data.corpora.catalog import CORPORA
from qkv.data.corpora.fetch import get_cache_folder
from qkv.data.corpora.info import CorpusFile, CorpusInfo, CorpusSelection
from qkv.data.images.sources import ImageDataset
from qkv.data.text.pairs import Pair
from qkv.errors import CorpusError

__all__ = [
    "Corpus",
    "CorpusInfo",
    "CorpusFile",
    "load_images",
    "get_cache_folder",
    "find_corpus",
    "list_corpora",
    "load_pairs",
]


@dataclass(frozen=True)
class Corpus:
    """A named corpus: its split, its source and target language, and the held-out words to exclude.

    source, target: languages, by default the corpus' first two; `stress` is for pronouncing dictionaries that mark it;
    exclude: splits of corpora, such as "cmudict-0.7b/test", whose sources are left out. prefix: prepended to every
    source
    of a task with pairs, such as `<2de>`, which names the target language.
    """

    name: str
    split: str = "train"
    source: str | None = None
    target: str | None = None
    stress: bool | None = None
    exclude: tuple[str, ...] = ()
    prefix: str = ""

    def __iter__(self) -> Iterator[Pair]:
        others = [_load_excluded(name) for name in self.exclude]
        pairs = load_pairs(self.name, self.split, source=self.source, target=self.target, stress=self.stress)
        return iter(exclude_sources(pairs, *others) if others else pairs)


def list_corpora() -> tuple[CorpusInfo, ...]:
    """Return the table of named corpora."""
    return CORPORA


def find_corpus(name: str) -> CorpusInfo:
    """Find a corpus by its name. Raises CorpusError with the nearest name if there is none."""
    for candidate in CORPORA:
        if candidate.name == name:
            return candidate
    names = [candidate.name for candidate in CORPORA]
    raise CorpusError(f"there is no corpus {name!r}{_suggest_name(name, names)}; `qkv data list` shows them all")


def load_pairs(
    name: str, split: str = "train", *, source: str | None = None, target: str | None = None, stress: bool | None = None
) -> list[Pair]:
    """Load one split of a named corpus as (source, target) pairs.

    Raises CorpusError for an unknown corpus, split, language or option, or a file that is missing or not as recorded,
    DownloadError if it cannot be downloaded, and MissingExtraError if the package that contains it is not installed.
    """
    found = find_corpus(name)
    if split not in found.splits:
        raise CorpusError(f"{name} has no split {split!r}{_suggest_name(split, list(found.splits))}")
    if stress is not None and not found.has_stress:
        raise CorpusError(f"{name} has no stress marks to keep or leave out; remove stress={stress}")
    return found.read_pairs(
        found, CorpusSelection(split, *_choose_languages(found, source, target), stress is not False)
    )


def load_images(name: str, split: str = "train") -> ImageDataset:
    """Load the images of one split of a named corpus. Raises as `load_pairs`, and CorpusError if it contains none."""
    found = find_corpus(name)
    if found.load_images is None:
        others = ", ".join(candidate.name for candidate in CORPORA if candidate.load_images is not None)
        raise CorpusError(f"the corpus {name} contains no images; expected one of {others}")
    if split not in found.splits:
        raise CorpusError(f"{name} has no split {split!r}{_suggest_name(split, list(found.splits))}")
    return found.load_images(found, split)


def _choose_languages(found: CorpusInfo, source: str | None, target: str | None) -> tuple[str, str]:
    if not found.languages:
        if source or target:
            raise CorpusError(f"{found.name} has no languages to choose from; remove source and target")
        return "", ""
    for language in (source, target):
        if language is not None and language not in found.languages:
            raise CorpusError(
                f"{found.name} has no language {language!r}; expected one of {', '.join(found.languages)}"
            )
    first = source or next(language for language in found.languages if language != target)
    second = target or next(language for language in found.languages if language != first)
    if first == second:
        raise CorpusError(f"{found.name}: source and target are both {first!r}; expected two languages")
    return first, second


def _load_excluded(name: str) -> list[Pair]:
    corpus, slash, split = name.partition("/")
    if not slash:
        raise CorpusError(f"exclude={name!r} names no split; expected a corpus and a split, as in cmudict-0.7b/test")
    return load_pairs(corpus, split)


def _suggest_name(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f", did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(names)}"
