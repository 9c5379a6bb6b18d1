"""Adam and AdamW in their fused form, Muon for matrices, learning-rate schedules, and the moving average."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qkv.errors import ConfigError
from qkv.layers import Block
from qkv.training import config as options
from qkv.training.config import Cosine, InverseSquareRoot, OptimizerConfig, Schedule, WarmupStableDecay


def lr_multiplier(schedule: Schedule, step: int, progress: float) -> float:
    """Return the factor of the peak learning rate at `step` (from 1) and `progress` (0 to 1).

    InverseSquareRoot depends only on the step; the others depend only on the progress.
    """
    match schedule:
        case InverseSquareRoot(warmup_steps=steps):
            return min(step / steps, math.sqrt(steps / step))
        case Cosine(warmup_ratio=warmup, min_lr_ratio=final):
            if progress < warmup:
                return progress / warmup
            done = (min(progress, 1.0) - warmup) / (1.0 - warmup)
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))
        case WarmupStableDecay(warmup_ratio=warmup, decay_ratio=decay):
            if progress < warmup:
                return progress / warmup
            left = 1.0 - min(progress, 1.0)
            return min(1.0, left / decay) if decay else 1.0


class Optimizers:
    """The optimizers of a model: fused Adam or AdamW and, if the config says so, Muon for the hidden matrices.

    Weight decay applies to matrices, not to norms, biases and embeddings. `optimizers` are torch's; each of their
    groups keeps its peak learning rate as "initial_lr".
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        hidden = {id(matrix) for matrix in _hidden_matrices(model)} if config.muon is not None else set()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if id(parameter) in hidden]
        rest = [parameter for parameter in trained if id(parameter) not in hidden]
        decayed = [parameter for parameter in rest if parameter.ndim >= 2 and id(parameter) not in embeddings]
        spared = [parameter for parameter in rest if parameter.ndim < 2 or id(parameter) in embeddings]
        groups: list[dict[str, Any]] = [
            {"params": parameters, "weight_decay": decay, "initial_lr": config.learning_rate}
            for parameters, decay in ((decayed, config.weight_decay), (spared, 0.0))
            if parameters
        ]
        make = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
        betas = config.beta1, config.beta2
        self.optimizers: list[torch.optim.Optimizer] = [
            make(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)
        ]
        if config.muon is not None:
            if not matrices:
                raise ConfigError(["optimizer.muon: given, but this model has no blocks with matrices; remove it"])
            self.optimizers.append(Muon(matrices, config.muon))
        self._optimizer_of = {
            id(p): one for one in self.optimizers for group in one.param_groups for p in group["params"]
        }

    def step(self, multiplier: float) -> None:
        """Update the parameters at `multiplier` times the peak learning rates, then clear the gradients."""
        for one in self.optimizers:
            for group in one.param_groups:
                group["lr"] = multiplier * group["initial_lr"]
            one.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for one in self.optimizers:
            one.zero_grad(set_to_none=True)

    def get_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the optimizer state of a parameter by name; it is empty before the first step."""
        kept: dict[str, Tensor] = self._optimizer_of[id(parameter)].state[parameter]
        return kept

    def get_state_names(self, parameter: Tensor) -> tuple[str, ...]:
        """Return the names that the optimizer state of a parameter has after its first step."""
        is_muon = isinstance(self._optimizer_of[id(parameter)], Muon)
        return ("momentum",) if is_muon else ("exp_avg", "exp_avg_sq", "step")

    def set_state(self, parameter: Tensor, state: dict[str, Tensor]) -> None:
        """Restore the optimizer state of a parameter, as `get_state` returned it."""
        self._optimizer_of[id(parameter)].state[parameter] = state


def _hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Return the weights of the linear layers of all blocks and of the convolutions over images."""
    within = (part for block in model.modules() if isinstance(block, Block) for part in block.modules())
    linear = [part.weight for part in within if isinstance(part, nn.Linear)]
    return linear + [part.weight for part in model.modules() if isinstance(part, nn.Conv2d)]


class Muon(torch.optim.Optimizer):
    """Updates each matrix by the orthogonal matrix nearest to its momentum (Jordan et al. 2024).

    The kernel of a convolution (output channels, input channels, height, width) is a matrix with a row for each output
    channel. `torch.optim.Muon` refuses such kernels, iterates in bfloat16, and takes one matrix at a time; here
    matrices of equal shape are one batch in float32.
    """

    def __init__(self, matrices: Sequence[Tensor], config: options.MuonConfig) -> None:
        super().__init__([{"params": list(matrices), "initial_lr": config.learning_rate}], {})
        self._config = config

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        options = self._config
        [group] = self.param_groups
        alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for matrix in group["params"]:
            if matrix.grad is not None:
                alike[matrix.shape].append(matrix)
        for shape, matrices in alike.items():
            gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
            for matrix in matrices:
                self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            momenta = [self.state[matrix]["momentum"] for matrix in matrices]
            torch._foreach_lerp_(momenta, gradients, 1 - options.momentum)
            ahead = torch._foreach_lerp(gradients, momenta, options.momentum)  # Nesterov momentum
            moves = orthogonalize(torch.stack(ahead).flatten(2), options.ns_steps).view(-1, *shape)
            rate = group["lr"]
            if options.weight_decay:
                torch._foreach_mul_(matrices, 1 - rate * options.weight_decay)
            torch._foreach_add_(
                matrices, list(moves.unbind()), alpha=-rate * math.sqrt(max(1, shape[0] / shape[1:].numel()))
            )


_NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of a x + b x^3 + c x^5, which maps 0.003..1 into 0.68..1.14 in five iterations (Jordan et al. 2024)."""


def orthogonalize(matrices: Tensor, ns_steps: int) -> Tensor:
    """Return approximately the nearest orthogonal matrix to each of (count, rows, columns): singular values near 1.

    This is the Newton-Schulz iteration of Jordan et al. 2024. Tall matrices are transposed, because the products of
    rows by rows cost least when there are few rows.
    """
    a, b, c = _NEWTON_SCHULZ_COEFFICIENTS
    turned = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    turned = turned / (torch.linalg.matrix_norm(turned, keepdim=True) + 1e-7)
    for _ in range(ns_steps):
        product = turned @ turned.mT
        turned = torch.baddbmm(turned, torch.baddbmm(product, product, product, beta=b, alpha=c), turned, beta=a)
    return turned.mT if matrices.shape[-2] > matrices.shape[-1] else turned


class ExponentialMovingAverage:
    """An exponential moving average of parameters: average <- d * average + (1 - d) * parameter after each step.

    d = min(decay, (1 + step) / (10 + step)), so that the initial parameters do not dominate a short run.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the parameters after `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, self.parameters, 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the average and the parameters; a second call restores them exactly."""
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
