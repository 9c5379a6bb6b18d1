"""Tasks that learn from pairs, a source and its target: translation, pronunciation and summarization."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv.data import Batch, BatchSampler, ConcatStore, MixtureSampler, TokenStore, collate, collate_decoder_only
from qkv.data.cleaning import tokenize_pairs
from qkv.data.text.pairs import Pair
from qkv.decoding import DecodingConfig, Greedy
from qkv.errors import DataError, VocabularyError
from qkv.generation_rules import GenerationRules
from qkv.models import SequenceModel, build
from qkv.tasks.config import Pretrained, Text2TextConfig
from qkv.tasks.model_folder import Card
from qkv.tasks.registry import TASKS
from qkv.tasks.text2text import data as reading
from qkv.tasks.text2text.data import PairSplits, describe_source
from qkv.tasks.text_generator import MAX_INPUT_TOKENS, TextGenerator, find_unknown_symbols
from qkv.tasks.training_setup import (
    TrainingSetup,
    build_tokenizer,
    check_metric,
    get_special_tokens,
    get_start_token,
    load_base_model,
    save_tokenizer,
)
from qkv.text import Tokenizer
from qkv.training import ValidationResult
from qkv.training.loss import IGNORE_INDEX, cross_entropy, smoothed_and_plain_cross_entropy

_N_SAMPLES = 4


def load_data(recipe: Text2TextConfig) -> PairSplits:
    """Read what a recipe learns from; see `qkv.tasks.text2text.data.load_pair_splits`."""
    return reading.load_pair_splits(recipe.data, TASKS[recipe.task])


def build_training_setup(
    recipe: Text2TextConfig, splits: PairSplits, run_folder: Path, cache_folder: Path, resume: bool
) -> TrainingSetup:
    """The tokenizers, the tokens, the model before its first step, and what judges it."""
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

    validator = Validator(runner, recipe, _sample_evenly(splits.valid, recipe.data.valid_examples))
    validator.check_config(recipe)
    if validator.report.dropped_count or validator.report.truncated.count:
        notes.append(f"{describe_source(recipe.data.valid)}: {validator.report}")
    losses = (
        None if runner.has_encoder else partial(answer_cross_entropy, label_smoothing=recipe.training.label_smoothing)
    )
    return TrainingSetup(runner, _build_sampler(recipe, stores), batch, validator, notes, losses)


def _make_collate(model: TextGenerator) -> Callable[[Sequence[Any], Sequence[int]], Batch]:
    """How pairs of token numbers are laid side by side for a model: the source apart, or before its answer."""
    if model.has_encoder:
        return lambda examples, numbers: collate(examples, model.source_tokenizer, model.target_tokenizer, numbers)
    ends = get_special_tokens(model)
    return lambda examples, numbers: collate_decoder_only(examples, ends, numbers)


def answer_cross_entropy(model: Any, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The losses of a decoder alone (see `with_plain`), which scores no token of its source against the vocabulary."""
    where = batch.labels != IGNORE_INDEX
    return smoothed_and_plain_cross_entropy(
        model.decode(batch.target, selected=where), batch.labels[where], label_smoothing
    )


def _sample_evenly(pairs: list[Pair], count: int) -> list[Pair]:
    """Every nth source, for files are often sorted; with all its pairs, for each is a right answer."""
    sources = list(dict.fromkeys(source for source, _ in pairs))
    chosen = set(sources[:: max(1, len(sources) // count)][:count])
    return [pair for pair in pairs if pair[0] in chosen]


class Validator:
    """Validates: the loss on held-out examples, the task's own score by the task's own decoding, and some samples.

    Decoding is greedy, whatever the recipe's defaults: it is asked often, and only compared with itself.
    """

    def __init__(self, runner: TextGenerator, recipe: Text2TextConfig, pairs: list[Pair]) -> None:
        self.runner, self.task, self.pairs = runner, runner.task, pairs
        self.decoding: DecodingConfig = replace(recipe.decoding, method=Greedy())
        tokens, self.report = tokenize_pairs(
            pairs, runner.source_tokenizer, runner.target_tokenizer, recipe.data.cleaning
        )
        batches, lay = BatchSampler(tokens.lengths, recipe.data.batch_tokens).batches(0), _make_collate(runner)
        self.batches = [lay([tokens[n] for n in numbers], numbers) for numbers in batches]

    def check_config(self, recipe: Text2TextConfig) -> None:
        """Find before training what would stop it at the first validation: DataError, ConfigError, MissingExtraError.

        A line that cannot be decoded, a metric that is not there or is judged upside down, a scoring library that is
        not installed: nothing would have been saved by then.
        """
        questions = self.task.group_references(self.pairs)
        lines = (self.task.preprocess(one) for one, _ in questions)
        for number, tokens in enumerate(self.runner.source_tokenizer.encode_batch(lines), 1):
            if len(tokens) > MAX_INPUT_TOKENS and self.runner.max_source_length is None:
                raise DataError(
                    f"{describe_source(recipe.data.valid)}, question {number} "
                    f"({questions[number - 1][0][:30]!r}...) has "
                    f"{len(tokens):,} tokens; expected at most {MAX_INPUT_TOKENS:,} to validate on: cut it or take "
                    f"it out"
                )
        scores = self.task.score([own[0] for _, own in questions], [own for _, own in questions])
        check_metric(recipe.training.validation, {"loss": "min", **dict.fromkeys(scores, self.task.mode)})

    @torch.no_grad()
    def __call__(self, model: SequenceModel) -> ValidationResult:
        device = next(model.parameters()).device
        total = count = 0.0
        for batch in self.batches:
            batch = batch.to(device)
            if self.runner.has_encoder:
                total += float(cross_entropy(model(batch.source, batch.target, batch.source_mask), batch.labels))
            else:
                total += float(answer_cross_entropy(model, batch)[1])
            count += batch.target_tokens
        questions = self.task.group_references(self.pairs)
        runner = replace(self.runner, module=model)
        answers = [one[0].text for one in runner.predict_ranked((source for source, _ in questions), self.decoding)]
        scores = self.task.score(answers, [references for _, references in questions])
        samples = [
            f"{textwrap.shorten(source, 300, placeholder=' ...')}  ->  {answer}   ({references[0]})"
            for (source, references), answer in zip(questions[:_N_SAMPLES], answers, strict=False)
        ]
        return ValidationResult({"loss": total / count, **{name: one.value for name, one in scores.items()}}, samples)


def _build_or_load_model(recipe: Text2TextConfig, splits: PairSplits, run_folder: Path, resume: bool) -> TextGenerator:
    """The model before its first step and its tokenizers: new ones, or those of the model to go on from."""
    task = TASKS[recipe.task]
    if isinstance(recipe.model, Pretrained):
        trained = load_base_model(recipe.model)
        return replace(trained, task=task, decoding=recipe.decoding, generation=_make_answer_generation(trained))
    source, target = _train_or_load_tokenizers(recipe, splits, run_folder, resume)
    torch.manual_seed(recipe.training.seed)
    model = build(recipe.model.spec(source.size, target.size, shared=source == target))
    return TextGenerator(model, source, target, task, recipe.decoding)


def _make_answer_generation(model: TextGenerator) -> GenerationRules | None:
    """How a published decoder, which goes on with texts, learns to answer them: after a token that begins an answer."""
    if model.generation is None:
        return None
    eos = model.generation.eos_tokens or (model.target_tokenizer.eos,)
    bos = get_start_token(model.target_tokenizer, eos[0])
    return GenerationRules(bos, eos, tuple(sorted({*model.generation.suppress_tokens, bos} - set(eos))))


def _check_vocabulary(
    recipe: Text2TextConfig, splits: PairSplits, stores: Sequence[TokenStore], model: TextGenerator
) -> None:
    """Raise VocabularyError if more examples than may be dropped hold what the model's tokenizers do not know."""
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
        f"{unknown:,} of {total:,} examples hold what the model to go on from has no token for, such as {next(found)}; "
        f"expected at most {recipe.data.cleaning.max_dropped_fraction:.1%}: give it text of the kind it knows, "
        f"allow more "
        "(data.cleaning.max_dropped_fraction), or train a new model"
    )


def _train_or_load_tokenizers(
    recipe: Text2TextConfig, splits: PairSplits, run_folder: Path, resume: bool
) -> tuple[Tokenizer, Tokenizer]:
    """Make the tokenizers from the training examples, or read those of the run that goes on.

    The recipe says whether there are two. Raises VocabularyError if a file of the run that goes on is missing.
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
