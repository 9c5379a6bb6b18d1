"""Adam and AdamW in their fused form, learning-rate schedules as pure functions, and the moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qkv.training.options import Cosine, InverseSquareRoot, Optimizer, Schedule, WarmupStableDecay


def factor(schedule: Schedule, step: int, progress: float) -> float:
    """Return what the peak learning rate is multiplied by at `step` (from 1), `progress` (0 to 1) into the run.

    InverseSquareRoot reads the step alone; the others read the progress alone.
    """
    match schedule:
        case InverseSquareRoot(warmup=steps):
            return min(step / steps, math.sqrt(steps / step))
        case Cosine(warmup=warmup, final=final):
            if progress < warmup:
                return progress / warmup
            done = (min(progress, 1.0) - warmup) / (1.0 - warmup)
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))
        case WarmupStableDecay(warmup=warmup, decay=decay):
            if progress < warmup:
                return progress / warmup
            left = 1.0 - min(progress, 1.0)
            return min(1.0, left / decay) if decay else 1.0


def build(model: nn.Module, options: Optimizer) -> torch.optim.Optimizer:
    """Return the fused optimizer; weight decay acts on matrices and not on norms, biases and embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[Tensor] = []
    spared: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if matrix else spared).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, options.weight_decay), (spared, 0.0))
        if parameters
    ]
    make = torch.optim.AdamW if options.kind == "adamw" else torch.optim.Adam
    return make(groups, lr=options.learning_rate, betas=(options.beta1, options.beta2), eps=options.epsilon, fused=True)


class MovingAverage:
    """An exponential moving average of parameters: average <- d * average + (1 - d) * parameter after each step.

    d = min(decay, (1 + step) / (10 + step)), so that a short run is not held back by where it began.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.parameters, 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the parameters; a second call undoes it, bit for bit."""
        for average, parameter in zip(self.average, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
