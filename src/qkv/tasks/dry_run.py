"""Dry runs: the data, the size and the duration of a training, without running it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from qkv.tasks.registry import TRAINABLE_TASKS
from qkv.training import Trainer
from qkv.training.reporters import NullReporter

_STEPS = 4
_BYTES_PER_PARAMETER = 16  # in float32: the parameter, its gradient and the two moments of Adam


def describe_training(recipe: Any) -> str:
    """Return the notes on the data, the number of parameters, the memory and an estimate of the time of a training.

    It reads the data, builds the model and makes a few steps in a temporary folder, which it removes.
    """
    task = TRAINABLE_TASKS[recipe.task]
    splits = task.load_data(recipe)
    with tempfile.TemporaryDirectory(prefix="qkv-dry-run-") as place:
        folder = Path(place)
        setup = task.build_training_setup(recipe, splits, folder / "run", folder / "tokens", False)
        training = recipe.training
        short = replace(training, max_steps=_STEPS, max_epochs=None, max_minutes=None, workers=1)
        trainer = Trainer(
            setup.model.module,
            short,
            setup.sampler,
            setup.collate,
            folder / "run",
            reporter=NullReporter(),
            compute_loss=setup.compute_loss,
        )
        seconds = trainer.train().seconds / _STEPS
    count = sum(parameter.numel() for parameter in setup.model.module.parameters())
    lines = [*splits.notes, *setup.notes]
    lines.append(f"{count:,} parameters, about {count * _BYTES_PER_PARAMETER / 1e6:,.0f} MB with their optimizer")
    lines.append(f"about {seconds:.2f} s a step (the mean of the first {_STEPS}, one process)")
    if training.max_minutes is not None:
        lines.append(
            f"stops after {training.max_minutes:g} minutes, about {training.max_minutes * 60 / seconds:,.0f} steps"
        )
    if training.max_steps is not None:
        lines.append(
            f"stops after {training.max_steps:,} steps, about {training.max_steps * seconds / 60:,.1f} minutes"
        )
    if training.max_epochs is not None:
        lines.append(f"stops after {training.max_epochs:g} passes over the data")
    return "\n".join(line for line in lines if line)
