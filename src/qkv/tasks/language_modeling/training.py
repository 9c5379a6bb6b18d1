"""Training of language models, which continue texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from qkv import spec
from qkv.data import TokenWindows, WindowSampler, tokenize_documents
from qkv.data.text.documents import TextCorpus, describe_source
from qkv.errors import ConfigError, VocabularyError
from qkv.evaluation.sliding_window import SlidingWindow
from qkv.models import SequenceModel, build
from qkv.tasks.config import Pretrained
from qkv.tasks.evaluator import evaluate_perplexity
from qkv.tasks.language_modeling.config import LanguageModelingConfig, TextData
from qkv.tasks.model_folder import Card
from qkv.tasks.registry import TASKS
from qkv.tasks.text_generator import TextGenerator
from qkv.tasks.training_setup import (
    SpecialTokens,
    TrainingSetup,
    build_tokenizer,
    get_start_token,
    load_base_model,
    save_tokenizer,
)
from qkv.text import Tokenizer
from qkv.training import ValidationResult

_N_SAMPLES = 2
_PROMPT_CHARACTERS = 100  # characters of a held-out text that a sample continues from
_MODES: Mapping[str, Literal["min", "max"]] = {"loss": "min", "perplexity": "min", "bits_per_byte": "min"}


@dataclass(frozen=True)
class TextSplits:
    """Texts for training, read again each time, and the beginning of those for validation; `notes` are for the user."""

    train: TextCorpus
    valid: list[str]
    notes: tuple[str, ...] = ()


def load_data(recipe: LanguageModelingConfig) -> TextSplits:
    """Load a recipe's texts and hold out those for validation; training texts are not kept in memory.

    Raises DataError or CorpusError for texts that cannot be read, and if none are left to train on.
    """
    data = recipe.data
    if data.valid is None:
        train = TextCorpus(data.train)
        valid = _split_held_out(train, data)
        notes = train.notes
    else:
        checked = TextCorpus([data.valid])
        train = TextCorpus(data.train, checked.digests)
        valid = _take_characters(checked, data.valid_characters)
        notes = [*train.notes, *checked.notes]
        if train.excluded_count:
            notes.append(
                f"{train.excluded_count:,} documents left out: they are in {describe_source(data.valid)} as well"
            )
    notes.append(
        f"{len(train):,} documents to train on, {sum(map(len, valid)):,} characters of {len(valid):,} to validate on"
    )
    return TextSplits(train, valid, tuple(notes))


def _split_held_out(train: TextCorpus, data: TextData) -> list[str]:
    """Remove a fraction of the documents from `train`, those whose digests come first; or the end of a single
    document."""
    every = sorted(set(train.digests))
    if len(every) == 1:
        [text, *_] = train
        train.max_characters = min(max(round(len(text) * (1 - data.held_out)), 1), len(text) - 1)
        return [text[train.max_characters :][: data.valid_characters]]
    chosen = every[: min(max(1, round(data.held_out * len(every))), len(every) - 1)]
    valid = _take_characters(train.select(chosen), data.valid_characters)
    train.exclude(chosen)
    return valid


def build_training_setup(
    recipe: LanguageModelingConfig, splits: TextSplits, run_folder: Path, cache_folder: Path, resume: bool
) -> TrainingSetup:
    """Build the tokenizer, the windows of tokens, the initial model and its validator."""
    data, seed = recipe.data, recipe.training.seed
    runner = _build_or_load_model(recipe, splits, run_folder, resume)
    store = tokenize_documents(splits.train, splits.train.cache_key, runner.source_tokenizer, cache_folder)
    windows = TokenWindows(store, data.context, _get_document_tokens(runner.source_tokenizer), seed)
    sampler = WindowSampler(windows, data.batch_tokens // windows.context, seed)
    window = SlidingWindow(data.context, data.stride or data.context)

    def validate(model: SequenceModel) -> ValidationResult:
        """Measure the perplexity of the held-out texts, and continue the beginnings of some as samples."""
        changed = replace(runner, module=model)
        scores = evaluate_perplexity(changed, splits.valid, window).scores
        prompts = [text[:_PROMPT_CHARACTERS] for text in splits.valid[:_N_SAMPLES]]
        samples = [
            f"{prompt}[...]{answer.text}"
            for prompt, (answer, *_) in zip(prompts, changed.predict_ranked(prompts), strict=True)
        ]
        return ValidationResult({name: score.value for name, score in scores.items()}, samples)

    notes = [f"{store.token_count:,} tokens to train on"]
    return TrainingSetup(runner, sampler, windows.collate, validate, _MODES, notes)


def _get_document_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Return the tokens around a whole document."""
    eos = tokenizer.eos
    return SpecialTokens(eos, get_start_token(tokenizer, eos), eos)


def _build_or_load_model(
    recipe: LanguageModelingConfig, splits: TextSplits, run_folder: Path, resume: bool
) -> TextGenerator:
    """Build or load the initial model and its tokenizer: new ones, or those of a model to fine-tune."""
    card = Card(context=recipe.data.context)
    if isinstance(recipe.model, Pretrained):
        trained = load_base_model(recipe.model)
        shape = trained.module.spec
        if not isinstance(shape, spec.Transformer) or shape.decoder is None or shape.encoder is not None:
            raise ConfigError([f"model.path={recipe.model.path}: has an encoder; expected a language model"])
        _check_vocabulary(splits, trained.source_tokenizer)
        return replace(trained, task=TASKS["text-generation"], decoding=recipe.decoding, card=card)
    kept = run_folder / "source.tokenizer.json"
    if resume:
        tokenizer = Tokenizer.load(kept)
    else:
        tokenizer = build_tokenizer(splits.train, recipe.tokenizer)
        save_tokenizer(tokenizer, kept)
    torch.manual_seed(recipe.training.seed)
    model = build(recipe.model.spec(tokenizer.size))
    return TextGenerator(model, tokenizer, tokenizer, TASKS["text-generation"], recipe.decoding, card)


def _check_vocabulary(splits: TextSplits, tokenizer: Tokenizer) -> None:
    """Raise VocabularyError if a model does not know more than 1% of the characters of the validation texts."""
    characters = sorted({character for text in splits.valid for character in text})
    unk = tokenizer.special_tokens.unk
    if not any(unk in ids for ids in tokenizer.encode_batch(splits.valid)):
        return  # a tokenizer of words may know no single character
    unknown = {c for c, ids in zip(characters, tokenizer.encode_batch(characters), strict=True) if unk in ids}
    count, total = sum(c in unknown for text in splits.valid for c in text), sum(map(len, splits.valid))
    if count > 0.01 * total:
        raise VocabularyError(
            f"{count:,} of {total:,} characters are unknown to the model to fine-tune, such as "
            f"{', '.join(map(repr, sorted(unknown)[:5]))}; give it text of the kind it knows, or train a new model"
        )


def _take_characters(texts: Iterable[str], characters: int) -> list[str]:
    """Return the first texts, up to a number of characters."""
    some: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        some.append(text[:characters])
        characters -= len(text)
    return some
