"""What a recipe and its examples come to, whatever the task: all that training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkv.data import Batch
from qkv.errors import ConfigError, StorageError
from qkv.tasks.agent import Agent
from qkv.tasks.loading import load
from qkv.tasks.published import Predictor
from qkv.tasks.recipe import From, Words
from qkv.tasks.runner import Runner
from qkv.text import Tokenizer
from qkv.text import train as train_tokenizer
from qkv.training import Validated
from qkv.training.trainer import Losses, Sampler


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


def begun_by(start: From) -> Runner:
    """The model to go on from. Raises ConfigError if it was not trained here."""
    trained = load(start.folder)
    if not isinstance(trained, Runner) or trained.generation is not None:
        raise ConfigError(
            [f"model.folder={start.folder}: a published checkpoint; expected a model that was trained here"]
        )
    return trained


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
