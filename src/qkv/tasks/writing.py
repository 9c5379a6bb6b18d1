"""The task write: a decoder alone learns to go on with texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qkv import spec
from qkv.data import Windows, WindowSampler, pack
from qkv.data.texts import Found, name_of
from qkv.errors import ConfigError, VocabularyError
from qkv.evaluation.reading import Window
from qkv.models import SequenceModel, build
from qkv.tasks.judging import read_texts
from qkv.tasks.kinds import TASKS
from qkv.tasks.lesson import Ends, Lesson, begin_of, begun_by, keep, made
from qkv.tasks.recipe import From, TextData, WriteRecipe
from qkv.tasks.runner import Runner
from qkv.text import Tokenizer
from qkv.training import Validated

_SAMPLES = 2
_PROMPT = 100  # characters of a held-out text that a sample goes on from
_METRICS = ("loss", "perplexity", "bits per byte")


@dataclass(frozen=True)
class Texts:
    """Texts to learn from, read anew each time, and the beginning of those to check on; what there is to know."""

    train: Found
    valid: list[str]
    notes: tuple[str, ...] = ()


def gather(recipe: WriteRecipe) -> Texts:
    """Read a recipe's texts and hold out what is to be checked on; what is learned from is not kept.

    Raises DataError or CorpusError for what cannot be read, and if nothing is left to learn from.
    """
    data = recipe.data
    if data.valid is None:
        train = Found(data.train)
        valid = _held_out(train, data)
        notes = train.notes
    else:
        checked = Found([data.valid])
        train = Found(data.train, checked.digests)
        valid = _up_to(checked, data.valid_characters)
        notes = [*train.notes, *checked.notes]
        if train.hidden_count:
            notes.append(f"{train.hidden_count:,} documents left out: they are in {name_of(data.valid)} as well")
    notes.append(
        f"{len(train):,} documents to learn from, {sum(map(len, valid)):,} characters of {len(valid):,} to check on"
    )
    return Texts(train, valid, tuple(notes))


def _held_out(train: Found, data: TextData) -> list[str]:
    """Take out of `train` a share of its documents, whose digests come first; or the end, if there is but one."""
    every = sorted(set(train.digests))
    if len(every) == 1:
        [text, *_] = train
        train.end = min(max(round(len(text) * (1 - data.held_out)), 1), len(text) - 1)
        return [text[train.end :][: data.valid_characters]]
    chosen = every[: min(max(1, round(data.held_out * len(every))), len(every) - 1)]
    valid = _up_to(train.only(chosen), data.valid_characters)
    train.hide(chosen)
    return valid


def lesson(recipe: WriteRecipe, texts: Texts, place: Path, tokens: Path, resume: bool) -> Lesson:
    """The tokenizer, the windows of tokens, the model before its first step, and what judges it."""
    data, seed = recipe.data, recipe.training.seed
    runner = _start(recipe, texts, place, resume)
    store = pack(texts.train, texts.train.key, runner.source, tokens)
    windows = Windows(store, data.context, _ends(runner.source), seed)
    sampler = WindowSampler(windows, data.batch_tokens // windows.context, seed)
    judge = Judge(runner, texts.valid, Window(data.context, data.stride or data.context))
    judge.check(recipe)
    return Lesson(runner, sampler, windows.batch, judge, [f"{store.tokens:,} tokens to learn from"])


class Judge:
    """Validates: the loss on held-out texts, and what the model makes of the beginnings of some."""

    def __init__(self, runner: Runner, texts: Sequence[str], window: Window) -> None:
        self.runner, self.texts, self.window = runner, texts, window

    def check(self, recipe: WriteRecipe) -> None:
        """Raise ConfigError for a metric that is not there or is judged upside down."""
        given = recipe.training.validation
        if given.metric not in _METRICS:
            raise ConfigError(
                [f"training.validation.metric: given {given.metric!r}, expected one of {', '.join(_METRICS)}"]
            )
        if given.better != "lower":
            raise ConfigError([f"training.validation.better: given {given.better!r}; {given.metric} is better lower"])

    def __call__(self, model: SequenceModel) -> Validated:
        runner = replace(self.runner, model=model)
        scores = read_texts(runner, self.texts, self.window).scores
        prompts = [text[:_PROMPT] for text in self.texts[:_SAMPLES]]
        samples = [
            f"{prompt}[...]{answer.text}" for prompt, (answer, *_) in zip(prompts, runner.run(prompts), strict=True)
        ]
        return Validated({name: score.value for name, score in scores.items()}, samples)


def _ends(tokenizer: Tokenizer) -> Ends:
    """What stands around a text that is learned whole."""
    eos = tokenizer.eos
    return Ends(eos, begin_of(tokenizer, eos), eos)


def _start(recipe: WriteRecipe, texts: Texts, place: Path, resume: bool) -> Runner:
    """The model before its first step and its tokenizer: new ones, or those of the model to go on from."""
    card = {"context": recipe.data.context}
    if isinstance(recipe.model, From):
        trained = begun_by(recipe.model)
        shape = trained.model.spec
        if not isinstance(shape, spec.Transformer) or shape.decoder is None or shape.encoder is not None:
            raise ConfigError([f"model.folder={recipe.model.folder}: reads a source; expected a model that writes"])
        _check_known(texts, trained.source)
        return replace(trained, task=TASKS["continue"], decoding=recipe.decoding, card=card)
    kept = place / "source.tokenizer.json"
    if resume and kept.exists():
        tokenizer = Tokenizer.load(kept)
    else:
        tokenizer = made(texts.train, recipe.text)
        keep(tokenizer, kept)
    torch.manual_seed(recipe.training.seed)
    model = build(recipe.model.spec(tokenizer.size))
    return Runner(model, tokenizer, tokenizer, TASKS["continue"], recipe.decoding, card)


def _check_known(texts: Texts, tokenizer: Tokenizer) -> None:
    """Raise VocabularyError if more than 1% of the characters of what is checked on are unknown to a model."""
    characters = sorted({character for text in texts.valid for character in text})
    unk = tokenizer.specials.unk
    if not any(unk in ids for ids in tokenizer.encode_all(texts.valid)):
        return  # a tokenizer of words may know no character by itself
    unknown = {c for c, ids in zip(characters, tokenizer.encode_all(characters), strict=True) if unk in ids}
    count, total = sum(c in unknown for text in texts.valid for c in text), sum(map(len, texts.valid))
    if count > 0.01 * total:
        raise VocabularyError(
            f"{count:,} of {total:,} characters are unknown to the model to go on from, such as "
            f"{', '.join(map(repr, sorted(unknown)[:5]))}; give it text of the kind it knows, or train a new model"
        )


def _up_to(texts: Iterable[str], characters: int) -> list[str]:
    """The first texts, so many characters of them."""
    some: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        some.append(text[:characters])
        characters -= len(text)
    return some
