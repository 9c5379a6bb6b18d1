"""From the data part of a recipe to examples: read, leave out what must not be learned, look for leaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qkv.data import corpora
from qkv.data.cleaning import leakage, without
from qkv.data.reading import Files, Jsonl, Pair, Tsv, read_pairs
from qkv.errors import DataError
from qkv.tasks.kinds import Task
from qkv.tasks.recipe import Data, Part


@dataclass(frozen=True)
class Examples:
    """Pairs to learn from, part by part, and pairs to check on; notes say what there is to know about them."""

    train: list[list[Pair]]
    valid: list[Pair]
    notes: tuple[str, ...] = ()


def gather(data: Data, task: Task) -> Examples:
    """Read all parts of a recipe's data, the sources prepared as the task does.

    Raises DataError or CorpusError for what cannot be read, and for a part from which nothing is left.
    """
    notes = []
    hidden = pairs_of(data.without, task)
    train = []
    for part in data.train:
        pairs = pairs_of([part], task)
        kept = without(pairs, hidden)
        if len(kept) < len(pairs):
            notes.append(f"{name_of(part)}: {len(pairs) - len(kept):,} of {len(pairs):,} left out (data.without)")
        if not kept:
            raise DataError(f"{name_of(part)}: no examples are left to learn from; check data.train and data.without")
        train.append(kept)
    valid = pairs_of([data.valid], task)
    held_out = {name_of(part): pairs_of([part], task) for part in data.test} | {name_of(data.valid): valid}
    for name, finding in leakage((pair for part in train for pair in part), held_out).items():
        if finding.count:
            notes.append(
                f"leakage: {finding.count:,} of {len(held_out[name]):,} examples of {name} have a source that is also "
                f"learned from, such as {finding.examples[0]}; add that part to data.without to leave it out"
            )
    return Examples(train, valid, tuple(notes))


def pairs_of(parts: Iterable[Part], task: Task) -> list[Pair]:
    """Read the examples of some parts, one after the other."""
    return [(task.prepare(source), target) for part in parts for source, target in read_pairs(_origin(part))]


def _origin(part: Part) -> Iterable[Pair]:
    if part.corpus is not None:
        return corpora.load(part.corpus, part.split)
    if len(part.paths) == 2:
        return Files(*part.paths)
    [path] = part.paths
    return Jsonl(path) if ".jsonl" in path.suffixes else Tsv(path)


def name_of(part: Part) -> str:
    """What to call a part in a message."""
    return f"{part.corpus} {part.split}" if part.corpus else " and ".join(map(str, part.paths))
