"""The recipe of language modeling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qkv.data.text.documents import TextSource
from qkv.decoding.config import DecodingConfig, LengthLimit, Sample
from qkv.errors import ConfigError
from qkv.tasks.config import Decoder, Pretrained, TokenizerConfig, check_tokenizer
from qkv.training.config import TrainingConfig


@dataclass(frozen=True)
class TextData:
    """The texts for training and validation; see `qkv.data.text.documents` for their sources.

    valid: texts that are never trained on, whatever their source; without it, `held_out` of those in `train`: that
    fraction
    of the documents, or the end of the only one.
    context: the number of tokens in the model's context. batch_tokens: the number of tokens in a batch.
    valid_characters: how much of `valid` each validation reads, and `stride`, how far its window moves (by default its
    whole length).
    """

    train: tuple[TextSource, ...]
    valid: TextSource | None = None
    held_out: float = 0.1
    context: int = 256
    batch_tokens: int = 4096
    valid_characters: int = 200_000
    stride: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.train:
            problems.append("train=[]: expected at least one source of texts to train on")
        if not 0 < self.held_out < 1:
            problems.append(f"held_out={self.held_out}: expected a share above 0 and below 1")
        if self.context < 2:
            problems.append(f"context={self.context}: expected at least 2 tokens")
        if self.batch_tokens < self.context:
            problems.append(f"batch_tokens={self.batch_tokens}: expected at least context={self.context}")
        if self.valid_characters < 1:
            problems.append(f"valid_characters={self.valid_characters}: expected at least 1")
        if self.stride is not None and not 0 < self.stride <= self.context:
            problems.append(f"stride={self.stride}: expected 1 to context={self.context}, or null")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class LanguageModelingConfig:
    """The recipe of a language model; it gives the same bytes each time, as `Text2TextConfig` does."""

    task: Literal["language-modeling"]
    data: TextData
    training: TrainingConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: Decoder | Pretrained = field(default_factory=Decoder)
    decoding: DecodingConfig = DecodingConfig(Sample(top_p=0.95), LengthLimit(0.0, 200))

    def __post_init__(self) -> None:
        check_tokenizer(self.model, self.tokenizer, TokenizerConfig())


OWN_DATA = "one text file, one folder of text files, or one .jsonl file"
"""The files that `find_source` accepts."""


def find_source(files: Sequence[Path]) -> dict[str, Any] | None:
    """Return the data source that a user's files are, as a recipe writes it; None if they are none."""
    if len(files) != 1:
        return None
    return {"kind": "jsonl_documents" if ".jsonl" in files[0].suffixes else "text_files", "path": str(files[0])}
