"""Training: the options of a run (torch-free) and the `Trainer` that carries them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qkv.training.options import (
    Cosine,
    InverseSquareRoot,
    Muon,
    Optimizer,
    Saving,
    Schedule,
    Training,
    Validation,
    WarmupStableDecay,
    vaswani_peak,
)

if TYPE_CHECKING:
    from qkv.training.trainer import Result, Trainer, Validated, claim

__all__ = [
    "Cosine",
    "InverseSquareRoot",
    "Muon",
    "Optimizer",
    "Result",
    "Saving",
    "Schedule",
    "Trainer",
    "Training",
    "Validated",
    "Validation",
    "WarmupStableDecay",
    "claim",
    "vaswani_peak",
]


def __getattr__(name: str) -> Any:
    if name in (
        "Result",
        "Trainer",
        "Validated",
        "claim",
    ):  # these need torch, which a command line's --help must not import
        from qkv.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
