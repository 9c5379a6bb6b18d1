"""Where a run stands: the numbers a checkpoint keeps, and the files of weights that stay on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qkv.training.config import TrainingConfig


@dataclass
class TrainState:
    """Counts since the run began, over all its resumptions. `seconds` includes validating and saving.

    `stale` counts validations since the best one. `last` and `best` are steps whose weights are kept, the newest and
    the best first.
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
    def from_json(cls, values: Mapping[str, Any]) -> TrainState:
        """Return what `to_json` wrote down."""
        best = [(float(metric), int(step)) for metric, step in values["best_checkpoints"]]
        return cls(**{**values, "best_checkpoints": best})

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
        """Return how far the run is towards its end, 0 to 1, `ahead` steps from here; `examples` make an epoch."""
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
