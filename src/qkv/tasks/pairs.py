"""Tasks that learn from pairs, a source and its target: translate, pronounce and summarize."""

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

from qkv.data import Batch, BatchSampler, Joined, Mixture, TokenPairs, collate, in_one
from qkv.data.cleaning import prepare
from qkv.data.reading import Pair
from qkv.decoding import Decoding, Greedy
from qkv.errors import ConfigError, DataError, VocabularyError
from qkv.models import SequenceModel, build
from qkv.pretrained import Generation
from qkv.tasks import examples as reading
from qkv.tasks.examples import Examples, name_of
from qkv.tasks.kinds import TASKS
from qkv.tasks.lesson import Lesson, begin_of, begun_by, ends_of, keep, made
from qkv.tasks.recipe import From, Recipe
from qkv.tasks.runner import LONGEST, Runner, strange_to
from qkv.text import Tokenizer
from qkv.training import Validated
from qkv.training.loss import IGNORE, cross_entropy, with_plain

_SAMPLES = 4


def gather(recipe: Recipe) -> Examples:
    """Read what a recipe learns from; see `qkv.tasks.examples.gather`."""
    return reading.gather(recipe.data, TASKS[recipe.task])


def lesson(recipe: Recipe, examples: Examples, place: Path, tokens: Path, resume: bool) -> Lesson:
    """The tokenizers, the tokens, the model before its first step, and what judges it."""
    notes, stores = [], []
    runner = _beginning(recipe, examples, place, resume)
    source, target = runner.source, runner.target
    for pairs in examples.train:
        store, report = prepare(pairs, source, target, recipe.data.cleaning, tokens)
        notes.append(str(report))
        stores.append(store)
    if isinstance(recipe.model, From):
        _check_known(recipe, examples, stores, runner)
    data = stores[0] if len(stores) == 1 else Joined(stores)
    cleaning = recipe.data.cleaning
    card: dict[str, Any] = {"longest_source": cleaning.max_length} if cleaning.long == "truncate" else {}
    if any(led_by := sorted({origin.before for origin in recipe.data.train})):
        card["before"] = led_by
    runner = replace(runner, card=card)
    lay = _laying(runner)

    def batch(numbers: Sequence[int]) -> Batch:
        return lay([data[number] for number in numbers], numbers)

    judge = Judge(runner, recipe, _spread(examples.valid, recipe.data.valid_examples))
    judge.check(recipe)
    if judge.report.dropped_count or judge.report.truncated.count:
        notes.append(f"{name_of(recipe.data.valid)}: {judge.report}")
    losses = None if runner.reads_apart else partial(answered_losses, smoothing=recipe.training.label_smoothing)
    return Lesson(runner, _sampler(recipe, stores), batch, judge, notes, losses)


def _laying(runner: Runner) -> Callable[[Sequence[Any], Sequence[int]], Batch]:
    """How pairs of token numbers are laid side by side for a model: the source apart, or before its answer."""
    if runner.reads_apart:
        return lambda examples, numbers: collate(examples, runner.source, runner.target, numbers)
    ends = ends_of(runner)
    return lambda examples, numbers: in_one(examples, ends, numbers)


def answered_losses(model: Any, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The losses of a decoder alone (see `with_plain`), which scores no token of its source against the vocabulary."""
    where = batch.labels != IGNORE
    return with_plain(model.answer_to(batch.target, where=where), batch.labels[where], smoothing)


def _spread(pairs: list[Pair], count: int) -> list[Pair]:
    """Every nth source, for files are often sorted; with all its pairs, for each is a right answer."""
    sources = list(dict.fromkeys(source for source, _ in pairs))
    chosen = set(sources[:: max(1, len(sources) // count)][:count])
    return [pair for pair in pairs if pair[0] in chosen]


class Judge:
    """Validates: the loss on held-out examples, the task's own score by the task's own decoding, and some samples.

    Decoding is greedy, whatever the recipe's defaults: it is asked often, and only compared with itself.
    """

    def __init__(self, runner: Runner, recipe: Recipe, pairs: list[Pair]) -> None:
        self.runner, self.task, self.pairs = runner, runner.task, pairs
        self.decoding: Decoding = replace(recipe.decoding, method=Greedy())
        tokens, self.report = prepare(pairs, runner.source, runner.target, recipe.data.cleaning)
        batches, lay = BatchSampler(tokens.lengths, recipe.data.batch_tokens).batches(0), _laying(runner)
        self.batches = [lay([tokens[n] for n in numbers], numbers) for numbers in batches]

    def check(self, recipe: Recipe) -> None:
        """Find before training what would stop it at the first validation: DataError, ConfigError, MissingExtraError.

        A line that cannot be decoded, a metric that is not there or is judged upside down, a scoring library that is
        not installed: nothing would have been saved by then.
        """
        questions = self.task.questions(self.pairs)
        lines = (self.task.prepare(one) for one, _ in questions)
        for number, tokens in enumerate(self.runner.source.encode_all(lines), 1):
            if len(tokens) > LONGEST and self.runner.longest_source is None:
                raise DataError(
                    f"{name_of(recipe.data.valid)}, question {number} ({questions[number - 1][0][:30]!r}...) has "
                    f"{len(tokens):,} tokens; expected at most {LONGEST:,} to validate on: cut it or take it out"
                )
        given = recipe.training.validation
        scores = self.task.score([own[0] for _, own in questions], [own for _, own in questions])
        names = ["loss", *scores]
        if given.metric not in names:
            raise ConfigError(
                [f"training.validation.metric: given {given.metric!r}, expected one of {', '.join(names)}"]
            )
        better = "lower" if given.metric == "loss" else self.task.better
        if given.better != better:
            raise ConfigError(
                [
                    f"training.validation.better: given {given.better!r}, but {given.metric} is better when "
                    f"{better}; set it to {better}"
                ]
            )

    @torch.no_grad()
    def __call__(self, model: SequenceModel) -> Validated:
        device = next(model.parameters()).device
        total = count = 0.0
        for batch in self.batches:
            batch = batch.to(device)
            if self.runner.reads_apart:
                total += float(cross_entropy(model(batch.source, batch.target, batch.source_mask), batch.labels))
            else:
                total += float(answered_losses(model, batch)[1])
            count += batch.target_tokens
        questions = self.task.questions(self.pairs)
        runner = replace(self.runner, model=model)
        answers = [one[0].text for one in runner.run((source for source, _ in questions), self.decoding)]
        scores = self.task.score(answers, [references for _, references in questions])
        samples = [
            f"{textwrap.shorten(source, 300, placeholder=' ...')}  ->  {answer}   ({references[0]})"
            for (source, references), answer in zip(questions[:_SAMPLES], answers, strict=False)
        ]
        return Validated({"loss": total / count, **{name: one.value for name, one in scores.items()}}, samples)


def _beginning(recipe: Recipe, examples: Examples, place: Path, resume: bool) -> Runner:
    """The model before its first step and its tokenizers: new ones, or those of the model to go on from."""
    task = TASKS[recipe.task]
    if isinstance(recipe.model, From):
        trained = begun_by(recipe.model)
        return replace(trained, task=task, decoding=recipe.decoding, generation=_answering(trained))
    source, target = _tokenizers(recipe, examples, place, resume)
    torch.manual_seed(recipe.training.seed)
    model = build(recipe.model.spec(source.size, target.size, shared=source == target))
    return Runner(model, source, target, task, recipe.decoding)


def _answering(trained: Runner) -> Generation | None:
    """How a published decoder, which goes on with texts, learns to answer them: after a token that begins an answer."""
    if trained.generation is None:
        return None
    eos = trained.generation.eos or (trained.target.eos,)
    bos = begin_of(trained.target, eos[0])
    return Generation(bos, eos, tuple(sorted({*trained.generation.never, bos} - set(eos))))


def _check_known(recipe: Recipe, examples: Examples, stores: Sequence[TokenPairs], runner: Runner) -> None:
    """Raise VocabularyError if more examples than may be dropped hold what the model's tokenizers do not know."""
    total, unknown = sum(map(len, stores)), sum(store.holding(runner.source.unk) for store in stores)
    if unknown <= recipe.data.cleaning.allow_dropped * total:
        return
    tokenizers = (runner.source, runner.target)
    found = (
        f"{text[:60]!r} with {', '.join(map(repr, strange[:3]))}"
        for pair in chain.from_iterable(examples.train)
        for text, tokenizer in zip(pair, tokenizers, strict=True)
        if (strange := strange_to(tokenizer, text))
    )
    raise VocabularyError(
        f"{unknown:,} of {total:,} examples hold what the model to go on from has no token for, such as {next(found)}; "
        f"expected at most {recipe.data.cleaning.allow_dropped:.1%}: give it text of the kind it knows, allow more "
        "(data.cleaning.allow_dropped), or train a new model"
    )


def _tokenizers(recipe: Recipe, examples: Examples, place: Path, resume: bool) -> tuple[Tokenizer, Tokenizer]:
    """Make the tokenizers from the training examples, or read those of the run that goes on."""
    kept = place / "source.tokenizer.json", place / "target.tokenizer.json"
    if resume and kept[0].exists():
        source = Tokenizer.load(kept[0])
        return source, Tokenizer.load(kept[1]) if kept[1].exists() else source
    sources = (source for part in examples.train for source, _ in part)
    targets = (target for part in examples.train for _, target in part)
    if recipe.text.target is None:
        source = target = made(chain(sources, targets), recipe.text.source)
    else:
        source, target = made(sources, recipe.text.source), made(targets, recipe.text.target)
    keep(source, kept[0])
    if target != source:
        keep(target, kept[1])
    return source, target


def _sampler(recipe: Recipe, stores: list[TokenPairs]) -> BatchSampler:
    budget, seed = recipe.data.batch_tokens, recipe.training.seed
    if len(stores) == 1:
        return BatchSampler(stores[0].lengths, budget, seed)
    return Mixture(
        [store.lengths for store in stores], recipe.data.weights or [len(store) for store in stores], budget, seed
    )
