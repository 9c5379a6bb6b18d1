"""Training: the options of a run (torch-free) and the `Trainer` that carries them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name in (
        "TrainResult",
        "Trainer",
        "ValidationResult",
        "check_run_folder",
    ):  # these need torch, which a command line's --help must not import
        from qkv.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
