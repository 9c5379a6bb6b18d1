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

from qkv.data.cleaning import IssueCount
from qkv.data.corpora import Corpus
from qkv.data.text.pairs import read_lines
from qkv.errors import DataError

_MAX_BROKEN_FRACTION = 0.01
"""The share of documents that may be unreadable before nothing is trained on the rest."""


class Document(NamedTuple):
    """A text and what to call it; a fault says why it cannot be used."""

    name: str
    text: str
    problem: str = ""


@dataclass(frozen=True)
class TextFiles:
    """A text file, or all files of a folder whose path in it fits `pattern` ("**/*.txt"), in the order of their names.

    Hidden files and those in hidden folders are left out. Raises DataError if there is no such file.
    """

    path: Path
    pattern: str = "**/*"

    def read_documents(self) -> Iterator[Document]:
        """Read one file after the other."""
        if not self.path.exists():
            raise DataError(f"{self.path} does not exist; expected a text file or a folder of them: check the path")
        if self.path.is_file():
            yield _read_document(self.path, str(self.path))
            return
        names = _list_files(self.path, self.pattern)
        if not names:
            raise DataError(f"{self.path} holds no file that fits {self.pattern!r}; check the folder and the pattern")
        for name in names:
            yield _read_document(self.path / name, f"{self.path}/{name}")


@dataclass(frozen=True)
class JsonlDocuments:
    """One file, a JSON object on each line, whose `field` is a document."""

    path: Path
    field: str = "text"

    def read_documents(self) -> Iterator[Document]:
        """Read one line after the other; DataError if the file is missing, empty or not UTF-8."""
        for number, line in enumerate(read_lines(self.path), 1):
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

    def read_documents(self) -> Iterator[Document]:
        """Read one module after the other."""
        folder = Path(sysconfig.get_path("stdlib"))
        for name in _list_files(folder, "**/*.py"):
            if not {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages"} & {*name.parts}:
                yield _read_document(folder / name, name.as_posix())


TextSource: TypeAlias = Corpus | TextFiles | JsonlDocuments | StandardLibrary
"""Where documents come from; of a corpus of pairs, its targets."""


def read_documents(source: TextSource) -> Iterator[Document]:
    """Read the documents of an origin in their order. Raises DataError or CorpusError, as the origin does."""
    if isinstance(source, Corpus):
        for number, (_, text) in enumerate(source, 1):
            yield Document(f"{source.name}/{source.split}, text {number}", text)
    else:
        yield from source.read_documents()


class TextCorpus:
    """The documents of some sources, without those whose digest is excluded; they are read each time and never kept.

    max_characters: where a text is cut, if its end is held out. Empty documents are left out: `empty_count` and
    `problems` say how many, and `digests` has all others. The constructor reads everything once, and raises DataError
    if nothing is left, or if more than 1% of the documents cannot be used.
    """

    def __init__(self, sources: Sequence[TextSource], excluded: Iterable[bytes] = ()) -> None:
        self.sources, self.excluded = sources, frozenset(excluded)
        self.max_characters: int | None = None
        self.empty_count = self.excluded_count = 0
        self.problems: dict[str, IssueCount] = {}
        self.digests: list[bytes] = []
        for number, document in enumerate(self._read_all(), 1):
            if document.problem:
                self.problems.setdefault(document.problem, IssueCount()).add(number, document.name)
            elif not document.text.strip():
                self.empty_count += 1
            elif (digest := compute_digest(document.text)) in self.excluded:
                self.excluded_count += 1
            else:
                self.digests.append(digest)
        self._check()

    def __iter__(self) -> Iterator[str]:
        for _, text, fault in self._read_all():
            if not fault and text.strip() and (not self.excluded or compute_digest(text) not in self.excluded):
                yield text[: self.max_characters]

    def __len__(self) -> int:
        return len(self.digests)

    def select(self, digests: Iterable[bytes]) -> Iterator[str]:
        """Read the documents with these digests, each once."""
        missing = set(digests)
        for text in self:
            if (digest := compute_digest(text)) in missing:
                missing.remove(digest)
                yield text

    def exclude(self, digests: Iterable[bytes]) -> None:
        """Leave out the documents with these digests as well."""
        self.excluded |= frozenset(digests)
        self.digests = [digest for digest in self.digests if digest not in self.excluded]

    @property
    def cache_key(self) -> str:
        """A name for exactly these texts."""
        return hashlib.sha256(b"".join(self.digests) + str(self.max_characters).encode()).hexdigest()[:32]

    @property
    def notes(self) -> list[str]:
        """What was left out, in words."""
        lines = [f"{finding.count:,} documents left out: {reason}, such as {finding.examples[0]}"
                for reason, finding in self.problems.items()]  # fmt: skip
        return lines + ([f"{self.empty_count:,} documents left out: empty"] if self.empty_count else [])

    def _read_all(self) -> Iterator[Document]:
        for origin in self.sources:
            yield from read_documents(origin)

    def _check(self) -> None:
        faulty = sum(finding.count for finding in self.problems.values())
        total = faulty + len(self.digests) + self.excluded_count
        if faulty > _MAX_BROKEN_FRACTION * total:
            raise DataError(
                f"{faulty:,} of {total:,} documents cannot be used, and at most {_MAX_BROKEN_FRACTION:.0%} may be "
                f"left out: "
                f"{'; '.join(self.notes)}; mend them or take them out"
            )
        if not self.digests:
            raise DataError(
                f"{', '.join(map(describe_source, self.sources))}: no text to train on ({self.empty_count:,} "
                f"documents are empty, "
                f"{self.excluded_count:,} are held out); give at least one document with text"
            )


def compute_digest(text: str) -> bytes:
    """Return the digest by which texts are compared: 16 bytes of the SHA-256."""
    return hashlib.sha256(text.encode()).digest()[:16]


def describe_source(source: TextSource) -> str:
    """Return the name of a source for messages."""
    if isinstance(source, Corpus):
        return f"{source.name}/{source.split}"
    return "the standard library" if isinstance(source, StandardLibrary) else str(source.path)


def _list_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that match a pattern, by their paths in it, in the same order on every system."""
    names = (path.relative_to(folder) for path in folder.glob(pattern) if path.is_file())
    return sorted((name for name in names if not any(part.startswith(".") for part in name.parts)), key=Path.as_posix)


def _read_document(path: Path, name: str) -> Document:
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
