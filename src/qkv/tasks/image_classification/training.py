"""Training of image classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from qkv import spec
from qkv.data import Batch, WindowSampler
from qkv.data.images.processing import ImageProcessor
from qkv.data.images.sources import ImageDataset
from qkv.data.images.store import ImageBatches, ImageStore, fit_images, load_dataset
from qkv.errors import ConfigError, DataError
from qkv.models import SequenceModel, build
from qkv.tasks.config import Pretrained
from qkv.tasks.encoder_model import EncoderModel
from qkv.tasks.image_classification.config import ImageClassificationConfig, ImageData, ViT
from qkv.tasks.loader import load
from qkv.tasks.registry import TASKS
from qkv.tasks.training_setup import TrainingSetup
from qkv.tasks.validation import Validator
from qkv.training import ValidationResult
from qkv.training.loss import cross_entropy

_N_SAMPLES = 4
_BATCH_SIZE = 250
_MODES: Mapping[str, Literal["min", "max"]] = {"loss": "min", "accuracy": "max"}


@dataclass(frozen=True)
class ImageSplits:
    """Datasets for training, validation and testing, the names of their classes; `notes` are for the user."""

    train: list[ImageDataset]
    valid: ImageDataset | None
    test: list[ImageDataset]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load_data(recipe: ImageClassificationConfig) -> ImageSplits:
    """Load a recipe's datasets without their pixels. Raises DataError or CorpusError for images that cannot be read."""
    data = recipe.data
    train = [load_dataset(origin) for origin in data.train]
    valid = None if data.valid is None else load_dataset(data.valid)
    classes = _sort_classes({label for album in train for label in album.labels})
    if len(classes) < 2:
        raise DataError(f"all images have the class {classes[0]!r}; expected at least two classes")
    note = f"{sum(map(len, train)):,} images of {len(classes)} classes: {', '.join(classes[:10])}"
    test = [load_dataset(origin) for origin in data.test]
    return ImageSplits(train, valid, test, classes, (note + (", ..." if len(classes) > 10 else ""),))


def _sort_classes(classes: Iterable[str]) -> tuple[str, ...]:
    """Sort classes by number if they are numbers, else by name."""
    names = sorted(classes)
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else names)


def build_training_setup(
    recipe: ImageClassificationConfig, splits: ImageSplits, run_folder: Path, cache_folder: Path, resume: bool
) -> TrainingSetup:
    """Build the stores of pixels, the initial model and its validator."""
    data, seed = recipe.data, recipe.training.seed
    begun = _load_pretrained(recipe.model, data) if isinstance(recipe.model, Pretrained) else None
    raw = _build_processor(data, (0.0,), (1.0,)) if begun is None else begun.processor
    train = fit_images(splits.train, raw, splits.classes, cache_folder / "train.u8")
    apart = [
        fit_images([album], raw, splits.classes, cache_folder / f"test-{number}.u8")
        for number, album in enumerate(splits.test)
    ]
    if splits.valid is not None:
        valid = fit_images([splits.valid], raw, splits.classes, cache_folder / "valid.u8")
        checked = list(range(len(valid)))
        apart.append(valid)
    else:
        valid, checked = train, _select_held_out(train, data.held_out)
    learned, notes = _select_training_images(train, apart, set(checked) if splits.valid is None else set())
    notes = [*train.notes, *(note for other in apart for note in other.notes), *notes]
    height, width, channels = train.pixels.shape[1:]
    torch.manual_seed(seed)
    if begun is None:
        assert isinstance(recipe.model, ViT)
        preparation = _build_processor(data, *_compute_channel_statistics(train, learned), (height, width))
        model = build(recipe.model.spec(height, width, channels, len(splits.classes)))
    else:
        preparation, model = begun.processor, begun.with_classes(splits.classes)
        new = "" if begun.classes == splits.classes else f"; new scores for {len(splits.classes)} classes"
        notes.append(f"starts from the parameters of {begun.folder}{new}")
    batches = ImageBatches(train, learned, preparation, len(splits.classes), data.augmentation, data.mixup)
    notes.append(f"{len(learned):,} images of {width} x {height} pixels to train on, {len(checked):,} to validate on")
    some = checked[:: max(1, len(checked) // data.valid_images)]
    validator = _build_validator(valid, some, preparation, splits.classes)
    runner = EncoderModel(model, preparation, TASKS["classification"], splits.classes)
    return TrainingSetup(
        runner, WindowSampler(batches, data.batch_size, seed), batches.collate, validator, _MODES, notes
    )


@dataclass(frozen=True)
class _PretrainedClassifier:
    """A model to fine-tune, its image processor, and the names of its classes."""

    folder: Path
    model: SequenceModel
    processor: ImageProcessor
    classes: tuple[str, ...]

    def with_classes(self, classes: tuple[str, ...]) -> SequenceModel:
        """Return a new model with these parameters; for other classes than its own, the classifier starts at 0."""
        shape = self.model.spec
        assert isinstance(shape, spec.Transformer) and shape.encoder is not None
        answers = shape.head
        if classes == self.classes and isinstance(answers, spec.Classes):
            model = build(shape)
            model.load_state_dict(self.model.state_dict())
            return model
        if isinstance(answers, spec.Classes):
            answers = replace(answers, count=len(classes), dense=None)
        else:
            answers = spec.Classes(len(classes), answers.pool if isinstance(answers, spec.Vector) else "mean")
        model = build(replace(shape, head=answers))
        rest = {name: value for name, value in self.model.state_dict().items() if not name.startswith("head.")}
        strange = model.load_state_dict(rest, strict=False)
        assert all(name.startswith("head.") for name in strange.missing_keys) and not strange.unexpected_keys
        return model


def _load_pretrained(pretrained: Pretrained, data: ImageData) -> _PretrainedClassifier:
    """Load the model to fine-tune. Raises ConfigError if it reads no images, or the recipe changes their
    preprocessing."""
    opened = load(pretrained.path)
    if not isinstance(opened, EncoderModel) or not isinstance(opened.processor, ImageProcessor):
        raise ConfigError([f"model.path={pretrained.path}: reads no images; expected an image model"])
    if data.size is not None or data.grayscale:
        raise ConfigError(
            [
                f"data.{'grayscale' if data.size is None else 'size'}: given with model.path={pretrained.path}, but "
                "that model preprocesses images in its own way; leave it out"
            ]
        )
    return _PretrainedClassifier(pretrained.path, opened.module, opened.processor, opened.labels)


def _build_processor(
    data: ImageData, mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int] | None = None
) -> ImageProcessor:
    """Build the processor of images: their size and normalization; other images are later resized to the same
    `size`."""
    channels = 1 if data.grayscale else 3
    spread = tuple((values * channels)[:channels] for values in (mean, std))
    return ImageProcessor(size or data.size, mean=spread[0], std=spread[1], grayscale=data.grayscale)


def _select_held_out(store: ImageStore, fraction: float) -> list[int]:
    """Select the images whose digests come first, as a fraction of all: equal images stay together."""
    order = sorted(set(store.digests))
    if len(order) < 2:
        raise DataError("all images are the same; expected at least two that differ")
    chosen = set(order[: min(max(1, round(fraction * len(order))), len(order) - 1)])
    return [number for number, digest in enumerate(store.digests) if digest in chosen]


def _select_training_images(
    train: ImageStore, held_out_stores: list[ImageStore], held_out: set[int]
) -> tuple[list[int], list[str]]:
    """Select the images to train on, none of which is held out; also return notes on the others."""
    hidden = {digest for pictures in held_out_stores for digest in pictures.digests}
    known = [number for number, digest in enumerate(train.digests) if digest in hidden]
    learned = [number for number in range(len(train)) if number not in held_out and train.digests[number] not in hidden]
    if not learned:
        raise DataError(
            "nothing is left to train on: all images are also in the validation or test data; check data.train"
        )
    note = (
        f"{len(known):,} images left out, such as {train.names[known[0]]}: they are also in the validation data"
        if known
        else ""
    )
    return learned, [note] if note else []


def _compute_channel_statistics(store: ImageStore, indices: list[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of each channel, from 0 to 1, of up to 5,000 images, the latter at least
    1/255."""
    some = store.pixels[np.asarray(indices[:: max(1, len(indices) // 5000)])]
    mean, deviation = (part / 255 for part in (some.mean((0, 1, 2)), some.std((0, 1, 2)).clip(min=1)))
    return tuple(mean.round(4).tolist()), tuple(deviation.round(4).tolist())


def _build_validator(
    store: ImageStore, indices: list[int], processor: ImageProcessor, classes: tuple[str, ...]
) -> Validator:
    """Return the validator of some images of a store, without augmentation."""

    def load_batches() -> Iterator[Batch]:
        for start in range(0, len(indices), _BATCH_SIZE):
            some = indices[start : start + _BATCH_SIZE]
            source = processor.normalize(store.select(some).contiguous())
            yield Batch(source, None, None, torch.from_numpy(store.labels[some]), torch.as_tensor(some))

    def compute_loss(model: SequenceModel, batch: Batch) -> tuple[float, int, list[int]]:
        logits = model(batch.source)
        return float(cross_entropy(logits, batch.labels)), len(batch.labels), logits.argmax(-1).tolist()

    def score(_: SequenceModel, predictions: list[list[int]]) -> ValidationResult:
        answers = [answer for own in predictions for answer in own]
        labels = store.labels[indices].tolist()
        right = sum(answer == label for answer, label in zip(answers, labels, strict=True))
        samples = [
            f"{store.names[number]}  ->  {classes[answer]}   ({classes[label]})"
            for number, answer, label in list(zip(indices, answers, labels, strict=True))[:_N_SAMPLES]
        ]
        return ValidationResult({"accuracy": 100 * right / len(answers)}, samples)

    return Validator(load_batches, compute_loss, score)
