"""Validation: the loss on held-out batches, the metrics of a task, and samples for people to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qkv.data import Batch
from qkv.errors import ConfigError
from qkv.training import ValidationResult
from qkv.training.config import ValidationConfig


@dataclass(frozen=True)
class Validator:
    """Measures a model on held-out examples; one for all tasks, from three functions of the task.

    load_batches: returns the held-out batches.
    compute_loss: from the model and a batch to the loss summed over its targets, the number of targets, and the
        predictions that `score` needs.
    score: from the model and the predictions of all batches to the task's metrics and samples.
    """

    load_batches: Callable[[], Iterable[Batch]]
    compute_loss: Callable[[Any, Batch], tuple[float, int, Any]]
    score: Callable[[Any, list[Any]], ValidationResult]

    @torch.no_grad()
    def __call__(self, model: Any) -> ValidationResult:
        """Return the mean loss, under "loss", the metrics and the samples."""
        device = next(model.parameters()).device
        total, count, predictions = 0.0, 0, []
        for batch in self.load_batches():
            loss, targets, predicted = self.compute_loss(model, batch.to(device))
            total += loss
            count += targets
            predictions.append(predicted)
        found = self.score(model, predictions)
        return ValidationResult({"loss": total / count, **found.metrics}, found.samples)


def check_metric(validation: ValidationConfig, modes: Mapping[str, str]) -> None:
    """Check, before training, the metric that a recipe selects weights by.

    modes: "min" or "max" for each metric of the task. Raises ConfigError for a metric that the task does not have, or
    that is to be optimized in the wrong direction.
    """
    if validation.metric not in modes:
        raise ConfigError(
            [f"training.validation.metric: given {validation.metric!r}, expected one of {', '.join(modes)}"]
        )
    mode = modes[validation.metric]
    if validation.mode != mode:
        raise ConfigError(
            [
                f"training.validation.mode: given {validation.mode!r}, but {validation.metric} needs mode {mode}; "
                f"set it to {mode}"
            ]
        )
