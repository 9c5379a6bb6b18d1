"""What is kept of a corpus and what is not, said before training: no line disappears in silence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from qkv.data.store import TokenStore, TokenStoreBuilder, TokenStoreWriter
from qkv.data.text.pairs import Pair
from qkv.errors import ConfigError, DataError

_CHUNK_SIZE = 10_000
_MAX_EXAMPLES = 3
_FORMAT_VERSION = 1


class SupportsEncode(Protocol):
    """What making a store needs of a tokenizer."""

    @property
    def digest(self) -> str: ...
    @property
    def size(self) -> int: ...
    def encode_batch(self, lines: Iterable[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class CleaningConfig:
    """Which examples to keep: `max_length` tokens on either side (without special ones), what to do with longer
    ones, and what share may be dropped before the run stops."""

    max_length: int = 256
    overflow: Literal["drop", "truncate"] = "drop"
    max_dropped_fraction: float = 0.01

    def __post_init__(self) -> None:
        problems = []
        if self.max_length < 1:
            problems.append(f"max_length={self.max_length} leaves nothing; expected at least 1 token")
        if not 0 <= self.max_dropped_fraction <= 1:
            problems.append(
                f"max_dropped_fraction={self.max_dropped_fraction} is no share; expected 0 to 1 (0.01 is 1%)"
            )
        if problems:
            raise ConfigError(problems)


@dataclass
class IssueCount:
    """How many examples something happened to, and the first three."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, number: int, text: str) -> None:
        """Count example `number` (from 1)."""
        self.count += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(f"example {number}: {_shorten(text)}")


@dataclass
class CleaningReport:
    """What became of a corpus: examples kept (those truncated among them) and dropped, by reason."""

    kept: int = 0
    truncated: IssueCount = field(default_factory=IssueCount)
    dropped: dict[str, IssueCount] = field(default_factory=dict)

    @property
    def dropped_count(self) -> int:
        """How many were dropped, for whatever reason."""
        return sum(finding.count for finding in self.dropped.values())

    @property
    def dropped_fraction(self) -> float:
        """What share of all was dropped, 0 to 1."""
        return self.dropped_count / max(1, self.kept + self.dropped_count)

    def check(self, cleaning: CleaningConfig) -> None:
        """Raise DataError if nothing is left, or more was dropped than allowed."""
        if not self.kept:
            raise DataError(
                f"no example is left to use.\n{self}\nGive data with text on both sides, or raise max_length"
            )
        if self.dropped_fraction > cleaning.max_dropped_fraction:
            raise DataError(
                f"{self.dropped_fraction:.1%} of the examples would be dropped, {cleaning.max_dropped_fraction:.1%} "
                f"may be."
                f"\n{self}\nMend the data, raise max_length, set overflow=truncate, or allow it with "
                f"max_dropped_fraction="
                f"{self.dropped_fraction + 0.001:.3f}"
            )

    def __str__(self) -> str:
        total = self.kept + self.dropped_count
        text = [f"{total:,} examples: {self.kept:,} kept, {self.truncated.count:,} of them truncated; "
                f"{self.dropped_count:,} dropped ({self.dropped_fraction:.2%})"]  # fmt: skip
        for reason, finding in (("truncated", self.truncated), *self.dropped.items()):
            if finding.count:
                text.append(f"  {reason}: {finding.count:,}")
                text.extend(f"    {example}" for example in finding.examples)
        return "\n".join(text)

    def to_json(self) -> dict[str, Any]:
        """Give the report as plain values, to be written down."""
        return {
            "kept": self.kept,
            "truncated": vars(self.truncated),
            "dropped": {reason: vars(finding) for reason, finding in self.dropped.items()},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CleaningReport:
        """Undo `to_json`."""
        dropped = {reason: IssueCount(**finding) for reason, finding in record["dropped"].items()}
        return cls(record["kept"], IssueCount(**record["truncated"]), dropped)


def tokenize_pairs(
    pairs: Iterable[Pair],
    source_tokenizer: SupportsEncode | None,
    target_tokenizer: SupportsEncode,
    cleaning: CleaningConfig | None = None,
    cache: Path | None = None,
) -> tuple[TokenStore, CleaningReport]:
    """Turn text into a store of tokens, and report which examples were kept, truncated and dropped.

    An example is dropped if a side is empty, or too long where `cleaning` says so. Without a source tokenizer the
    sources are ignored. With a `cache` folder the store is kept there, under a name made from the text, the
    tokenizers and the cleaning, and is used again; little of it is ever in memory. `pairs` must then be iterable twice.
    Raises DataError if more is dropped than allowed, or nothing is left.
    """
    cleaning = cleaning or CleaningConfig()
    with_source = source_tokenizer is not None
    if cache is None:
        collected = TokenStoreBuilder(with_source)
        report = _collect(collected, pairs, source_tokenizer, target_tokenizer, cleaning)
        report.check(cleaning)
        return collected.build(), report
    folder = cache / f"tokens-{_cache_key(pairs, source_tokenizer, target_tokenizer, cleaning)}"
    if not folder.exists():
        vocab = max(one.size for one in (source_tokenizer, target_tokenizer) if one is not None)
        with TokenStoreWriter(folder, with_source, vocab) as writer:
            report = _collect(writer, pairs, source_tokenizer, target_tokenizer, cleaning)
            report.check(cleaning)
            return writer.save(report.to_json()), report
    store = TokenStore.open(folder)
    report = CleaningReport.from_json(TokenStore.read_metadata(folder))
    report.check(cleaning)
    return store, report


def find_leakage(train: Iterable[Pair], held_out: Mapping[str, Iterable[Pair]]) -> dict[str, IssueCount]:
    """Find the held-out examples whose exact source is in the training data: {name of the held-out set: Finding}."""
    held = {name: [source for source, _ in pairs] for name, pairs in held_out.items()}
    sources_to_find = {source for sources in held.values() for source in sources}
    found = {source for source, _ in train if source in sources_to_find}  # the training data may be too many to keep
    findings = {name: IssueCount() for name in held}
    for name, sources in held.items():
        for number, source in enumerate(sources, 1):
            if source in found:
                findings[name].add(number, source)
    return findings


def exclude_sources(pairs: Iterable[Pair], *held_out: Iterable[Pair]) -> list[Pair]:
    """Leave out every pair whose source is the source of a held-out pair."""
    sources = {source for part in held_out for source, _ in part}
    return [pair for pair in pairs if pair[0] not in sources]


def group_references(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """Bring all targets of one source together, in order: every pronunciation of a word."""
    references: dict[str, list[str]] = {}
    for source, target in pairs:
        references.setdefault(source, []).append(target)
    return references


def _collect(
    writer: TokenStoreBuilder | TokenStoreWriter,
    pairs: Iterable[Pair],
    source_tokenizer: SupportsEncode | None,
    target_tokenizer: SupportsEncode,
    cleaning: CleaningConfig,
) -> CleaningReport:
    report, before = CleaningReport(), 0
    for chunk in _chunks(pairs):
        targets = target_tokenizer.encode_batch(target for _, target in chunk)
        sources = source_tokenizer.encode_batch(source for source, _ in chunk) if source_tokenizer else None
        kept: list[int] = []
        for place, (pair, target) in enumerate(zip(chunk, targets, strict=True)):
            sides = [target] if sources is None else [sources[place], target]
            longest = max(map(len, sides))
            text = pair[1] if sources is None else " ||| ".join(pair)
            reason = None
            if not all(side.strip() for side in (pair[1:] if sources is None else pair)) or not all(sides):
                reason = "empty"
            elif longest > cleaning.max_length:
                if cleaning.overflow == "drop":
                    reason = f"longer than {cleaning.max_length} tokens"
                else:
                    report.truncated.add(before + place + 1, f"({longest:,} tokens) {text}")
                    for side in sides:
                        del side[cleaning.max_length :]
            if reason is None:
                kept.append(place)
            else:
                shown = text if reason == "empty" else f"({longest:,} tokens) {text}"
                report.dropped.setdefault(reason, IssueCount()).add(before + place + 1, shown)
        report.kept += len(kept)
        writer.add(None if sources is None else [sources[n] for n in kept], [targets[n] for n in kept])
        before += len(chunk)
    return report


def _chunks(pairs: Iterable[Pair]) -> Iterator[Sequence[Pair]]:
    rest = iter(pairs)
    while chunk := list(islice(rest, _CHUNK_SIZE)):
        yield chunk


def _cache_key(
    pairs: Iterable[Pair],
    source_tokenizer: SupportsEncode | None,
    target_tokenizer: SupportsEncode,
    cleaning: CleaningConfig,
) -> str:
    """Name a store by all that decides what is in it."""
    head = [_FORMAT_VERSION, source_tokenizer and source_tokenizer.digest, target_tokenizer.digest]
    hashed = hashlib.sha256(json.dumps([*head, cleaning.max_length, cleaning.overflow]).encode())
    for pair in pairs:
        for side in pair:
            text = side.encode()
            hashed.update(len(text).to_bytes(8, "little") + text)
    return hashed.hexdigest()[:32]


def _shorten(text: str, max_length: int = 100) -> str:
    shown = text if len(text) <= max_length else text[: max_length - 1] + "…"
    return repr(shown)
