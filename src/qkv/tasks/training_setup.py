"""The preparation of a training by a task, and common parts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from qkv.data import Batch
from qkv.errors import ConfigError, StorageError
from qkv.models import build
from qkv.tasks.config import Pretrained, TokenizerConfig
from qkv.tasks.encoder_model import EncoderModel
from qkv.tasks.loader import load
from qkv.tasks.reinforcement_learning.model import DecisionTransformerAgent
from qkv.tasks.text_generator import TextGenerator
from qkv.text import Tokenizer
from qkv.text import train as train_tokenizer
from qkv.training import ValidationResult
from qkv.training.trainer import LossFunction, Sampler


class SpecialTokens(NamedTuple):
    """The tokens around a text."""

    pad: int
    bos: int
    eos: int


@dataclass(frozen=True)
class TrainingSetup:
    """What a task prepares for a training: the initial model, its batches and its validation.

    modes: "min" or "max" for each metric of `validate`. notes: notes on the data to print before training.
    compute_loss: as in `Trainer`.
    """

    model: TextGenerator | EncoderModel | DecisionTransformerAgent
    sampler: Sampler
    collate: Callable[[Sequence[int]], Batch]
    validate: Callable[[Any], ValidationResult]
    modes: Mapping[str, Literal["min", "max"]]
    notes: Sequence[str] = ()
    compute_loss: LossFunction | None = None


def get_special_tokens(model: TextGenerator) -> SpecialTokens:
    """Return the tokens around a text to generate; for a published model, those that its answers begin and end with."""
    target = model.target_tokenizer
    if model.generation is None:
        return SpecialTokens(target.pad, target.bos, target.eos)
    eos, bos = model.rules.eos_tokens[0], model.rules.bos
    assert bos is not None  # a decoder-only model receives a begin token before it is fine-tuned
    return SpecialTokens(eos, bos, eos)


def get_start_token(tokenizer: Tokenizer, eos: int) -> int:
    """Return the token before a text: the begin token or, as with many published decoders, the end token."""
    return eos if tokenizer.special_tokens.bos is None else tokenizer.bos


def load_base_model(pretrained: Pretrained, *, is_speech_model: bool = False) -> TextGenerator:
    """Return the model to fine-tune, one that reads audio or one that reads text.

    Raises ConfigError if it reads the other, or if it is a published model of text with an encoder.
    """
    trained = load(pretrained.path)
    if not isinstance(trained, TextGenerator):
        raise ConfigError([f"model.path={pretrained.path}: generates no text; expected a model that does"])
    if (trained.frontend is not None) != is_speech_model:
        kinds = ("reads audio", "reads text") if trained.frontend is not None else ("reads text", "reads audio")
        raise ConfigError([f"model.path={pretrained.path}: {kinds[0]}; expected a model that {kinds[1]}"])
    if trained.generation is None:
        return trained
    if trained.has_encoder and not is_speech_model:
        raise ConfigError(
            [
                f"model.path={pretrained.path}: a published checkpoint with an encoder; expected a decoder alone, or a "
                "model that was trained here"
            ]
        )
    model = build(trained.module.spec)  # parameters of a published model are mapped from its file, which stays as it is
    model.load_state_dict(trained.module.state_dict())
    return replace(trained, module=model)


def build_tokenizer(lines: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Train the tokenizer of a recipe."""
    return train_tokenizer(lines, config.kind, config.vocab_size, config.lowercase)


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer into the folder of a run, from which a resumed run reads it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent} could not be created: {error}; choose a writable folder") from error
    tokenizer.save(path)
