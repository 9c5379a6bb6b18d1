"""What a recipe and its examples come to, whatever the task: all that training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

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
from qkv.training.config import ValidationConfig
from qkv.training.trainer import LossFunction, Sampler


class SpecialTokens(NamedTuple):
    """The tokens around a text."""

    pad: int
    bos: int
    eos: int


@dataclass(frozen=True)
class TrainingSetup:
    """The model before its first step with all it will need to answer, what it learns from, and what judges it.

    notes: what there is to say about the data before training. losses: as `Trainer` takes them.
    """

    model: TextGenerator | EncoderModel | DecisionTransformerAgent
    sampler: Sampler
    collate: Callable[[Sequence[int]], Batch]
    validate: Callable[[Any], ValidationResult]
    notes: Sequence[str] = ()
    compute_loss: LossFunction | None = None


def get_special_tokens(model: TextGenerator) -> SpecialTokens:
    """What stands around texts to write: of a published model, what its answers begin and end with."""
    target = model.target_tokenizer
    if model.generation is None:
        return SpecialTokens(target.pad, target.bos, target.eos)
    eos, bos = model.rules.eos_tokens[0], model.rules.bos
    assert bos is not None  # a decoder alone is given a begin token before it is fine-tuned
    return SpecialTokens(eos, bos, eos)


def get_start_token(tokenizer: Tokenizer, eos: int) -> int:
    """The token before a text to write: that of the tokenizer, or `end`; with many published decoders one is both."""
    return eos if tokenizer.special_tokens.bos is None else tokenizer.bos


def load_base_model(pretrained: Pretrained, *, is_speech_model: bool = False) -> TextGenerator:
    """The model to go on from, one that hears or one that reads text.

    Raises ConfigError if it is of the other kind, or a published one that reads text with an encoder.
    """
    trained = load(pretrained.path)
    if not isinstance(trained, TextGenerator):
        raise ConfigError([f"model.path={pretrained.path}: answers no text; expected a model that does"])
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
    model = build(trained.module.spec)  # parameters of a published one lie in its file, which is not written to
    model.load_state_dict(trained.module.state_dict())
    return replace(trained, module=model)


def build_tokenizer(lines: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Make a tokenizer as a recipe says."""
    return train_tokenizer(lines, config.kind, config.vocab_size, config.lowercase)


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer into the folder of a run, which a run that goes on reads it from."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent} could not be made: {error}; choose a folder that can be written") from error
    tokenizer.save(path)


def check_metric(validation: ValidationConfig, modes: Mapping[str, str]) -> None:
    """Check, before training, the metric that a recipe selects weights by.

    modes: "min" or "max" for each metric of the task. Raises ConfigError for a metric that the task does not have, or
    that is to be optimized in the wrong direction.
    """
    if validation.metric not in modes:
        raise ConfigError(
            [f"training.validation.metric: given {validation.metric!r}, expected one of {', '.join(modes)}"]
        )
    mode = modes[validation.metric]
    if validation.mode != mode:
        raise ConfigError(
            [
                f"training.validation.mode: given {validation.mode!r}, but {validation.metric} needs mode {mode}; "
                f"set it to {mode}"
            ]
        )
