"""Audio classification: an encoder alone predicts one class for a whole recording."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qkv.data import Batch, BatchSampler
from qkv.data.audio.frames import FrameStore, SpeechPreprocessor, augment_sources, pad_frames
from qkv.data.audio.recordings import Recording
from qkv.errors import DataError
from qkv.models import SequenceModel, build
from qkv.tasks.config import SpeechConfig
from qkv.tasks.encoder_model import EncoderModel
from qkv.tasks.registry import TASKS
from qkv.tasks.speech.config import AudioClassifier
from qkv.tasks.speech.transcription import build_log_mel
from qkv.tasks.training_setup import TrainingSetup, check_metric
from qkv.training import ValidationResult
from qkv.training.loss import smoothed_and_plain_cross_entropy

_METRICS = {"loss": "min", "accuracy": "max"}
_N_SAMPLES = 4


@dataclass(frozen=True)
class LabelEncoder:
    """The classes, in the order of their numbers: an encoder of texts of which each is one, or none."""

    labels: tuple[str, ...]

    @property
    def digest(self) -> str:
        """What would be another for other classes."""
        return hashlib.sha256(repr(self.labels).encode()).hexdigest()

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.labels)

    def encode_batch(self, lines: Iterable[str]) -> list[list[int]]:
        """The number of each class; nothing for a text that is none."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        return [[numbers[line]] if line in numbers else [] for line in lines]


def build_training_setup(
    recipe: SpeechConfig, train: list[Recording], valid: list[Recording], run_folder: Path, cache_folder: Path
) -> TrainingSetup:
    """The frames and classes, the model before its first step, and what judges it."""
    data, given = recipe.data, recipe.model
    assert isinstance(given, AudioClassifier)
    names = LabelEncoder(tuple(sorted({one.text.strip() for one in train} - {""})))
    if len(names.labels) < 2:
        raise DataError(f"the recordings to train on name {len(names.labels)} classes; expected at least 2")
    features = build_log_mel(data.features)
    prepare = SpeechPreprocessor(features, names, data.cleaning, data.max_seconds, False, str.strip)
    store, _, train_notes = prepare(train, cache_folder)
    checked, _, valid_notes = prepare(valid)
    torch.manual_seed(recipe.training.seed)
    model = build(given.spec(features.mels, names.size))

    def batch(numbers: Sequence[int]) -> Batch:
        examples = [store[number] for number in numbers]
        source, mask = pad_frames(augment_sources(examples, data.augmentation))
        return Batch(source, mask, None, _class_ids(examples), torch.as_tensor(list(numbers)))

    validator = Validator(checked, names, recipe)
    predictor = EncoderModel(model, features, TASKS["classification"], names.labels)
    sampler = BatchSampler(store.lengths, data.batch_frames, recipe.training.seed)
    return TrainingSetup(
        predictor, sampler, batch, validator, [f"to train on: {train_notes}", f"to validate on: {valid_notes}"]
    )


def _class_ids(examples: Sequence[tuple[torch.Tensor, Any]]) -> torch.Tensor:
    return torch.tensor([int(ids[0]) for _, ids in examples])


class Validator:
    """Measures the loss and the accuracy on held-out recordings. Raises ConfigError as `check_metric` does."""

    def __init__(self, store: FrameStore, label_encoder: LabelEncoder, recipe: SpeechConfig) -> None:
        check_metric(recipe.training.validation, _METRICS)
        self.store, self.label_encoder = store, label_encoder
        self.batches = BatchSampler(store.lengths, recipe.data.batch_frames).batches(0)

    @torch.no_grad()
    def __call__(self, model: SequenceModel) -> ValidationResult:
        device = next(model.parameters()).device
        total, right, samples = 0.0, 0, []
        for numbers in self.batches:
            examples = [self.store[number] for number in numbers]
            source, mask = pad_frames(augment_sources(examples))
            labels = _class_ids(examples).to(device)
            logits = model(source=source.to(device), source_mask=mask.to(device))
            total += float(smoothed_and_plain_cross_entropy(logits, labels, 0.0)[0])
            found = logits.argmax(dim=-1)
            right += int((found == labels).sum())
            samples += [
                f"{self.label_encoder.labels[one]}  ->  {self.label_encoder.labels[two]}"
                for one, two in zip(labels.tolist(), found.tolist(), strict=True)
            ]
        return ValidationResult(
            {"loss": total / len(self.store), "accuracy": 100 * right / len(self.store)}, samples[:_N_SAMPLES]
        )
