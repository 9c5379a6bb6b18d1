"""The options of a training run, as frozen dataclasses that need no torch.

A run ends at the first of `max_steps`, `max_epochs` and `max_minutes`, of which at least one is given. Its progress
goes from 0 at the start to 1 at that end, and the fractions of a schedule are fractions of this progress. A run of
three minutes therefore decays its learning rate to zero on any machine, and so does a run of 10,000 steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qkv.errors import ConfigError


@dataclass(frozen=True)
class MuonConfig:
    """Muon (Jordan et al. 2024): momentum that is made orthogonal before each step, with its own peak learning rate.

    A matrix moves by learning_rate * sqrt(max(1, rows / columns)) times the orthogonal matrix nearest to its momentum.
    The kernel of a convolution is a matrix with a row for each output channel.

    learning_rate: the peak learning rate.
    momentum: the decay of the momentum.
    weight_decay: the decoupled weight decay.
    ns_steps: the number of Newton-Schulz iterations.
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
    """Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019).

    kind: the optimizer.
    learning_rate: the peak learning rate.
    beta1: the decay of the mean of the gradients.
    beta2: the decay of the mean of their squares.
    epsilon: the constant in the denominator.
    weight_decay: applies to all parameters except norms, biases and embeddings.
    max_grad_norm: the largest L2 norm of the whole gradient; null does not clip it.
    muon: optimizes the matrices of the blocks and the kernels of image convolutions, in place of Adam.
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
    """Linear warmup, then 1 / sqrt(step).

    With `learning_rate = noam_peak_lr(d_model, warmup_steps)` this is Vaswani et al. 2017, eq. 3.

    warmup_steps: the number of steps until the peak learning rate.
    """

    warmup_steps: int = 4000

    def __post_init__(self) -> None:
        _check(self, ("warmup_steps", self.warmup_steps >= 1, "at least 1 step"))


@dataclass(frozen=True)
class Cosine:
    """Linear warmup, then half a cosine.

    warmup_ratio: the fraction of the run until the peak learning rate.
    min_lr_ratio: the final learning rate as a fraction of the peak.
    """

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
    """Linear warmup, a constant learning rate, then a linear decay to 0.

    warmup_ratio: the fraction of the run until the peak learning rate.
    decay_ratio: the fraction of the run that the decay takes, at its end.
    """

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
    """When to validate, and which metric decides.

    every: validate after this number of steps, and at the end.
    metric: the metric that decides which weights are best.
    mode: whether a lower (min) or a higher (max) value is better.
    patience: stop after this number of validations in a row without a new best; null never stops early.
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
    """What to save and to log.

    every: save a checkpoint after this number of steps, after each validation, and at the end.
    log_every: log the metrics after this number of steps.
    keep_last: how many of the newest weights stay on disk, besides the checkpoint to resume from.
    keep_best: how many of the best validated weights stay on disk.
    final_weights: the weights that the run ends with: those of the last step, the best, or the average of the kept last
    or best ones (Vaswani et al. 2017, section 6.1, average the last 5).
    tensorboard: also write the metrics for TensorBoard.
    wandb: also send the metrics to Weights & Biases.
    """

    every: int = 1000
    log_every: int = 50
    keep_last: int = 1
    keep_best: int = 1
    final_weights: Literal["last", "best", "average_last", "average_best"] = "last"
    tensorboard: bool = False
    wandb: bool = False

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
    """A training run: when it ends, how a step is made, how it is validated and what is saved.

    max_steps: the run ends after this number of steps.
    max_epochs: the run ends after this number of passes over the training data.
    max_minutes: the run ends after this number of minutes.
    optimizer: the optimizer.
    schedule: the learning-rate schedule.
    label_smoothing: the share of the target distribution that is spread over all tokens.
    dropout: the dropout rate.
    attention_dropout: the dropout rate of the attention weights.
    gradient_accumulation: the number of batches in one step.
    workers: the number of processes that share each batch on a CPU, one core each.
    precision: of matrix products; auto is bfloat16 where the hardware supports it, else float32.
    ema_decay: the decay of a moving average of the parameters, which is then what is validated, saved and returned.
    seed: the seed of all random numbers.
    validation: when to validate, and which metric decides.
    checkpointing: what to save and to log.
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
    """Return the peak learning rate of Vaswani et al. 2017, eq. 3: 1 / sqrt(d_model * warmup_steps)."""
    return float((d_model * warmup_steps) ** -0.5)


def _required_keep_best(final: str) -> int:
    return {"best": 1, "average_best": 2}.get(final, 0)


def _keep_requirement(final: str) -> str:
    return f"enough weights to keep for final_weights: {final} (1 for best, 2 or more for an average)"


def _check(node: object, *rules: tuple[str, bool, str]) -> None:
    name = type(node).__name__
    problems = [f"{name}.{field}={getattr(node, field)!r}: expected {rule}" for field, kept, rule in rules if not kept]
    if problems:
        raise ConfigError(problems)
