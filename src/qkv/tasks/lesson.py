"""What a recipe and its examples come to, whatever the task: all that training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from qkv.data import Batch
from qkv.errors import ConfigError, StorageError
from qkv.models import build
from qkv.tasks.agent import Agent
from qkv.tasks.loading import load
from qkv.tasks.published import Predictor
from qkv.tasks.recipe import From, Words
from qkv.tasks.runner import Runner
from qkv.text import Tokenizer
from qkv.text import train as train_tokenizer
from qkv.training import Validated
from qkv.training.trainer import Losses, Sampler


class Ends(NamedTuple):
    """The tokens around a text."""

    pad: int
    bos: int
    eos: int


@dataclass(frozen=True)
class Lesson:
    """The model before its first step with all it will need to answer, what it learns from, and what judges it.

    notes: what there is to say about the data before training. losses: as `Trainer` takes them.
    """

    runner: Runner | Predictor | Agent
    sampler: Sampler
    collate: Callable[[Sequence[int]], Batch]
    validate: Callable[[Any], Validated]
    notes: Sequence[str] = ()
    losses: Losses | None = None


def ends_of(runner: Runner) -> Ends:
    """What stands around texts to write: of a published model, what its answers begin and end with."""
    target = runner.target
    if runner.generation is None:
        return Ends(target.pad, target.bos, target.eos)
    rules = runner.rules()
    eos = rules["eos"][0]
    return Ends(eos, rules["bos"], eos)


def begin_of(tokenizer: Tokenizer, end: int) -> int:
    """The token before a text to write: that of the tokenizer, or `end`; with many published decoders one is both."""
    return end if tokenizer.specials.bos is None else tokenizer.bos


def begun_by(start: From, *, hears: bool = False) -> Runner:
    """The model to go on from, one that hears or one that reads text.

    Raises ConfigError if it is of the other kind, or a published one that reads text with an encoder.
    """
    trained = load(start.folder)
    if not isinstance(trained, Runner):
        raise ConfigError([f"model.folder={start.folder}: answers no text; expected a model that does"])
    if (trained.hearing is not None) != hears:
        kinds = ("hears", "reads text") if trained.hearing is not None else ("reads text", "hears")
        raise ConfigError([f"model.folder={start.folder}: {kinds[0]}; expected a model that {kinds[1]}"])
    if trained.generation is None:
        return trained
    if trained.reads_apart and not hears:
        raise ConfigError(
            [
                f"model.folder={start.folder}: a published checkpoint with an encoder; expected a decoder alone, or a "
                "model that was trained here"
            ]
        )
    model = build(trained.model.spec)  # parameters of a published one lie in its file, which is not written to
    model.load_state_dict(trained.model.state_dict())
    return replace(trained, model=model)


def made(lines: Iterable[str], words: Words) -> Tokenizer:
    """Make a tokenizer as a recipe says."""
    return train_tokenizer(lines, words.kind, words.vocab, words.lowercase)


def keep(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer into the folder of a run, which a run that goes on reads it from."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent} could not be made: {error}; choose a folder that can be written") from error
    tokenizer.save(path)
