"""What a training run is told: one small tree of frozen choices, readable without torch.

A run *ends* at the first of `max_steps`, `max_epochs` and `max_minutes`; at least one is given. Its *progress* runs
from 0 to 1 towards that end, and every fraction in a schedule is a fraction of it. So a run of three minutes decays its
learning rate to zero on any machine, and a run of 10,000 steps does the same at step 10,000.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qkv.errors import ConfigError


@dataclass(frozen=True)
class MuonConfig:
    """Momentum made orthogonal before each step (Jordan et al. 2024), at a peak `learning_rate` of its own.

    A matrix is moved by learning_rate * sqrt(max(1, rows / columns)) times the orthogonal one nearest to its momentum,
    by `iterations` of Newton and Schulz. The kernel of a convolution is a matrix with a row for each channel it makes.
    """

    learning_rate: float = 0.02
    momentum: float = 0.95
    weight_decay: float = 0.0
    ns_steps: int = 5

    def __post_init__(self) -> None:
        _check(
            self,
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("ns_steps", self.ns_steps >= 1, "at least 1"),
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019) at a peak `learning_rate`.

    `weight_decay` spares norms, biases and embeddings. `max_grad_norm` is the largest allowed L2 norm of the whole
    gradient; None leaves gradients as they are. `muon` moves the matrices of the blocks, and the
    kernels of convolutions over images, in place of Adam, which keeps all else.
    """

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    muon: MuonConfig | None = None

    def __post_init__(self) -> None:
        _check(
            self,
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("beta1", 0 <= self.beta1 < 1, "at least 0 and below 1"),
            ("beta2", 0 <= self.beta2 < 1, "at least 0 and below 1"),
            ("epsilon", self.epsilon > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("max_grad_norm", self.max_grad_norm is None or self.max_grad_norm > 0, "above 0, or null for no clipping"),
        )


@dataclass(frozen=True)
class InverseSquareRoot:
    """Linear warmup for `warmup` steps, then as 1 / sqrt(step); the peak is the optimizer's learning rate.

    With `learning_rate = vaswani_peak(d_model, warmup)` this is Vaswani et al. 2017, eq. 3.
    """

    warmup_steps: int = 4000

    def __post_init__(self) -> None:
        _check(self, ("warmup_steps", self.warmup_steps >= 1, "at least 1 step"))


@dataclass(frozen=True)
class Cosine:
    """Linear warmup over the fraction `warmup` of the run, then half a cosine down to `final` times the peak."""

    warmup_ratio: float = 0.05
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check(
            self,
            ("warmup_ratio", 0 <= self.warmup_ratio < 1, "a fraction of the run, at least 0 and below 1"),
            ("min_lr_ratio", 0 <= self.min_lr_ratio <= 1, "a fraction of the learning rate, 0 to 1"),
        )


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warmup over the fraction `warmup` of the run, the peak, then linear to 0 over the last `decay`."""

    warmup_ratio: float = 0.05
    decay_ratio: float = 0.2

    def __post_init__(self) -> None:
        _check(
            self,
            ("warmup_ratio", 0 <= self.warmup_ratio < 1, "a fraction of the run, at least 0 and below 1"),
            (
                "decay_ratio",
                0 <= self.decay_ratio <= 1 - self.warmup_ratio,
                "a fraction of the run, and warmup_ratio + decay_ratio at most 1",
            ),
        )


Schedule = InverseSquareRoot | Cosine | WarmupStableDecay


@dataclass(frozen=True)
class ValidationConfig:
    """Validate after every `every` steps and at the end, and judge by `metric`, of which the `better` wins.

    With `patience`, the run stops after so many validations in a row without a new best.
    """

    every: int = 1000
    metric: str = "loss"
    mode: Literal["min", "max"] = "min"
    patience: int | None = None

    def __post_init__(self) -> None:
        _check(
            self,
            ("every", self.every >= 1, "at least 1 step"),
            ("patience", self.patience is None or self.patience >= 1, "at least 1 validation, or null"),
        )


@dataclass(frozen=True)
class CheckpointingConfig:
    """Save after every `every` steps, after each validation and at the end; log every `log_every` steps.

    `keep_last` and `keep_best` count the saved weights that stay on disk beside the one checkpoint to resume from.
    `final` names the weights the run ends with: those of the last step, the best validated ones, or the mean of the
    kept last or best ones (Vaswani et al. 2017, section 6.1, average the last 5).
    """

    every: int = 1000
    log_every: int = 50
    keep_last: int = 1
    keep_best: int = 1
    final_weights: Literal["last", "best", "average_last", "average_best"] = "last"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        _check(
            self,
            ("every", self.every >= 1, "at least 1 step"),
            ("log_every", self.log_every >= 1, "at least 1 step"),
            (
                "keep_last",
                self.keep_last >= (2 if self.final_weights == "average_last" else 0),
                _keep_requirement(self.final_weights),
            ),
            (
                "keep_best",
                self.keep_best >= _required_keep_best(self.final_weights),
                _keep_requirement(self.final_weights),
            ),
        )


@dataclass(frozen=True)
class TrainingConfig:
    """A training run: when it ends, how a step is made, what is judged and what is kept.

    `gradient_accumulation` batches make one step, as if they were one. `workers` share each batch on a CPU, a core
    each (see `qkv.training.workers`). `precision` "auto" is bfloat16 where the processor
    multiplies it natively, else float32. `ema_decay` is the decay of a moving average of the parameters, which then is
    what is validated, kept and returned. `seed` fixes dropout (the caller seeds the model and the batches).
    """

    max_steps: int | None = None
    max_epochs: float | None = None
    max_minutes: float | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: Schedule = field(default_factory=Cosine)
    label_smoothing: float = 0.1
    dropout: float = 0.1
    attention_dropout: float = 0.0
    gradient_accumulation: int = 1
    workers: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    ema_decay: float | None = None
    seed: int = 1
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)

    def __post_init__(self) -> None:
        ends = (self.max_steps, self.max_epochs, self.max_minutes)
        _check(
            self,
            (
                "max_steps",
                any(end is not None for end in ends),
                "a number here, in max_epochs or in max_minutes: a run must end",
            ),
            ("max_steps", self.max_steps is None or self.max_steps >= 1, "at least 1"),
            ("max_epochs", self.max_epochs is None or self.max_epochs > 0, "above 0"),
            ("max_minutes", self.max_minutes is None or self.max_minutes > 0, "above 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1"),
            ("dropout", 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("attention_dropout", 0 <= self.attention_dropout < 1, "at least 0 and below 1"),
            ("gradient_accumulation", self.gradient_accumulation >= 1, "at least 1"),
            ("workers", self.workers >= 1, "at least 1"),
            ("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1, or null for none"),
        )


def noam_peak_lr(d_model: int, warmup_steps: int) -> float:
    """Return the peak learning rate of Vaswani et al. 2017, eq. 3: 1 / sqrt(d_model * warmup), reached at `warmup`."""
    return float((d_model * warmup_steps) ** -0.5)


def _required_keep_best(final: str) -> int:
    return {"best": 1, "average_best": 2}.get(final, 0)


def _keep_requirement(final: str) -> str:
    return f"enough kept weights for final_weights: {final} (1 for best, 2 or more for an average)"


def _check(node: object, *rules: tuple[str, bool, str]) -> None:
    name = type(node).__name__
    problems = [f"{name}.{field}={getattr(node, field)!r}: expected {rule}" for field, kept, rule in rules if not kept]
    if problems:
        raise ConfigError(problems)
