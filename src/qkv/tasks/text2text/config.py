"""The recipe of the tasks that learn from pairs: translation, pronunciation and summarization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qkv.data.cleaning import CleaningConfig
from qkv.decoding.config import DecodingConfig
from qkv.errors import ConfigError
from qkv.tasks.config import DataSource, Decoder, ModelConfig, TokenizerPairConfig, Transformer, check_tokenizer
from qkv.training.config import TrainingConfig


@dataclass(frozen=True)
class Text2TextData:
    """The examples to train on and those to validate on.

    train: the sources of the training examples.
    valid: the examples to validate on; without it, a part of the training examples is held out.
    held_out: the fraction of the training examples to hold out if there is no `valid`.
    sampling_weights: how often examples of each source in `train` are drawn, relative to the others; by default all
    alike.
    test: examples that must not be trained on; the run reports those whose source is also in `train`.
    exclude: examples whose sources are left out of `train`.
    cleaning: which examples are kept, and how many may be dropped before the run stops.
    batch_tokens: the largest number of tokens in a batch: source, target and padding together.
    valid_examples: how many examples of `valid` each validation decodes.
    """

    train: tuple[DataSource, ...]
    valid: DataSource | None = None
    held_out: float = 0.05
    sampling_weights: tuple[float, ...] = ()
    test: tuple[DataSource, ...] = ()
    exclude: tuple[DataSource, ...] = ()
    cleaning: CleaningConfig = CleaningConfig()
    batch_tokens: int = 4000
    valid_examples: int = 1000

    def __post_init__(self) -> None:
        problems = []
        if not self.train:
            problems.append("train=[]: expected at least one source of training examples")
        if not 0 < self.held_out < 1:
            problems.append(f"held_out={self.held_out}: expected a fraction above 0 and below 1")
        if self.sampling_weights and (len(self.sampling_weights) != len(self.train) or min(self.sampling_weights) <= 0):
            problems.append(
                f"sampling_weights={list(self.sampling_weights)}: expected one number above 0 for each of train, or "
                f"none"
            )
        for name in ("batch_tokens", "valid_examples"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: expected at least 1")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Text2TextConfig:
    """The recipe of a text-to-text model; the same recipe and seed on the same machine give the same bytes."""

    task: Literal["translation", "pronunciation", "summarization"]
    data: Text2TextData
    training: TrainingConfig
    tokenizer: TokenizerPairConfig = TokenizerPairConfig()
    model: ModelConfig = field(default_factory=Transformer)
    decoding: DecodingConfig = DecodingConfig()

    def __post_init__(self) -> None:
        check_tokenizer(self.model, self.tokenizer, TokenizerPairConfig())
        copies = isinstance(self.model, Transformer) and self.model.pointer_generator
        if self.tokenizer.target is not None and (copies or isinstance(self.model, Decoder)):
            what = "a model that copies" if copies else "a decoder alone"
            raise ConfigError(
                [
                    f"tokenizer.target: given, but {what} has one vocabulary for source and target: set "
                    f"tokenizer.target=null"
                ]
            )


OWN_DATA = "two files of lines, or one .tsv, .csv or .jsonl file of pairs"
"""The files that `find_source` accepts."""


def find_source(files: Sequence[Path]) -> dict[str, Any] | None:
    """Return the data source that a user's files are, as a recipe writes it; None if they are none."""
    if len(files) == 2:
        return {"kind": "parallel_files", "source": str(files[0]), "target": str(files[1])}
    if len(files) != 1 or not files[0].is_file():
        return None
    endings = files[0].suffixes
    kind = "jsonl" if ".jsonl" in endings else "csv" if ".csv" in endings else "tsv"
    return {"kind": kind, "path": str(files[0])}
