"""Examples from the data part of a recipe: read, exclude held-out sources, check for leaks."""

from __future__ import annotations

import hashlib
import json
import marshal
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Protocol

from qkv import config
from qkv.data import corpora
from qkv.data.audio import sources as hearing
from qkv.data.audio.recordings import Recording
from qkv.data.cleaning import find_leakage
from qkv.data.corpora import Corpus
from qkv.data.images import sources as albums
from qkv.data.progress import track
from qkv.data.text import documents
from qkv.data.text.documents import TextSource
from qkv.data.text.pairs import Jsonl, Pair, ParallelFiles, Tsv, read_lines, read_pairs
from qkv.errors import DataError, StorageError
from qkv.tasks.config import DataSource
from qkv.tasks.registry import Task
from qkv.tasks.text2text.config import Text2TextData

_MAX_HELD_OUT = 5_000
_CHUNK_SIZE = 4096


class PairCollection(Protocol):
    """Pairs that can be iterated repeatedly, and counted: a list, or a source that is read each time."""

    def __iter__(self) -> Iterator[Pair]: ...
    def __len__(self) -> int: ...


class PreparedPairs:
    """The pairs of one source of data, prepared as the task does, without those whose source is excluded.

    The data are read and parsed once. The prepared pairs are kept in a temporary file without a name, from which every
    later iteration reads them, so that memory does not grow with the corpus. `len` is known after an iteration.
    Raises DataError in the first iteration, as the source does.
    """

    def __init__(self, source: DataSource, task: Task, excluded_sources: Iterable[str] = ()) -> None:
        self.source, self.task, self.excluded_sources = source, task, frozenset(excluded_sources)
        self.kept_count = self.total_count = 0
        self._kept: _PairFile | None = None

    def exclude(self, sources: Iterable[str]) -> PreparedPairs:
        """Return the same pairs without those of more sources; the data are not read again."""
        pairs = PreparedPairs(self.source, self.task, self.excluded_sources.union(sources))
        pairs._kept = self._kept
        return pairs

    def __iter__(self) -> Iterator[Pair]:
        kept = every = 0
        for chunk in self._read_chunks() if self._kept is None else self._kept:
            every += len(chunk)
            for pair in chunk:
                if pair[0] not in self.excluded_sources:
                    kept += 1
                    yield pair
        self.kept_count, self.total_count = kept, every

    def __len__(self) -> int:
        return self.kept_count

    def _read_chunks(self) -> Iterator[list[Pair]]:
        """Read the source and keep its pairs, unless the iteration is left before its end."""
        with ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(prefix="qkv-pairs-"))
            lines = track(self.source, f"reading {describe_source(self.source)}")
            preprocess, prefix = self.task.preprocess, self.source.prefix
            while some := list(islice(lines, _CHUNK_SIZE)):
                chunk = [(preprocess(with_prefix(line, prefix)), target) for line, target in some]
                try:
                    marshal.dump(chunk, file)
                except OSError as error:
                    raise StorageError(
                        f"the pairs of {describe_source(self.source)} cannot be kept in {tempfile.gettempdir()}: "
                        f"{error}; free some space, or name another folder by the environment variable TMPDIR"
                    ) from error
                yield chunk
            stack.pop_all()
            self._kept = _PairFile(file)


class _PairFile:
    """Chunks of pairs in a temporary file without a name, which goes when nothing refers to it any more."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        weakref.finalize(self, file.close)

    def __iter__(self) -> Iterator[list[Pair]]:
        """Yield the chunks from a position of its own: two iterations may run side by side."""
        end, position = self._file.seek(0, os.SEEK_END), 0
        while position < end:
            self._file.seek(position)
            chunk: list[Pair] = marshal.load(self._file)  # this process wrote it, and no other can open it
            position = self._file.tell()
            yield chunk


@dataclass(frozen=True)
class PairSplits:
    """Training pairs by source, and validation pairs; notes for the user about them."""

    train: Sequence[PairCollection]
    valid: list[Pair]
    notes: tuple[str, ...] = ()


def load_pair_splits(data: Text2TextData, task: Task) -> PairSplits:
    """Read all of a recipe's data, with the sources prepared for the task; training pairs are not kept in memory.

    Raises DataError or CorpusError for data that cannot be read, and for a source with no pairs left.
    """
    notes = []
    hidden = {source for source, _ in prepare_pairs(data.exclude, task)}
    train = [PreparedPairs(origin, task, hidden) for origin in data.train]
    held_out = {describe_source(origin): prepare_pairs([origin], task) for origin in data.test}
    if data.valid is None:
        valid = _hold_out(chain.from_iterable(train), data.held_out)
        train = [pairs.exclude(source for source, _ in valid) for pairs in train]
        notes.append(f"{len(valid):,} examples of the training data are held out for validation (data.held_out)")
    else:
        valid = prepare_pairs([data.valid], task)
        held_out[describe_source(data.valid)] = valid
    findings = find_leakage(chain.from_iterable(train), held_out)  # one pass over all pairs, which counts them too
    for pairs in train:
        name = describe_source(pairs.source)
        if not pairs.kept_count:
            raise DataError(f"{name}: nothing is left to train on; check data.train and data.exclude")
        if data.exclude and pairs.kept_count < pairs.total_count:
            notes.append(
                f"{name}: {pairs.total_count - pairs.kept_count:,} of {pairs.total_count:,} left out (data.exclude)"
            )
    for name, finding in findings.items():
        if finding.count:
            notes.append(
                f"leakage: {finding.count:,} of {len(held_out[name]):,} examples of {name} have a source that is also "
                f"trained on, such as {finding.examples[0]}; add that set to data.exclude to leave it out"
            )
    return PairSplits(train, valid, tuple(notes))


def _hold_out(pairs: Iterable[Pair], fraction: float) -> list[Pair]:
    """Choose pairs by a hash of their source, so that equal sources stay together, whatever their order.

    At least one source is chosen and at most _MAX_HELD_OUT pairs. Raises DataError if there is only one source.
    """
    chosen: list[Pair] = []
    lowest: tuple[float, str] = (2.0, "")
    of_lowest: list[Pair] = []
    n_sources: set[str] = set()
    for source, target in pairs:
        place = int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "big") / 2**64
        if len(n_sources) < 2:
            n_sources.add(source)
        if (place, source) < lowest:
            lowest, of_lowest = (place, source), []
        if (place, source) == lowest:
            of_lowest.append((source, target))
        if place < fraction and len(chosen) < _MAX_HELD_OUT:
            chosen.append((source, target))
    if len(n_sources) < 2:
        raise DataError("all training examples have the same source; give data.valid, or more examples")
    return chosen or of_lowest


def prepare_pairs(sources: Iterable[DataSource], task: Task) -> list[Pair]:
    """Read and concatenate the examples of some sources."""
    return [
        (task.preprocess(with_prefix(source, origin.prefix)), target)
        for origin in sources
        for source, target in read_pairs(origin)
    ]


def with_prefix(line: str, prefix: str) -> str:
    """Prepend a prefix to a line, unless the line is blank."""
    return f"{prefix} {line.strip()}" if prefix and line.strip() else line


def parse_data_source(paths: Sequence[Path], corpus: str | None = None, options: Iterable[str] = ()) -> DataSource:
    """Parse the data source of a command line: one file of pairs, two of lines, or a corpus with options
    (`split=test`).

    A file that ends in .jsonl (or .jsonl.gz) contains JSON, any other single file columns.
    """
    if corpus is not None and not paths:
        return config.from_dict(
            Corpus, config.apply_overrides({"name": corpus, "split": "test"}, options), f"corpus {corpus}"
        )
    if options := list(options):
        raise DataError(f"{', '.join(options)} was given without a corpus; it is an option of one: name it (--corpus)")
    if corpus is None and len(paths) == 2:
        return ParallelFiles(paths[0], paths[1])
    if corpus is None and len(paths) == 1:
        return Jsonl(paths[0]) if ".jsonl" in paths[0].suffixes else Tsv(paths[0])
    raise DataError(
        f"{len(paths)} files and {f'the corpus {corpus}' if corpus else 'no corpus'} were given; "
        "expected one file of pairs, two files of lines, or a named corpus"
    )


def load_texts(paths: Sequence[Path], corpus: str | None = None, options: Iterable[str] = ()) -> list[str] | None:
    """Load the texts that a command line names, unless it names pairs: files, folders, .jsonl with a field `text`, a
    corpus.

    Raises DataError for a file without text, and for one that is not UTF-8.
    """
    if corpus is None and (not paths or any(_is_pair_file(path) for path in paths)):
        return None
    origins: list[TextSource] = [
        documents.JsonlDocuments(path) if ".jsonl" in path.suffixes else documents.TextFiles(path) for path in paths
    ]
    if corpus is not None:
        named = parse_data_source(paths, corpus, options)
        assert isinstance(named, Corpus)
        origins = [named]
    return list(documents.TextCorpus(origins))


def load_image_labels(
    paths: Sequence[Path], corpus: str | None = None, options: Iterable[str] = (), classes: Sequence[str] = ()
) -> list[Pair] | None:
    """Load the names and classes of the images that a command line names, if any: a folder with one for each class, an
    .npz or Parquet file, two IDX files (images, labels), or a corpus of images.

    Raises DataError for images that cannot be read and for a class that is not among `classes`, if these are given, and
    CorpusError for a corpus of something else.
    """
    if corpus is not None:
        named = parse_data_source(paths, corpus, options)
        assert isinstance(named, Corpus)
        found = corpora.load_images(named.name, named.split)
    elif len(paths) == 1 and paths[0].is_dir():
        found = albums.ImageFolder(paths[0]).load_dataset()
    elif len(paths) == 1 and paths[0].suffix in (".npz", ".parquet"):
        found = (albums.Npz if paths[0].suffix == ".npz" else albums.Parquet)(paths[0]).load_dataset()
    elif len(paths) == 2 and not any({".tsv", ".jsonl"} & set(path.suffixes) for path in paths):
        found = albums.Idx(*paths).load_dataset()
    else:
        return None
    pairs = list(zip(found.names, found.labels, strict=True))
    if classes and (strange := [pair for pair in pairs if pair[1] not in classes]):
        name, label = strange[0]
        shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise DataError(
            f"{name} is of the class {label!r}, and {len(strange):,} of {len(pairs):,} images are of no class that the "
            f"model has; expected {shown}: name the classes as the model does"
        )
    return pairs


def load_image_candidates(paths: Sequence[Path], corpus: str | None = None, options: Iterable[str] = ()) -> list[Pair]:
    """Load the images that a command line names, with candidate texts and the correct texts: a .tsv of an image, the
    correct text and others per line; pairs of such a line and the correct text; or what `load_image_labels` reads, with
    the names of all classes as the texts.

    Raises DataError or CorpusError for files that cannot be read.
    """
    if (found := load_image_labels(paths, corpus, options)) is not None:
        texts = "\t".join(dict.fromkeys(label for _, label in found))
        return [(f"{name}\t{texts}", label) for name, label in found]
    origin = parse_data_source(paths, corpus, options)
    if not isinstance(origin, Tsv):
        return list(read_pairs(origin))
    return [(line, line.split("\t")[1]) if "\t" in line else (line, "") for line in read_lines(origin.path)]


def _is_pair_file(path: Path) -> bool:
    """Return whether a file contains pairs: a .tsv, or a .jsonl whose first line has no `text`."""
    if ".jsonl" not in path.suffixes:
        return ".tsv" in path.suffixes
    first = next(iter(read_lines(path)), "")
    try:
        return "text" not in json.loads(first)
    except (ValueError, TypeError):
        return True  # reading it as pairs will report the problem


def load_recordings(paths: Sequence[Path], corpus: str | None = None, options: Iterable[str] = ()) -> list[Recording]:
    """Load the recordings that a command line names: one manifest or folder, or the corpus fsdd with options.

    Raises DataError or CorpusError for recordings that cannot be read.
    """
    if corpus is not None and paths:
        raise DataError(f"the corpus {corpus} and {len(paths)} files were given; expected one of the two")
    if corpus is not None and corpus != "fsdd":
        raise DataError(f"the corpus {corpus} has no recordings; expected fsdd, a manifest or a folder")
    if corpus is None and len(paths) != 1:
        raise DataError(f"{len(paths)} files were given; expected one manifest, folder or .npz file of recordings")
    if corpus is not None:
        return config.from_dict(
            hearing.Fsdd, config.apply_overrides({"split": "test"}, options), "--option"
        ).list_recordings()
    given = config.apply_overrides({"path": str(paths[0])}, options)
    return config.from_dict(hearing.Recordings, given, "--option").list_recordings()


def describe_source(source: DataSource | None) -> str:
    """Return the name of a source for messages."""
    if source is None:
        return "the held-out part of data.train"
    if isinstance(source, Corpus):
        return f"{source.name}/{source.split}"
    return f"{source.source} and {source.target}" if isinstance(source, ParallelFiles) else str(source.path)
