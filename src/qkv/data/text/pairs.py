"""Parallel text from files: one line in, one line out.

A line ends with a line feed and nothing else (a carriage return before it goes too), so that U+2028, U+0085 or a
form feed inside a sentence never shifts one side against the other. Files are UTF-8, plain or gzip.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, cast

from qkv.errors import DataError

Pair = tuple[str, str]

_MAX_LINE_BYTES = 2**24
"""Bytes; past this a file is hardly text, and reading on would only fill the memory."""

_LINE_BREAK = re.compile(r"\r\n|\n|\r")


def read_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, plain or gzip, without their ends.

    Raises DataError if the file is missing, empty, truncated, or not UTF-8 (naming the line and the byte).
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            with cast(BinaryIO, gzip.open(raw)) if packed else raw as stream:
                empty = True
                for line in decode_lines(stream, name):
                    empty = False
                    yield line
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist; expected a text file: check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name} is a damaged gzip file ({error}): copy or download it again") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}; expected a text file") from error
    if empty:
        raise DataError(f"{name} is empty; expected at least one line of text")


def decode_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yield the lines of an open binary stream (standard input, say); `name` stands for it in errors."""
    for number, line in enumerate(iter(partial(stream.readline, _MAX_LINE_BYTES), b""), 1):
        if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
            raise DataError(f"{name}, line {number} is longer than {_MAX_LINE_BYTES:,} bytes; expected lines of text")
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}, line {number}, byte {error.start + 1}: 0x{line[error.start]:02X} is not UTF-8 here "
                f"({error.reason}); save the file as UTF-8 (iconv -f latin1 -t utf-8, for example)"
            ) from error
        yield text.removeprefix("\ufeff") if number == 1 else text


def to_single_line(text: str) -> str:
    """Return a text that `read_lines` reads as one line: line breaks become spaces, and nothing else changes."""
    return " ".join(_LINE_BREAK.split(text.strip("\r\n")))


@dataclass(frozen=True)
class ParallelFiles:
    """Two files, line by line: a source and a target.

    before: what is put before every source, such as `<2de>`, which says what language the target is in.
    """

    source: Path
    target: Path
    prefix: str = ""

    def __iter__(self) -> Iterator[Pair]:
        counts = [0, 0]
        for source, target in zip_longest(read_lines(self.source), read_lines(self.target)):
            counts[0] += source is not None
            counts[1] += target is not None
            if source is not None and target is not None:
                yield source, target
        if counts[0] != counts[1]:
            raise DataError(
                f"{self.source} has {counts[0]:,} lines and {self.target} has {counts[1]:,}; expected as many in both: "
                f"line n of one must translate line n of the other"
            )


@dataclass(frozen=True)
class Tsv:
    """One file, columns between tabs (no quoting); `source` and `target` count columns from 0; `before` as of Files."""

    path: Path
    source: int = 0
    target: int = 1
    prefix: str = ""

    def __iter__(self) -> Iterator[Pair]:
        expected = 0
        for number, line in enumerate(read_lines(self.path), 1):
            columns = line.split("\t")
            expected = expected or len(columns)
            if len(columns) != expected:
                raise DataError(
                    f"{self.path}, line {number} has {len(columns)} columns, expected {expected} as in line 1: "
                    f"look for a missing or additional tab"
                )
            if not 0 <= min(self.source, self.target) <= max(self.source, self.target) < expected:
                raise DataError(
                    f"{self.path} has {expected} column{'' if expected == 1 else 's'} separated by tabs; expected "
                    f"columns "
                    f"{self.source} and {self.target}, counted from 0: set source and target to columns that are there"
                )
            yield columns[self.source], columns[self.target]


@dataclass(frozen=True)
class Csv:
    """One file of comma-separated columns with optional quotes (RFC 4180), without a header.

    source, target: the columns, counted from 0. prefix: as of ParallelFiles.
    """

    path: Path
    source: int = 0
    target: int = 1
    prefix: str = ""

    def __iter__(self) -> Iterator[Pair]:
        rows = csv.reader((f"{line}\n" for line in read_lines(self.path)), strict=True)
        try:
            for row in rows:
                if max(self.source, self.target) >= len(row):
                    raise DataError(
                        f"{self.path}, line {rows.line_num} has {len(row)} columns; expected at least "
                        f"{max(self.source, self.target) + 1}: set source and target to columns that are there"
                    )
                source, target = row[self.source], row[self.target]
                yield to_single_line(source), to_single_line(target)
        except csv.Error as error:
            raise DataError(f"{self.path}, line {rows.line_num}: {error}; expected quoted CSV") from error


@dataclass(frozen=True)
class Jsonl:
    """One file, a JSON object on each line; `source` and `target` are the keys of two strings; `before` as of Files."""

    path: Path
    source: str = "source"
    target: str = "target"
    prefix: str = ""

    def __iter__(self) -> Iterator[Pair]:
        for number, line in enumerate(read_lines(self.path), 1):
            where = f"{self.path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where} is not JSON ({error}); expected one object on each line") from error
            if not isinstance(record, dict):
                raise DataError(
                    f"{where} holds a {type(record).__name__}; expected an object with the key {self.source!r}"
                )
            yield self._text(record, self.source, where), self._text(record, self.target, where)

    @staticmethod
    def _text(record: dict[str, object], key: str, where: str) -> str:
        if key not in record:
            raise DataError(f"{where} has no key {key!r}, its keys are {sorted(record)}: set source and target to keys")
        value = record[key]
        if not isinstance(value, str):
            raise DataError(f"{where}: {key!r} is a {type(value).__name__}; expected a string")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: {key!r} holds half a surrogate pair, which is no Unicode text") from error
        return value


def read_pairs(source: Iterable[Pair]) -> list[Pair]:
    """Read all of Files, Tsv, Jsonl or a Corpus; DataError if there is nothing in it."""
    pairs = list(source)
    if not pairs:
        raise DataError(f"{source} holds no pairs; expected at least one")
    return pairs
