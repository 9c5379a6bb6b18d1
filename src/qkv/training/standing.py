"""Where a run stands: the numbers a checkpoint keeps, and the files of weights that stay on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qkv.training.options import Training


@dataclass
class Standing:
    """Counts since the run began, over all its resumptions. `seconds` includes validating and saving.

    `stale` counts validations since the best one. `last` and `best` are steps whose weights are kept, the newest and
    the best first.
    """

    step: int = 0
    examples: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    stale: int = 0
    last: list[int] = field(default_factory=list)
    best: list[tuple[float, int]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Standing:
        """Return what `to_json` wrote down."""
        best = [(float(metric), int(step)) for metric, step in values["best"]]
        return cls(**{**values, "best": best})

    def judge(self, metric: float, options: Training) -> bool:
        """Take in a validation's metric at this step (NaN is the worst); return whether it is the best so far."""
        sign = 1.0 if options.validation.better == "lower" else -1.0
        metric = sign * math.inf if math.isnan(metric) else metric
        ranked = sorted([*self.best, (metric, self.step)], key=lambda entry: (sign * entry[0], entry[1]))
        better = not self.best or sign * metric < sign * self.best[0][0]
        self.best = ranked[: max(options.saving.keep_best, 1)]
        self.stale = 0 if better else self.stale + 1
        return better

    def progress(self, options: Training, examples: int, *, ahead: float = 0.0) -> float:
        """Return how far the run is towards its end, 0 to 1, `ahead` steps from here; `examples` make an epoch."""
        step = self.step + ahead
        grown = step / self.step if self.step else 1.0
        fractions = [0.0]
        if options.steps is not None:
            fractions.append(step / options.steps)
        if options.epochs is not None:
            fractions.append(self.examples * grown / (options.epochs * examples))
        if options.minutes is not None:
            fractions.append(self.seconds * grown / (options.minutes * 60))
        return min(max(fractions), 1.0)


class Shelf:
    """The folder of kept weights: step-00001000.safetensors and so on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Return where the weights of `step` lie."""
        return self.folder / f"step-{step:08}.safetensors"

    def keep(self, steps: set[int]) -> None:
        """Remove the weights of all other steps."""
        wanted = {self.path(step) for step in steps}
        for path in self.folder.glob("step-*.safetensors"):
            if path not in wanted:
                with suppress(OSError):
                    path.unlink()
