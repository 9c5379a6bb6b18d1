"""What is recorded about a named corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qkv.data.images.sources import ImageDataset
from qkv.data.text.pairs import Pair


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus: its path below QKV_DATA, and the size in bytes and sha256 of what it holds, unpacked.

    `url` is where it may be downloaded (nowhere if empty); `member` is its name in the zip file found there.
    """

    path: str
    size: int
    sha256: str
    url: str = ""
    member: str = ""


@dataclass(frozen=True)
class CorpusSelection:
    """What of a corpus is asked for."""

    split: str
    source: str = ""
    target: str = ""
    stress: bool = True


@dataclass(frozen=True)
class CorpusInfo:
    """A named corpus: where it comes from, on what terms, what it holds and how it is read."""

    name: str
    description: str
    license: str
    citation: str
    homepage: str
    splits: Mapping[str, int]
    """The number of pairs in each split, in the languages named first; without files, with the versions tested."""
    files: tuple[CorpusFile, ...]
    """None of a corpus that is made of what is installed."""
    read_pairs: Callable[[CorpusInfo, CorpusSelection], list[Pair]] = field(repr=False)
    languages: tuple[str, ...] = ()
    """Any two may be source and target; the first two are, unless told. Empty where there is nothing to choose."""
    has_stress: bool = False
    """Whether stress marks can be kept or left out."""
    load_images: Callable[[CorpusInfo, str], ImageDataset] | None = field(default=None, repr=False)
    """What reads the images of a split, of which `read` gives the names and the classes; None of a corpus of texts."""

    @property
    def size(self) -> int:
        """Bytes of all files, unpacked."""
        return sum(file.size for file in self.files)

    @property
    def checksum(self) -> str:
        """The sha256 of the one file, or of the list of all files as `sha256sum` prints it."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return hashlib.sha256("".join(f"{file.sha256}  {file.path}\n" for file in self.files).encode()).hexdigest()
