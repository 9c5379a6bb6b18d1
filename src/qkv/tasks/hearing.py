"""The task hear: an encoder reads sounds, a decoder and the encoder's own labels write what is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qkv.data import Batch, BatchSampler
from qkv.data.audio import LogMel
from qkv.data.frames import FrameStore, Preparation, heard
from qkv.data.hearing import Augmentation, Features, SoundOrigin, name_of
from qkv.data.recordings import Recording
from qkv.decoding import Decoding, Greedy
from qkv.errors import ConfigError, DataError, VocabularyError
from qkv.evaluation import transcript_errors
from qkv.models import SequenceModel, build
from qkv.models.transformer import Transformer
from qkv.tasks import naming
from qkv.tasks.kinds import TASKS, spoken
from qkv.tasks.lesson import Lesson, begun_by, ends_of, keep, made
from qkv.tasks.listener import Classifier, Listener
from qkv.tasks.listening import Hearing, log_mel, quickly
from qkv.tasks.recipe import From, HearRecipe
from qkv.tasks.runner import Runner, strange_to
from qkv.text import Tokenizer
from qkv.training import Validated
from qkv.training.loss import cross_entropy, with_plain

_SAMPLES = 4
_METRICS = {"loss": "lower", "wer": "lower", "right": "higher"}


@dataclass(frozen=True)
class Sounds:
    """Recordings to learn from and to check on, unread; what there is to know about them."""

    train: list[Recording]
    valid: list[Recording]
    notes: tuple[str, ...] = ()


def gather(recipe: HearRecipe) -> Sounds:
    """Find a recipe's recordings. Raises DataError or CorpusError for a manifest that cannot be read."""
    data = recipe.data
    train = [one for origin in data.train for one in _found(origin)]
    every = _found(data.valid)
    valid = every[:: max(1, len(every) // data.valid_recordings)][: data.valid_recordings]
    notes = [f"{', '.join(map(name_of, data.train))}: {len(train):,} recordings to learn from"]
    notes.append(f"{name_of(data.valid)}: {len(valid):,} of {len(every):,} recordings to check on")
    held_out = {name_of(data.valid): every} | {name_of(origin): _found(origin) for origin in data.test}
    return Sounds(train, valid, (*notes, *_shared(train, held_out)))


def _found(origin: SoundOrigin) -> list[Recording]:
    found = origin.recordings()
    if not found:
        raise DataError(f"{name_of(origin)} holds no recordings; expected at least one")
    return found


def _shared(train: Sequence[Recording], held_out: dict[str, list[Recording]]) -> list[str]:
    """What the recordings to learn from and those held out have in common: sounds, and speakers."""
    stamps, speakers = {one.name for one in train}, {one.speaker for one in train} - {""}
    notes = []
    for name, recordings in held_out.items():
        if both := [one for one in recordings if one.name in stamps and not one.name.startswith("joined ")]:
            notes.append(
                f"leakage: {len(both):,} of {len(recordings):,} recordings of {name} are also learned from, such as "
                f"{both[0].name}; take them out of one of the two"
            )
        own = {one.speaker for one in recordings} - {""}
        if own and speakers:
            notes.append(f"{name}: {len(own & speakers)} of its {len(own)} speakers are also learned from")
    return notes


def lesson(recipe: HearRecipe, sounds: Sounds, place: Path, tokens: Path, resume: bool) -> Lesson:
    """The tokenizer, the frames, the model before its first step, and what judges it."""
    data = recipe.data
    if isinstance(recipe.model, Classifier):
        return naming.lesson(recipe, sounds.train, sounds.valid, place, tokens)
    runner = _beginning(recipe, sounds, place, resume)
    labelled = _labels(runner.model)
    assert runner.hearing is not None
    written = spoken if runner.generation is None else _continued
    prepare = Preparation(runner.hearing.features, runner.target, data.cleaning, data.longest, labelled, written)
    store, _, told = prepare(sounds.train, tokens)
    checked, kept, said = prepare(sounds.valid)

    def batch(numbers: Sequence[int]) -> Batch:
        return _side_by_side(runner, store, numbers, data.augmentation)

    losses = joint(ends_of(runner).pad, recipe.ctc.weight if labelled else 0.0, recipe.training.label_smoothing)
    judge = Judge(runner, checked, [sounds.valid[number] for number in kept], recipe)
    judge.check(recipe)
    sampler = BatchSampler(store.lengths, data.batch_frames, recipe.training.seed)
    return Lesson(runner, sampler, batch, judge, [f"to learn from: {told}", f"to check on: {said}"], losses)


def _side_by_side(
    runner: Runner, store: FrameStore, numbers: Sequence[int], augmentation: Augmentation | None = None
) -> Batch:
    assert runner.hearing is not None
    first, alike = runner.rules().get("first", ()), runner.hearing.features.seconds is not None
    return heard(
        [store[number] for number in numbers], ends_of(runner), numbers, augmentation, first=first, alike=alike
    )


def _continued(text: str) -> str:
    """A text as a published model writes it after its first tokens: as it is, a space before it."""
    return f" {text.strip()}"


def _labels(model: SequenceModel) -> bool:
    """Whether the encoder of a model answers by itself."""
    return isinstance(model, Transformer) and model.encoder_answer is not None


def joint(blank: int, weight: float, smoothing: float) -> Callable[[Any, Batch], tuple[Tensor, Tensor]]:
    """The loss of both answers: (1 - weight) * the decoder's loss + weight * CTC (Watanabe et al. 2017, eq. 9).

    Beside it the decoder's cross entropy without smoothing is told, all summed over the targets.
    """

    def losses(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        memory = model.encode(batch.source, batch.source_mask)
        written, plain = with_plain(model.answer_to(batch.target, memory), batch.labels, smoothing)
        if not weight:
            return written, plain
        targets = batch.target[:, 1:] if batch.target is not None else batch.labels
        lengths = (batch.labels >= 0).sum(dim=1) - 1  # the end is no label
        read = functional.ctc_loss(
            model.label(memory).float().log_softmax(-1).transpose(0, 1),
            targets,
            memory.mask.sum(dim=1),
            lengths,
            blank,
            reduction="sum",
            zero_infinity=True,  # a sound that was made shorter may have no room for its text
        )
        return (1 - weight) * written + weight * read, plain

    return losses


class Judge:
    """Validates: the loss on held-out recordings, word errors and whole texts that are right, and some samples.

    The labels alone answer if there are any, else the decoder, greedily: it is asked often, and only compared with
    itself.
    """

    def __init__(self, runner: Runner, store: FrameStore, recordings: Sequence[Recording], recipe: HearRecipe) -> None:
        self.runner, self.store, self.recordings = runner, store, recordings
        self.references = [spoken(one.text) for one in recordings]
        numbers = BatchSampler(store.lengths, recipe.data.batch_frames).batches(0)
        self.batches = [_side_by_side(runner, store, own) for own in numbers]
        self.decoding: Decoding = replace(recipe.decoding, method=Greedy())

    def check(self, recipe: HearRecipe) -> None:
        """Raise ConfigError for a metric that is not there or judged upside down; MissingExtraError without jiwer."""
        given = recipe.training.validation
        better = _METRICS.get(given.metric)
        if better is None:
            raise ConfigError(
                [f"training.validation.metric: given {given.metric!r}, expected one of {', '.join(_METRICS)}"]
            )
        if given.better != better:
            raise ConfigError(
                [f"training.validation.better: given {given.better!r}, but {given.metric} is better when {better}"]
            )
        transcript_errors(["a"], ["a"])

    @torch.no_grad()
    def __call__(self, model: SequenceModel) -> Validated:
        device = next(model.parameters()).device
        total = count = 0.0
        answers = [""] * len(self.references)
        runner = replace(self.runner, model=model)
        for batch in self.batches:
            moved = batch.to(device)
            assert moved.source is not None and moved.target is not None
            logits = model(moved.source, moved.target, moved.source_mask)
            total += float(cross_entropy(logits, moved.labels))
            count += moved.target_tokens
            found = quickly(runner, moved.source, moved.source_mask, self.decoding)
            for number, tokens in zip(batch.index.tolist(), found, strict=True):
                answers[number] = runner.target.decode(tokens)
        scores = runner.task.score(answers, [(text,) for text in self.references])
        samples = [f"{said}  ->  {answer}" for said, answer in zip(self.references, answers, strict=True)][:_SAMPLES]
        return Validated({"loss": total / count, **{name: one.value for name, one in scores.items()}}, samples)


def _beginning(recipe: HearRecipe, sounds: Sounds, place: Path, resume: bool) -> Runner:
    """The model before its first step with its tokenizer and features: new, or those of the model to go on from."""
    task = TASKS["transcribe"]
    if isinstance(recipe.model, From):
        trained = begun_by(recipe.model, hears=True)
        assert trained.hearing is not None
        hearing = Hearing(_features(recipe, trained.hearing.features), recipe.ctc.decoding * _labels(trained.model))
        _check_known(sounds, trained.target)
        return replace(trained, task=task, decoding=recipe.decoding, card=None, hearing=hearing)
    kept = place / "source.tokenizer.json"
    if resume and kept.exists():
        tokenizer = Tokenizer.load(kept)
    else:
        tokenizer = made((spoken(one.text) for one in sounds.train), recipe.text)
        keep(tokenizer, kept)
    features = log_mel(recipe.data.features)
    torch.manual_seed(recipe.training.seed)
    assert isinstance(recipe.model, Listener)
    model = build(recipe.model.spec(features.mels, tokenizer.size, labels=recipe.ctc.weight > 0))
    hearing = Hearing(features, recipe.ctc.decoding)
    return Runner(model, tokenizer, tokenizer, task, recipe.decoding, hearing=hearing)


def _features(recipe: HearRecipe, known: LogMel) -> LogMel:
    """The features of the model to go on from, unless a recipe says them otherwise; ConfigError if not so.

    Sounds may be filled with silence to fewer seconds than the model knows.
    """
    given = recipe.data.features
    if given == Features():
        return known
    features = log_mel(given)
    shorter = known.seconds is not None and features.seconds is not None and features.seconds <= known.seconds
    if features != replace(known, seconds=features.seconds if shorter else known.seconds):
        assert isinstance(recipe.model, From)
        raise ConfigError(
            [f"data.features: the model in {recipe.model.folder} hears by {known}; give those, or data.features={{}}"]
        )
    return features


def _check_known(sounds: Sounds, tokenizer: Tokenizer) -> None:
    """Raise VocabularyError for texts to learn from that a model has no tokens for."""
    for one in sounds.train:
        if strange := strange_to(tokenizer, spoken(one.text)):
            raise VocabularyError(
                f"{one.name}: {one.text[:60]!r} has {', '.join(map(repr, strange[:3]))}, which the model to go on from "
                "never writes; give it texts of the kind it knows, or train a new model"
            )
