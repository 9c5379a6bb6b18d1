"""Training on pairs of a source and a target: translation, pronunciation and summarization."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from qkv.data import Batch, BatchSampler, ConcatStore, MixtureSampler, TokenStore, collate, collate_decoder_only
from qkv.data.cleaning import tokenize_pairs
from qkv.data.text.pairs import Pair
from qkv.decoding import Greedy
from qkv.errors import DataError, VocabularyError
from qkv.generation_rules import GenerationRules
from qkv.models import SequenceModel, build
from qkv.tasks.config import Pretrained
from qkv.tasks.model_folder import Card
from qkv.tasks.registry import TASKS
from qkv.tasks.text2text import data as reading
from qkv.tasks.text2text.config import Text2TextConfig
from qkv.tasks.text2text.data import PairSplits, describe_source
from qkv.tasks.text_generator import MAX_INPUT_TOKENS, TextGenerator, find_unknown_symbols
from qkv.tasks.training_setup import (
    TrainingSetup,
    build_tokenizer,
    get_special_tokens,
    get_start_token,
    load_base_model,
    save_tokenizer,
)
from qkv.tasks.validation import Validator
from qkv.text import Tokenizer
from qkv.training import ValidationResult
from qkv.training.loss import IGNORE_INDEX, cross_entropy, smoothed_and_plain_cross_entropy

_N_SAMPLES = 4


def load_data(recipe: Text2TextConfig) -> PairSplits:
    """Load the data of a recipe; see `qkv.tasks.text2text.data.load_pair_splits`."""
    return reading.load_pair_splits(recipe.data, TASKS[recipe.task])


def build_training_setup(
    recipe: Text2TextConfig, splits: PairSplits, run_folder: Path, cache_folder: Path, resume: bool
) -> TrainingSetup:
    """Build the tokenizers, the stores of tokens, the initial model and its validator."""
    notes, stores = [], []
    runner = _build_or_load_model(recipe, splits, run_folder, resume)
    source, target = runner.source_tokenizer, runner.target_tokenizer
    for pairs in splits.train:
        store, report = tokenize_pairs(pairs, source, target, recipe.data.cleaning, cache_folder)
        notes.append(str(report))
        stores.append(store)
    if isinstance(recipe.model, Pretrained):
        _check_vocabulary(recipe, splits, stores, runner)
    data = stores[0] if len(stores) == 1 else ConcatStore(stores)
    cleaning = recipe.data.cleaning
    prefixes = tuple(sorted({source.prefix for source in recipe.data.train}))
    max_source_length = cleaning.max_length if cleaning.overflow == "truncate" else None
    runner = replace(runner, card=Card(max_source_length=max_source_length, prefixes=prefixes if any(prefixes) else ()))
    lay = _make_collate(runner)

    def batch(numbers: Sequence[int]) -> Batch:
        return lay([data[number] for number in numbers], numbers)

    valid = _sample_evenly(splits.valid, recipe.data.valid_examples)
    validator, note = _build_validator(runner, recipe, valid)
    modes = _check_questions(runner, recipe, valid)
    notes += [note] if note else []
    losses = (
        None if runner.has_encoder else partial(answer_cross_entropy, label_smoothing=recipe.training.label_smoothing)
    )
    return TrainingSetup(runner, _build_sampler(recipe, stores), batch, validator, modes, notes, losses)


def _make_collate(model: TextGenerator) -> Callable[[Sequence[Any], Sequence[int]], Batch]:
    """Return the function that collates pairs of token ids for a model: the source separate, or before its target."""
    if model.has_encoder:
        return lambda examples, numbers: collate(examples, model.source_tokenizer, model.target_tokenizer, numbers)
    ends = get_special_tokens(model)
    return lambda examples, numbers: collate_decoder_only(examples, ends, numbers)


def answer_cross_entropy(model: Any, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Compute the losses of a decoder-only model, without logits for the tokens of the source."""
    where = batch.labels != IGNORE_INDEX
    return smoothed_and_plain_cross_entropy(
        model.decode(batch.target, selected=where), batch.labels[where], label_smoothing
    )


def _sample_evenly(pairs: list[Pair], count: int) -> list[Pair]:
    """Select every nth source, because files are often sorted, with all its pairs, each of which is a reference."""
    sources = list(dict.fromkeys(source for source, _ in pairs))
    chosen = set(sources[:: max(1, len(sources) // count)][:count])
    return [pair for pair in pairs if pair[0] in chosen]


def _build_validator(runner: TextGenerator, recipe: Text2TextConfig, pairs: list[Pair]) -> tuple[Validator, str]:
    """Return the validator of some pairs, and a note on those that cleaning dropped or truncated, or "".

    Its decoding is greedy, whatever the recipe's defaults: it runs often and is compared only with itself.
    """
    tokens, report = tokenize_pairs(pairs, runner.source_tokenizer, runner.target_tokenizer, recipe.data.cleaning)
    lay = _make_collate(runner)
    indices = BatchSampler(tokens.lengths, recipe.data.batch_tokens).batches(0)
    batches = [lay([tokens[number] for number in own], own) for own in indices]
    decoding = replace(recipe.decoding, method=Greedy())
    questions = runner.task.group_references(pairs)

    def compute_loss(model: SequenceModel, batch: Batch) -> tuple[float, int, None]:
        if runner.has_encoder:
            loss = float(cross_entropy(model(batch.source, batch.target, batch.source_mask), batch.labels))
        else:
            loss = float(answer_cross_entropy(model, batch)[1])
        return loss, batch.target_tokens, None

    def score(model: SequenceModel, _: list[Any]) -> ValidationResult:
        lines = (source for source, _ in questions)
        answers = [one[0].text for one in replace(runner, module=model).predict_ranked(lines, decoding)]
        scores = runner.task.score(answers, [references for _, references in questions])
        samples = [
            f"{textwrap.shorten(source, 300, placeholder=' ...')}  ->  {answer}   ({references[0]})"
            for (source, references), answer in zip(questions[:_N_SAMPLES], answers, strict=False)
        ]
        return ValidationResult({name: one.value for name, one in scores.items()}, samples)

    is_changed = report.dropped_count or report.truncated.count
    note = f"{describe_source(recipe.data.valid)}: {report}" if is_changed else ""
    return Validator(lambda: batches, compute_loss, score), note


def _check_questions(
    runner: TextGenerator, recipe: Text2TextConfig, pairs: list[Pair]
) -> dict[str, Literal["min", "max"]]:
    """Check before training what would stop the first validation, when nothing is saved yet; return the metrics' modes.

    Raises DataError for a line that is too long to decode, MissingExtraError without the library that scores.
    """
    questions = runner.task.group_references(pairs)
    lines = (runner.task.preprocess(one) for one, _ in questions)
    for number, tokens in enumerate(runner.source_tokenizer.encode_batch(lines), 1):
        if len(tokens) > MAX_INPUT_TOKENS and runner.max_source_length is None:
            raise DataError(
                f"{describe_source(recipe.data.valid)}, question {number} "
                f"({questions[number - 1][0][:30]!r}...) has {len(tokens):,} tokens; expected at most "
                f"{MAX_INPUT_TOKENS:,} to validate on: cut it or take it out"
            )
    scores = runner.task.score([own[0] for _, own in questions], [own for _, own in questions])
    return {"loss": "min", **dict.fromkeys(scores, runner.task.mode)}


def _build_or_load_model(recipe: Text2TextConfig, splits: PairSplits, run_folder: Path, resume: bool) -> TextGenerator:
    """Build or load the initial model and its tokenizers: new ones, or those of a model to fine-tune."""
    task = TASKS[recipe.task]
    if isinstance(recipe.model, Pretrained):
        trained = load_base_model(recipe.model)
        return replace(trained, task=task, decoding=recipe.decoding, generation=_make_answer_generation(trained))
    source, target = _train_or_load_tokenizers(recipe, splits, run_folder, resume)
    torch.manual_seed(recipe.training.seed)
    model = build(recipe.model.spec(source.size, target.size, shared=source == target))
    return TextGenerator(model, source, target, task, recipe.decoding)


def _make_answer_generation(model: TextGenerator) -> GenerationRules | None:
    """Return the rules for a published decoder-only model, in which a token separates a text from its output."""
    if model.generation is None:
        return None
    eos = model.generation.eos_tokens or (model.target_tokenizer.eos,)
    bos = get_start_token(model.target_tokenizer, eos[0])
    return GenerationRules(bos, eos, tuple(sorted({*model.generation.suppress_tokens, bos} - set(eos))))


def _check_vocabulary(
    recipe: Text2TextConfig, splits: PairSplits, stores: Sequence[TokenStore], model: TextGenerator
) -> None:
    """Raise VocabularyError if more examples than may be dropped contain text that the model's tokenizers lack."""
    total, unknown = sum(map(len, stores)), sum(store.count_containing(model.source_tokenizer.unk) for store in stores)
    if unknown <= recipe.data.cleaning.max_dropped_fraction * total:
        return
    tokenizers = (model.source_tokenizer, model.target_tokenizer)
    found = (
        f"{text[:60]!r} with {', '.join(map(repr, strange[:3]))}"
        for pair in chain.from_iterable(splits.train)
        for text, tokenizer in zip(pair, tokenizers, strict=True)
        if (strange := find_unknown_symbols(tokenizer, text))
    )
    raise VocabularyError(
        f"{unknown:,} of {total:,} examples contain text that the model to fine-tune has no token for, such as "
        f"{next(found)}; expected at most {recipe.data.cleaning.max_dropped_fraction:.1%}: give it similar text, "
        "allow more "
        "(data.cleaning.max_dropped_fraction), or train a new model"
    )


def _train_or_load_tokenizers(
    recipe: Text2TextConfig, splits: PairSplits, run_folder: Path, resume: bool
) -> tuple[Tokenizer, Tokenizer]:
    """Train the tokenizers on the training examples, or read those of the resumed run.

    The recipe says whether there are two. Raises VocabularyError if a file of the resumed run is missing.
    """
    kept = run_folder / "source.tokenizer.json", run_folder / "target.tokenizer.json"
    if resume:
        source = Tokenizer.load(kept[0])
        return source, source if recipe.tokenizer.target is None else Tokenizer.load(kept[1])
    sources = (source for part in splits.train for source, _ in part)
    targets = (target for part in splits.train for _, target in part)
    if recipe.tokenizer.target is None:
        source = target = build_tokenizer(chain(sources, targets), recipe.tokenizer.source)
    else:
        source, target = (
            build_tokenizer(sources, recipe.tokenizer.source),
            build_tokenizer(targets, recipe.tokenizer.target),
        )
    save_tokenizer(source, kept[0])
    if recipe.tokenizer.target is not None:
        save_tokenizer(target, kept[1])
    return source, target


def _build_sampler(recipe: Text2TextConfig, stores: list[TokenStore]) -> BatchSampler:
    budget, seed = recipe.data.batch_tokens, recipe.training.seed
    if len(stores) == 1:
        return BatchSampler(stores[0].lengths, budget, seed)
    return MixtureSampler(
        [store.lengths for store in stores],
        recipe.data.sampling_weights or [len(store) for store in stores],
        budget,
        seed,
    )
