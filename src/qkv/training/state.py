"""Where a run stands: the numbers a checkpoint keeps, and the files of weights that stay on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from qkv.errors import CheckpointError
from qkv.training import restore
from qkv.training.config import TrainingConfig


@dataclass
class TrainState:
    """Counts since the run began, over all its resumptions. `seconds` includes validating and saving.

    validations_since_best: how many validations there were since the best one.
    last_checkpoints, best_checkpoints: the steps whose weights are kept, the newest and the best first.
    """

    step: int = 0
    examples: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    validations_since_best: int = 0
    last_checkpoints: list[int] = field(default_factory=list)
    best_checkpoints: list[tuple[float, int]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path) -> TrainState:
        """Return what `to_json` wrote down in the file `path`. Raises CheckpointError for what it never writes."""
        given = restore.check_names("train_state", values, {one.name for one in fields(cls)}, path)
        counts = ("step", "examples", "target_tokens", "validations_since_best")
        last, best, metrics = given["last_checkpoints"], given["best_checkpoints"], given["metrics"]
        pairs = isinstance(best, list) and all(isinstance(entry, list) and len(entry) == 2 for entry in best)
        if not isinstance(last, list) or not pairs or not isinstance(metrics, dict):
            raise CheckpointError(
                f"{path}: its lists of kept weights or its metrics have another form than a training run writes. Copy "
                "the file again, or begin a new run."
            )
        return cls(
            **{name: restore.check_count(name, given[name], path) for name in counts},
            seconds=restore.check_duration("seconds", given["seconds"], path),
            last_checkpoints=[restore.check_count("last_checkpoints", step, path) for step in last],
            best_checkpoints=[
                (
                    restore.check_number("best_checkpoints", metric, path),
                    restore.check_count("best_checkpoints", step, path),
                )
                for metric, step in best
            ],
            metrics={name: restore.check_number(f"metrics.{name}", value, path) for name, value in metrics.items()},
        )

    def update_best(self, metric: float, config: TrainingConfig) -> bool:
        """Take in a validation's metric at this step (NaN is the worst); return whether it is the best so far."""
        sign = 1.0 if config.validation.mode == "min" else -1.0
        metric = sign * math.inf if math.isnan(metric) else metric
        ranked = sorted([*self.best_checkpoints, (metric, self.step)], key=lambda entry: (sign * entry[0], entry[1]))
        better = not self.best_checkpoints or sign * metric < sign * self.best_checkpoints[0][0]
        self.best_checkpoints = ranked[: max(config.checkpointing.keep_best, 1)]
        self.validations_since_best = 0 if better else self.validations_since_best + 1
        return better

    def compute_progress(self, config: TrainingConfig, examples_per_epoch: int, *, steps_ahead: float = 0.0) -> float:
        """Return how far the run is towards its end, from 0 to 1, `steps_ahead` steps from here."""
        step = self.step + steps_ahead
        grown = step / self.step if self.step else 1.0
        fractions = [0.0]
        if config.max_steps is not None:
            fractions.append(step / config.max_steps)
        if config.max_epochs is not None:
            fractions.append(self.examples * grown / (config.max_epochs * examples_per_epoch))
        if config.max_minutes is not None:
            fractions.append(self.seconds * grown / (config.max_minutes * 60))
        return min(max(fractions), 1.0)


class CheckpointManager:
    """The folder of kept weights: step-00001000.safetensors and so on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def weights_path(self, step: int) -> Path:
        """Return where the weights of `step` lie."""
        return self.folder / f"step-{step:08}.safetensors"

    def prune(self, kept_steps: set[int]) -> None:
        """Remove the weights of all other steps."""
        kept_paths = {self.weights_path(step) for step in kept_steps}
        for path in self.folder.glob("step-*.safetensors"):
            if path not in kept_paths:
                with suppress(OSError):
                    path.unlink()
