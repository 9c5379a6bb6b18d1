"""Audio classification: an encoder predicts one class for a whole recording."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from qkv.data import Batch, BatchSampler
from qkv.data.audio.frames import FrameStore, SpeechPreprocessor, augment_sources, pad_frames
from qkv.data.audio.sources import SpectrogramAugmentation
from qkv.errors import DataError
from qkv.models import SequenceModel, build
from qkv.tasks.encoder_model import EncoderModel
from qkv.tasks.registry import TASKS
from qkv.tasks.speech.config import AudioClassificationConfig
from qkv.tasks.speech.training import SpeechSplits, load_data
from qkv.tasks.speech.transcription import build_log_mel
from qkv.tasks.training_setup import TrainingSetup
from qkv.tasks.validation import Validator
from qkv.training import ValidationResult
from qkv.training.loss import smoothed_and_plain_cross_entropy

_MODES: Mapping[str, Literal["min", "max"]] = {"loss": "min", "accuracy": "max"}
_N_SAMPLES = 4

__all__ = ["LabelEncoder", "build_training_setup", "load_data"]


@dataclass(frozen=True)
class LabelEncoder:
    """An encoding of class names as their indices; other texts have no tokens."""

    labels: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A hash that differs for other classes."""
        return hashlib.sha256(repr(self.labels).encode()).hexdigest()

    @property
    def size(self) -> int:
        """The number of classes."""
        return len(self.labels)

    def encode_batch(self, lines: Iterable[str]) -> list[list[int]]:
        """Return the index of each class name, and nothing for other texts."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        return [[numbers[line]] if line in numbers else [] for line in lines]


def build_training_setup(
    recipe: AudioClassificationConfig, splits: SpeechSplits, run_folder: Path, cache_folder: Path, resume: bool
) -> TrainingSetup:
    """Return the frames and classes, the model before its first step, and its validation.

    Raises DataError for recordings of fewer than two classes.
    """
    data = recipe.data
    names = LabelEncoder(tuple(sorted({one.text.strip() for one in splits.train} - {""})))
    if len(names.labels) < 2:
        raise DataError(f"the recordings to train on name {len(names.labels)} classes; expected at least 2")
    features = build_log_mel(data.features)
    prepare = SpeechPreprocessor(features, names, data.cleaning, data.max_seconds, False, str.strip)
    store, _, train_notes = prepare(splits.train, cache_folder)
    checked, _, valid_notes = prepare(splits.valid)
    torch.manual_seed(recipe.training.seed)
    model = build(recipe.model.spec(features.mels, names.size))

    def batch(numbers: Sequence[int]) -> Batch:
        return _collate(store, numbers, data.augmentation)

    predictor = EncoderModel(model, features, TASKS["classification"], names.labels)
    sampler = BatchSampler(store.lengths, data.batch_frames, recipe.training.seed)
    validator = _build_validator(checked, names.labels, data.batch_frames)
    notes = [f"to train on: {train_notes}", f"to validate on: {valid_notes}"]
    return TrainingSetup(predictor, sampler, batch, validator, _MODES, notes)


def _collate(store: FrameStore, numbers: Sequence[int], augmentation: SpectrogramAugmentation | None = None) -> Batch:
    examples = [store[number] for number in numbers]
    source, mask = pad_frames(augment_sources(examples, augmentation))
    labels = torch.tensor([int(ids[0]) for _, ids in examples])
    return Batch(source, mask, None, labels, torch.as_tensor(list(numbers)))


def _build_validator(store: FrameStore, classes: Sequence[str], batch_frames: int) -> Validator:
    """Return the validator of the recordings of a store, without augmentation."""

    def load_batches() -> Iterator[Batch]:
        for numbers in BatchSampler(store.lengths, batch_frames).batches(0):
            yield _collate(store, numbers)

    def compute_loss(model: SequenceModel, batch: Batch) -> tuple[float, int, list[tuple[int, int]]]:
        logits = model(source=batch.source, source_mask=batch.source_mask)
        loss = float(smoothed_and_plain_cross_entropy(logits, batch.labels, 0.0)[0])
        return loss, len(batch.labels), list(zip(batch.labels.tolist(), logits.argmax(-1).tolist(), strict=True))

    def score(_: SequenceModel, predictions: list[list[tuple[int, int]]]) -> ValidationResult:
        pairs = [pair for own in predictions for pair in own]
        accuracy = 100 * sum(label == answer for label, answer in pairs) / len(pairs)
        samples = [f"{classes[label]}  ->  {classes[answer]}" for label, answer in pairs[:_N_SAMPLES]]
        return ValidationResult({"accuracy": accuracy}, samples)

    return Validator(load_batches, compute_loss, score)
