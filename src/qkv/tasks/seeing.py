"""The task see: an encoder alone learns to tell images apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from qkv import spec
from qkv.data import WindowSampler
from qkv.data.albums import Album
from qkv.data.images import ImagePreparation
from qkv.data.pictures import PictureBatches, Pictures, album_of, fitted
from qkv.errors import ConfigError, DataError
from qkv.models import SequenceModel, build
from qkv.tasks.kinds import TASKS
from qkv.tasks.lesson import Lesson
from qkv.tasks.loading import load
from qkv.tasks.published import Predictor
from qkv.tasks.recipe import From, SeeRecipe
from qkv.tasks.seen import PictureData, Vision
from qkv.training import Validated
from qkv.training.loss import cross_entropy

_SAMPLES = 4
_AT_ONCE = 250
_METRICS = {"loss": "lower", "accuracy": "higher"}


@dataclass(frozen=True)
class Seen:
    """Albums to learn from, to check on and not to learn from, the names of their classes; what there is to know."""

    train: list[Album]
    valid: Album | None
    test: list[Album]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def gather(recipe: SeeRecipe) -> Seen:
    """Open a recipe's albums, without their pixels. Raises DataError or CorpusError for what cannot be read."""
    data = recipe.data
    train = [album_of(origin) for origin in data.train]
    valid = None if data.valid is None else album_of(data.valid)
    classes = _ordered({label for album in train for label in album.labels})
    if len(classes) < 2:
        raise DataError(f"all images are of the class {classes[0]!r}; expected at least two classes to tell apart")
    note = f"{sum(map(len, train)):,} images of {len(classes)} classes: {', '.join(classes[:10])}"
    test = [album_of(origin) for origin in data.test]
    return Seen(train, valid, test, classes, (note + (", ..." if len(classes) > 10 else ""),))


def _ordered(classes: Iterable[str]) -> tuple[str, ...]:
    """By number if they are numbers, else by name."""
    names = sorted(classes)
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)


def lesson(recipe: SeeRecipe, seen: Seen, place: Path, tokens: Path, resume: bool) -> Lesson:
    """The pixels, the model before its first step, and what judges it."""
    data, seed = recipe.data, recipe.training.seed
    begun = _begun(recipe.model, data) if isinstance(recipe.model, From) else None
    raw = _preparation(data, (0.0,), (1.0,)) if begun is None else begun.prepares
    train = fitted(seen.train, raw, seen.classes, tokens / "train.u8")
    apart = [fitted([album], raw, seen.classes, tokens / f"test-{number}.u8") for number, album in enumerate(seen.test)]
    if seen.valid is not None:
        valid = fitted([seen.valid], raw, seen.classes, tokens / "valid.u8")
        checked = list(range(len(valid)))
        apart.append(valid)
    else:
        valid, checked = train, _held_out(train, data.held_out)
    learned, notes = _learned(train, apart, set(checked) if seen.valid is None else set())
    notes = [*train.notes, *(note for other in apart for note in other.notes), *notes]
    height, width, channels = train.pixels.shape[1:]
    torch.manual_seed(seed)
    if begun is None:
        assert isinstance(recipe.model, Vision)
        preparation = _preparation(data, *_statistics(train, learned), (height, width))
        model = build(recipe.model.spec(height, width, channels, len(seen.classes)))
    else:
        preparation, model = begun.prepares, begun.of_classes(seen.classes)
        new = "" if begun.classes == seen.classes else f"; new scores for {len(seen.classes)} classes"
        notes.append(f"begins with the parameters of {begun.folder}{new}")
    batches = PictureBatches(train, learned, preparation, len(seen.classes), data.augment, data.mixup)
    notes.append(f"{len(learned):,} images of {width} x {height} pixels to learn from, {len(checked):,} to check on")
    judge = Judge(valid, checked[:: max(1, len(checked) // data.valid_images)], preparation, seen.classes)
    judge.check(recipe)
    runner = Predictor(model, preparation, TASKS["classify"], seen.classes)
    return Lesson(runner, WindowSampler(batches, data.batch, seed), batches.batch, judge, notes)


@dataclass(frozen=True)
class _Begun:
    """A model to go on from, how it prepares images, and the names of its classes."""

    folder: Path
    model: SequenceModel
    prepares: ImagePreparation
    classes: tuple[str, ...]

    def of_classes(self, classes: tuple[str, ...]) -> SequenceModel:
        """A new model with these parameters; for other classes than it knows, with scores that begin at 0."""
        shape = self.model.spec
        assert isinstance(shape, spec.Transformer) and shape.encoder is not None
        answers = shape.answers
        if classes == self.classes and isinstance(answers, spec.Classes):
            model = build(shape)
            model.load_state_dict(self.model.state_dict())
            return model
        if isinstance(answers, spec.Classes):
            answers = replace(answers, count=len(classes), dense=None)
        else:
            answers = spec.Classes(len(classes), answers.pool if isinstance(answers, spec.Vector) else "mean")
        model = build(replace(shape, answers=answers))
        rest = {name: value for name, value in self.model.state_dict().items() if not name.startswith("answer.")}
        strange = model.load_state_dict(rest, strict=False)
        assert all(name.startswith("answer.") for name in strange.missing_keys) and not strange.unexpected_keys
        return model


def _begun(start: From, data: PictureData) -> _Begun:
    """Open the model to go on from. Raises ConfigError if it sees nothing, or images are to have another form."""
    opened = load(start.folder)
    if not isinstance(opened, Predictor) or not isinstance(opened.preparation, ImagePreparation):
        raise ConfigError([f"model.folder={start.folder}: reads no images; expected a model that sees"])
    if data.size is not None or data.grayscale:
        raise ConfigError(
            [
                f"data.{'grayscale' if data.size is None else 'size'}: given beside model.folder={start.folder}, but "
                "images are prepared as that model has learned it; leave it out"
            ]
        )
    return _Begun(start.folder, opened.model, opened.preparation, opened.labels)


def _preparation(
    data: PictureData, mean: tuple[float, ...], deviation: tuple[float, ...], size: tuple[int, int] | None = None
) -> ImagePreparation:
    """How images are brought to their size, and how pixels are normalised; other images later to the same `size`."""
    channels = 1 if data.grayscale else 3
    spread = tuple((values * channels)[:channels] for values in (mean, deviation))
    return ImagePreparation(size or data.size, mean=spread[0], deviation=spread[1], grayscale=data.grayscale)


def _held_out(pictures: Pictures, share: float) -> list[int]:
    """The images whose digests come first, so many of them: equal images stay together."""
    order = sorted(set(pictures.digests))
    if len(order) < 2:
        raise DataError("all images are the same; expected at least two that differ")
    chosen = set(order[: min(max(1, round(share * len(order))), len(order) - 1)])
    return [number for number, digest in enumerate(pictures.digests) if digest in chosen]


def _learned(train: Pictures, apart: list[Pictures], held_out: set[int]) -> tuple[list[int], list[str]]:
    """Which images are learned from: none that is held out or among those `apart`; and what to say of the others."""
    hidden = {digest for pictures in apart for digest in pictures.digests}
    known = [number for number, digest in enumerate(train.digests) if digest in hidden]
    learned = [number for number in range(len(train)) if number not in held_out and train.digests[number] not in hidden]
    if not learned:
        raise DataError("nothing is left to learn from: all images are among those to check on; check data.train")
    note = (
        f"{len(known):,} images left out, such as {train.names[known[0]]}: they are to check on as well"
        if known
        else ""
    )
    return learned, [note] if note else []


def _statistics(pictures: Pictures, numbers: list[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the deviation of each channel, from 0 to 1, of up to 5,000 images; no deviation is below 1/255."""
    some = pictures.pixels[np.asarray(numbers[:: max(1, len(numbers) // 5000)])]
    mean, deviation = (part / 255 for part in (some.mean((0, 1, 2)), some.std((0, 1, 2)).clip(min=1)))
    return tuple(mean.round(4).tolist()), tuple(deviation.round(4).tolist())


class Judge:
    """Validates: the loss and the accuracy on images that are not learned from, as they are."""

    def __init__(
        self, pictures: Pictures, numbers: list[int], preparation: ImagePreparation, classes: tuple[str, ...]
    ) -> None:
        self.pictures, self.numbers, self.preparation, self.classes = pictures, numbers, preparation, classes

    def check(self, recipe: SeeRecipe) -> None:
        """Raise ConfigError for a metric that is not there or is judged upside down."""
        given = recipe.training.validation
        if given.metric not in _METRICS:
            expected = ", ".join(_METRICS)
            raise ConfigError([f"training.validation.metric: given {given.metric!r}, expected one of {expected}"])
        if given.better != _METRICS[given.metric]:
            raise ConfigError(
                [
                    f"training.validation.better: given {given.better!r}, but {given.metric} is better when "
                    f"{_METRICS[given.metric]}; set it to that"
                ]
            )

    @torch.no_grad()
    def __call__(self, model: SequenceModel) -> Validated:
        device = next(model.parameters()).device
        loss, answers = 0.0, []
        for start in range(0, len(self.numbers), _AT_ONCE):
            some = self.numbers[start : start + _AT_ONCE]
            source = self.preparation.normalised(self.pictures.some(some).contiguous())
            labels = torch.from_numpy(self.pictures.labels[some]).to(device)
            logits = model(source.to(device))
            loss += float(cross_entropy(logits, labels))
            answers += logits.argmax(-1).tolist()
        wanted = self.pictures.labels[self.numbers].tolist()
        right = sum(answer == label for answer, label in zip(answers, wanted, strict=True))
        samples = [
            f"{self.pictures.names[number]}  ->  {self.classes[answer]}   ({self.classes[label]})"
            for number, answer, label in list(zip(self.numbers, answers, wanted, strict=True))[:_SAMPLES]
        ]
        return Validated({"loss": loss / len(answers), "accuracy": 100 * right / len(answers)}, samples)
