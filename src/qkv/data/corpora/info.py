"""The record of a named corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qkv.data.images.sources import ImageDataset
from qkv.data.text.pairs import Pair


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus: its path below QKV_DATA, and the size in bytes and sha256 of its unpacked content.

    url: where it can be downloaded, "" if nowhere; member: its name in the zip file found there.
    """

    path: str
    size: int
    sha256: str
    url: str = ""
    member: str = ""


@dataclass(frozen=True)
class CorpusSelection:
    """The part of a corpus that is requested."""

    split: str
    source: str = ""
    target: str = ""
    stress: bool = True


@dataclass(frozen=True)
class CorpusInfo:
    """A named corpus: where it comes from, on what terms, what it contains and how it is read."""

    name: str
    description: str
    license: str
    citation: str
    homepage: str
    splits: Mapping[str, int]
    """The number of pairs in each split, for the first two languages; without files, for the tested versions."""
    files: tuple[CorpusFile, ...]
    """None for a corpus that is built from installed packages."""
    read_pairs: Callable[[CorpusInfo, CorpusSelection], list[Pair]] = field(repr=False)
    languages: tuple[str, ...] = ()
    """Any two may be source and target, by default the first two. Empty if there is nothing to choose."""
    has_stress: bool = False
    """Whether stress marks can be kept or removed."""
    load_images: Callable[[CorpusInfo, str], ImageDataset] | None = field(default=None, repr=False)
    """Loads the images of a split, while `read` returns their names and classes; None for a corpus of texts."""

    @property
    def size(self) -> int:
        """The size of all unpacked files in bytes."""
        return sum(file.size for file in self.files)

    @property
    def checksum(self) -> str:
        """The sha256 of the one file, or of the list of all files as `sha256sum` prints it."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return hashlib.sha256("".join(f"{file.sha256}  {file.path}\n" for file in self.files).encode()).hexdigest()
