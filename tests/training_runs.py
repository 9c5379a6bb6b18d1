"""The small runs that the tests of training make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qkv.data.batch import Batch
from qkv.data.sampler import BatchSampler
from qkv.layers import Dropout
from qkv.training import (
    CheckpointingConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
    ValidationConfig,
    ValidationResult,
)
from qkv.training.loss import IGNORE_INDEX, cross_entropy
from qkv.training.reporters import NullReporter

VOCAB = 11


class Tiny(nn.Module):
    """The least a trainer can train: it reads a target token and says the next."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.norm = nn.LayerNorm(width)
        self.middle = nn.Linear(width, width)
        self.dropout = Dropout()
        self.answer = nn.Linear(width, VOCAB)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, source: Tensor | None, target: Tensor, source_mask: Tensor | None) -> Tensor:
        answer: Tensor = self.answer(self.dropout(torch.relu(self.middle(self.norm(self.embedding(target))))))
        return answer


LENGTHS = [2 + (7 * number) % 5 for number in range(40)]


def collate(numbers: Sequence[int]) -> Batch:
    longest = max(LENGTHS[number] for number in numbers)
    labels = torch.full((len(numbers), longest), IGNORE_INDEX)
    for row, number in enumerate(numbers):
        labels[row, : LENGTHS[number]] = (torch.arange(LENGTHS[number]) * (number + 1)) % VOCAB
    target = torch.cat([torch.ones(len(numbers), 1, dtype=torch.int64), labels[:, :-1].clamp(min=0)], dim=1)
    return Batch(None, None, target, labels, torch.tensor(list(numbers)))


OPTIONS = TrainingConfig(
    max_steps=12,
    optimizer=OptimizerConfig(learning_rate=1e-2),
    dropout=0.2,
    precision="float32",  # the same on every processor
    validation=ValidationConfig(every=4),
    checkpointing=CheckpointingConfig(every=3, log_every=2, keep_last=2, keep_best=2),
)

INTERRUPTED_OPTIONS = replace(OPTIONS, max_steps=30, ema_decay=0.95, gradient_accumulation=2)


def validate_on_three(model: Any) -> ValidationResult:
    batch = collate([0, 1, 2])
    assert not model.training
    torch.rand(3)  # a validation that draws must not disturb the training
    loss = cross_entropy(model(None, batch.target, None), batch.labels) / batch.target_tokens
    return ValidationResult({"loss": float(loss)}, ["a -> b"])


def build_trainer(folder: Path, options: TrainingConfig = OPTIONS, **more: Any) -> Trainer:
    torch.manual_seed(3)
    model = more.pop("model", None) or Tiny()
    sampler = more.pop("sampler", None) or BatchSampler(LENGTHS, 40, seed=5)
    more.setdefault("reporter", NullReporter())
    return Trainer(model, options, sampler, more.pop("collate", collate), folder, **more)


def read_weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "weights").iterdir())}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    timed = {"seconds", "eta_seconds", "target_tokens_per_second"}
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in read]


class Pieces:
    """A sampler that cuts the same examples into batches of one size."""

    def __init__(self, size: int) -> None:
        self.size, self.given = size, 0

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            self.given += self.size
            yield [(self.given - self.size + n) % len(LENGTHS) for n in range(self.size)]

    def state(self) -> dict[str, Any]:
        return {"given": self.given, "examples": len(LENGTHS)}

    def restore(self, state: dict[str, Any]) -> None:
        self.given = state["given"]
