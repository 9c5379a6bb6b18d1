"""What a training run is told: one small tree of frozen choices, readable without torch.

A run *ends* at the first of `steps`, `epochs` and `minutes`; at least one is given. Its *progress* runs from 0 to 1
towards that end, and every fraction in a schedule is a fraction of it. So a run of three minutes decays its
learning rate to zero on any machine, and a run of 10,000 steps does the same at step 10,000.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qkv.errors import ConfigError


@dataclass(frozen=True)
class Muon:
    """Momentum made orthogonal before each step (Jordan et al. 2024), at a peak `learning_rate` of its own.

    A matrix is moved by learning_rate * sqrt(max(1, rows / columns)) times the orthogonal one nearest to its momentum,
    by `iterations` of Newton and Schulz. The kernel of a convolution is a matrix with a row for each channel it makes.
    """

    learning_rate: float = 0.02
    momentum: float = 0.95
    weight_decay: float = 0.0
    iterations: int = 5

    def __post_init__(self) -> None:
        _check(
            self,
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("iterations", self.iterations >= 1, "at least 1"),
        )


@dataclass(frozen=True)
class Optimizer:
    """Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019) at a peak `learning_rate`.

    `weight_decay` spares norms, biases and embeddings. `clip` is the largest allowed L2 norm of the whole gradient;
    None leaves gradients as they are. `muon` moves the matrices of the blocks, and the
    kernels of convolutions over images, in place of Adam, which keeps all else.
    """

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.0
    clip: float | None = 1.0
    muon: Muon | None = None

    def __post_init__(self) -> None:
        _check(
            self,
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("beta1", 0 <= self.beta1 < 1, "at least 0 and below 1"),
            ("beta2", 0 <= self.beta2 < 1, "at least 0 and below 1"),
            ("epsilon", self.epsilon > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("clip", self.clip is None or self.clip > 0, "above 0, or null for no clipping"),
        )


@dataclass(frozen=True)
class InverseSquareRoot:
    """Linear warmup for `warmup` steps, then as 1 / sqrt(step); the peak is the optimizer's learning rate.

    With `learning_rate = vaswani_peak(d_model, warmup)` this is Vaswani et al. 2017, eq. 3.
    """

    warmup: int = 4000

    def __post_init__(self) -> None:
        _check(self, ("warmup", self.warmup >= 1, "at least 1 step"))


@dataclass(frozen=True)
class Cosine:
    """Linear warmup over the fraction `warmup` of the run, then half a cosine down to `final` times the peak."""

    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(
            self,
            ("warmup", 0 <= self.warmup < 1, "a fraction of the run, at least 0 and below 1"),
            ("final", 0 <= self.final <= 1, "a fraction of the learning rate, 0 to 1"),
        )


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warmup over the fraction `warmup` of the run, the peak, then linear to 0 over the last `decay`."""

    warmup: float = 0.05
    decay: float = 0.2

    def __post_init__(self) -> None:
        _check(
            self,
            ("warmup", 0 <= self.warmup < 1, "a fraction of the run, at least 0 and below 1"),
            ("decay", 0 <= self.decay <= 1 - self.warmup, "a fraction of the run, and warmup + decay at most 1"),
        )


Schedule = InverseSquareRoot | Cosine | WarmupStableDecay


@dataclass(frozen=True)
class Validation:
    """Validate after every `every` steps and at the end, and judge by `metric`, of which the `better` wins.

    With `patience`, the run stops after so many validations in a row without a new best.
    """

    every: int = 1000
    metric: str = "loss"
    better: Literal["lower", "higher"] = "lower"
    patience: int | None = None

    def __post_init__(self) -> None:
        _check(
            self,
            ("every", self.every >= 1, "at least 1 step"),
            ("patience", self.patience is None or self.patience >= 1, "at least 1 validation, or null"),
        )


@dataclass(frozen=True)
class Saving:
    """Save after every `every` steps, after each validation and at the end; log every `log_every` steps.

    `keep_last` and `keep_best` count the saved weights that stay on disk beside the one checkpoint to resume from.
    `final` names the weights the run ends with: those of the last step, the best validated ones, or the mean of the
    kept last or best ones (Vaswani et al. 2017, section 6.1, average the last 5).
    """

    every: int = 1000
    log_every: int = 50
    keep_last: int = 1
    keep_best: int = 1
    final: Literal["last", "best", "average_last", "average_best"] = "last"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        _check(
            self,
            ("every", self.every >= 1, "at least 1 step"),
            ("log_every", self.log_every >= 1, "at least 1 step"),
            ("keep_last", self.keep_last >= (2 if self.final == "average_last" else 0), _enough(self.final)),
            ("keep_best", self.keep_best >= _best_needed(self.final), _enough(self.final)),
        )


@dataclass(frozen=True)
class Training:
    """A training run: when it ends, how a step is made, what is judged and what is kept.

    `accumulate` batches make one step, as if they were one. `processes` share each batch on a CPU, a core each (see
    `qkv.training.crew`). `precision` "auto" is bfloat16 where the processor
    multiplies it natively, else float32. `ema` is the decay of a moving average of the parameters, which then is
    what is validated, kept and returned. `seed` fixes dropout (the caller seeds the model and the batches).
    """

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Cosine)
    label_smoothing: float = 0.1
    dropout: float = 0.1
    attention_dropout: float = 0.0
    accumulate: int = 1
    processes: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    ema: float | None = None
    seed: int = 1
    validation: Validation = field(default_factory=Validation)
    saving: Saving = field(default_factory=Saving)

    def __post_init__(self) -> None:
        ends = (self.steps, self.epochs, self.minutes)
        _check(
            self,
            ("steps", any(end is not None for end in ends), "a number here, in epochs or in minutes: a run must end"),
            ("steps", self.steps is None or self.steps >= 1, "at least 1"),
            ("epochs", self.epochs is None or self.epochs > 0, "above 0"),
            ("minutes", self.minutes is None or self.minutes > 0, "above 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1"),
            ("dropout", 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("attention_dropout", 0 <= self.attention_dropout < 1, "at least 0 and below 1"),
            ("accumulate", self.accumulate >= 1, "at least 1"),
            ("processes", self.processes >= 1, "at least 1"),
            ("ema", self.ema is None or 0 < self.ema < 1, "between 0 and 1, or null for none"),
        )


def vaswani_peak(d_model: int, warmup: int) -> float:
    """Return the peak learning rate of Vaswani et al. 2017, eq. 3: 1 / sqrt(d_model * warmup), reached at `warmup`."""
    return float((d_model * warmup) ** -0.5)


def _best_needed(final: str) -> int:
    return {"best": 1, "average_best": 2}.get(final, 0)


def _enough(final: str) -> str:
    return f"enough kept weights for final: {final} (1 for best, 2 or more for an average)"


def _check(node: object, *rules: tuple[str, bool, str]) -> None:
    name = type(node).__name__
    problems = [f"{name}.{field}={getattr(node, field)!r}: expected {rule}" for field, kept, rule in rules if not kept]
    if problems:
        raise ConfigError(problems)
