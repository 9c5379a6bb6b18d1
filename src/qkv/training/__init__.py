"""Training: the options of a run (torch-free) and the `Trainer` that carries them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkv.lazy import export_lazily
from qkv.training.config import (
    CheckpointingConfig,
    Cosine,
    InverseSquareRoot,
    MuonConfig,
    OptimizerConfig,
    Schedule,
    TrainingConfig,
    ValidationConfig,
    WarmupStableDecay,
    noam_peak_lr,
)

if TYPE_CHECKING:
    from qkv.training.trainer import Trainer, TrainResult, ValidationResult, check_run_folder

__all__ = [
    "Cosine",
    "InverseSquareRoot",
    "MuonConfig",
    "OptimizerConfig",
    "TrainResult",
    "CheckpointingConfig",
    "Schedule",
    "Trainer",
    "TrainingConfig",
    "ValidationResult",
    "ValidationConfig",
    "WarmupStableDecay",
    "check_run_folder",
    "noam_peak_lr",
]


__getattr__, __dir__ = export_lazily(
    __name__, dict.fromkeys(("TrainResult", "Trainer", "ValidationResult", "check_run_folder"), "qkv.training.trainer")
)
