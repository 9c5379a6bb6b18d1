"""Plain text from files: whole documents, one after the other.

A document is a file, a line of JSON, or a text of a named corpus. Files are UTF-8, plain or gzip; a line ends with a
line feed, whatever it ended with in the file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from qkv.data.cleaning import Finding
from qkv.data.corpora import Corpus
from qkv.data.reading import lines
from qkv.errors import DataError

_FAULTY = 0.01
"""The share of documents that may be unreadable before nothing is learned from the rest."""


class Document(NamedTuple):
    """A text and what to call it; a fault says why it cannot be used."""

    name: str
    text: str
    fault: str = ""


@dataclass(frozen=True)
class Files:
    """A text file, or all files of a folder whose path in it fits `pattern` ("**/*.txt"), in the order of their names.

    Hidden files and those in hidden folders are left out. Raises DataError if there is no such file.
    """

    path: Path
    pattern: str = "**/*"

    def documents(self) -> Iterator[Document]:
        """Read one file after the other."""
        if not self.path.exists():
            raise DataError(f"{self.path} does not exist; expected a text file or a folder of them: check the path")
        if self.path.is_file():
            yield _read(self.path, str(self.path))
            return
        names = _below(self.path, self.pattern)
        if not names:
            raise DataError(f"{self.path} holds no file that fits {self.pattern!r}; check the folder and the pattern")
        for name in names:
            yield _read(self.path / name, f"{self.path}/{name}")


@dataclass(frozen=True)
class Jsonl:
    """One file, a JSON object on each line, whose `field` is a document."""

    path: Path
    field: str = "text"

    def documents(self) -> Iterator[Document]:
        """Read one line after the other; DataError if the file is missing, empty or not UTF-8."""
        for number, line in enumerate(lines(self.path), 1):
            name = f"{self.path}, line {number}"
            try:
                record = json.loads(line)
                text = record[self.field]
                text.encode()
            except (ValueError, KeyError, TypeError, AttributeError):
                yield Document(name, line, f"not a JSON object with a text under {self.field!r}")
                continue
            yield Document(name, text)


@dataclass(frozen=True)
class StandardLibrary:
    """The source of the standard library of the Python that runs this, without its tests and installed packages."""

    def documents(self) -> Iterator[Document]:
        """Read one module after the other."""
        folder = Path(sysconfig.get_path("stdlib"))
        for name in _below(folder, "**/*.py"):
            if not {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages"} & {*name.parts}:
                yield _read(folder / name, name.as_posix())


TextOrigin: TypeAlias = Corpus | Files | Jsonl | StandardLibrary
"""Where documents come from; of a corpus of pairs, its targets."""


def documents(origin: TextOrigin) -> Iterator[Document]:
    """Read the documents of an origin in their order. Raises DataError or CorpusError, as the origin does."""
    if isinstance(origin, Corpus):
        for number, (_, text) in enumerate(origin, 1):
            yield Document(f"{origin.name}/{origin.split}, text {number}", text)
    else:
        yield from origin.documents()


class Found:
    """Documents of some origins: read anew each time, never kept, without those whose digest is in `hidden`.

    end: where a text ends, in characters, if it goes on with what is held out. Empty documents are left out; `empty`
    and `faults` tell how many were, and `digests` knows all others. Making it reads everything once. Raises DataError
    if nothing is left, or more than 1% of the documents cannot be used.
    """

    def __init__(self, origins: Sequence[TextOrigin], hidden: Iterable[bytes] = ()) -> None:
        self.origins, self.hidden = origins, frozenset(hidden)
        self.end: int | None = None
        self.empty = self.hidden_count = 0
        self.faults: dict[str, Finding] = {}
        self.digests: list[bytes] = []
        for number, document in enumerate(self._all(), 1):
            if document.fault:
                self.faults.setdefault(document.fault, Finding()).add(number, document.name)
            elif not document.text.strip():
                self.empty += 1
            elif (digest := digest_of(document.text)) in self.hidden:
                self.hidden_count += 1
            else:
                self.digests.append(digest)
        self._check()

    def __iter__(self) -> Iterator[str]:
        for _, text, fault in self._all():
            if not fault and text.strip() and (not self.hidden or digest_of(text) not in self.hidden):
                yield text[: self.end]

    def __len__(self) -> int:
        return len(self.digests)

    def only(self, wanted: Iterable[bytes]) -> Iterator[str]:
        """Read the documents with these digests, each once."""
        missing = set(wanted)
        for text in self:
            if (digest := digest_of(text)) in missing:
                missing.remove(digest)
                yield text

    def hide(self, hidden: Iterable[bytes]) -> None:
        """Leave out the documents with these digests as well."""
        self.hidden |= frozenset(hidden)
        self.digests = [digest for digest in self.digests if digest not in self.hidden]

    @property
    def key(self) -> str:
        """A name for exactly these texts."""
        return hashlib.sha256(b"".join(self.digests) + str(self.end).encode()).hexdigest()[:32]

    @property
    def notes(self) -> list[str]:
        """What was left out, in words."""
        told = [f"{finding.count:,} documents left out: {reason}, such as {finding.examples[0]}"
                for reason, finding in self.faults.items()]  # fmt: skip
        return told + ([f"{self.empty:,} documents left out: empty"] if self.empty else [])

    def _all(self) -> Iterator[Document]:
        for origin in self.origins:
            yield from documents(origin)

    def _check(self) -> None:
        faulty = sum(finding.count for finding in self.faults.values())
        total = faulty + len(self.digests) + self.hidden_count
        if faulty > _FAULTY * total:
            raise DataError(
                f"{faulty:,} of {total:,} documents cannot be used, and at most {_FAULTY:.0%} may be left out: "
                f"{'; '.join(self.notes)}; mend them or take them out"
            )
        if not self.digests:
            raise DataError(
                f"{', '.join(map(name_of, self.origins))}: no text to learn from ({self.empty:,} documents are empty, "
                f"{self.hidden_count:,} are held out); give at least one document with text"
            )


def digest_of(text: str) -> bytes:
    """What stands for a text when texts are compared: 16 bytes of its sha256."""
    return hashlib.sha256(text.encode()).digest()[:16]


def name_of(origin: TextOrigin) -> str:
    """What to call an origin in a message."""
    if isinstance(origin, Corpus):
        return f"{origin.name}/{origin.split}"
    return "the standard library" if isinstance(origin, StandardLibrary) else str(origin.path)


def _below(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that fit a pattern, by their paths in it, in an order that is the same everywhere."""
    names = (path.relative_to(folder) for path in folder.glob(pattern) if path.is_file())
    return sorted((name for name in names if not any(part.startswith(".") for part in name.parts)), key=Path.as_posix)


def _read(path: Path, name: str) -> Document:
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        return Document(name, "", f"unreadable ({error})")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Document(f"{name} at byte {error.start + 1}", "", "not UTF-8")
    return Document(name, text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
