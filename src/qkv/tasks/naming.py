"""The task hear with a model that only names what it hears: an encoder alone, a class for the whole sound."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qkv.data import Batch, BatchSampler
from qkv.data.frames import FrameStore, Preparation, side_by_side, sources
from qkv.data.recordings import Recording
from qkv.errors import ConfigError, DataError
from qkv.models import SequenceModel, build
from qkv.tasks.kinds import TASKS
from qkv.tasks.lesson import Lesson
from qkv.tasks.listener import Classifier
from qkv.tasks.listening import log_mel
from qkv.tasks.published import Predictor
from qkv.tasks.recipe import HearRecipe
from qkv.training import Validated
from qkv.training.loss import with_plain

_METRICS = {"loss": "lower", "accuracy": "higher"}
_SAMPLES = 4


@dataclass(frozen=True)
class Names:
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

    def encode_all(self, lines: Iterable[str]) -> list[list[int]]:
        """The number of each class; nothing for a text that is none."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        return [[numbers[line]] if line in numbers else [] for line in lines]


def lesson(recipe: HearRecipe, train: list[Recording], valid: list[Recording], place: Path, tokens: Path) -> Lesson:
    """The frames and classes, the model before its first step, and what judges it."""
    data, given = recipe.data, recipe.model
    assert isinstance(given, Classifier)
    names = Names(tuple(sorted({one.text.strip() for one in train} - {""})))
    if len(names.labels) < 2:
        raise DataError(f"the recordings to learn from name {len(names.labels)} classes; expected at least 2")
    features = log_mel(data.features)
    prepare = Preparation(features, names, data.cleaning, data.longest, False, str.strip)
    store, _, told = prepare(train, tokens)
    checked, _, said = prepare(valid)
    torch.manual_seed(recipe.training.seed)
    model = build(given.spec(features.mels, names.size))

    def batch(numbers: Sequence[int]) -> Batch:
        examples = [store[number] for number in numbers]
        source, mask = side_by_side(sources(examples, data.augmentation))
        return Batch(source, mask, None, _classes(examples), torch.as_tensor(list(numbers)))

    judge = Judge(checked, names, recipe)
    predictor = Predictor(model, features, TASKS["classify"], names.labels)
    sampler = BatchSampler(store.lengths, data.batch_frames, recipe.training.seed)
    return Lesson(predictor, sampler, batch, judge, [f"to learn from: {told}", f"to check on: {said}"])


def _classes(examples: Sequence[tuple[torch.Tensor, Any]]) -> torch.Tensor:
    return torch.tensor([int(ids[0]) for _, ids in examples])


class Judge:
    """Validates: the loss on held-out recordings, and how many are named rightly.

    Raises ConfigError for a metric that is not there or is judged upside down.
    """

    def __init__(self, store: FrameStore, names: Names, recipe: HearRecipe) -> None:
        given = recipe.training.validation
        if _METRICS.get(given.metric) != given.better:
            choices = ", ".join(f"{name} ({better} is better)" for name, better in _METRICS.items())
            raise ConfigError(
                [f"training.validation: given {given.metric} ({given.better} is better), expected one of {choices}"]
            )
        self.store, self.names = store, names
        self.batches = BatchSampler(store.lengths, recipe.data.batch_frames).batches(0)

    @torch.no_grad()
    def __call__(self, model: SequenceModel) -> Validated:
        device = next(model.parameters()).device
        total, right, samples = 0.0, 0, []
        for numbers in self.batches:
            examples = [self.store[number] for number in numbers]
            source, mask = side_by_side(sources(examples))
            wanted = _classes(examples).to(device)
            logits = model(source=source.to(device), source_mask=mask.to(device))
            total += float(with_plain(logits, wanted, 0.0)[0])
            found = logits.argmax(dim=-1)
            right += int((found == wanted).sum())
            samples += [
                f"{self.names.labels[one]}  ->  {self.names.labels[two]}"
                for one, two in zip(wanted.tolist(), found.tolist(), strict=True)
            ]
        return Validated(
            {"loss": total / len(self.store), "accuracy": 100 * right / len(self.store)}, samples[:_SAMPLES]
        )
