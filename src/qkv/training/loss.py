"""The loss of one optimizer step: label-smoothed cross entropy over every target token of the step.

The sum over tokens is divided once, by the number of target tokens in the whole step: over all accumulated batches
and all ranks. So one token weighs the same in whichever batch it lies, and accumulating k batches equals one big one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
"""The label of a position without a target, such as padding."""


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy in nats, summed over the labels that are not IGNORE, as a float32 scalar.

    logits (..., vocab), labels (...) int64, or (..., vocab) float: the share of each answer. With smoothing s the
    target distribution is 1 - s on the label plus s / vocab on every token (Szegedy et al. 2016, section 7). Equal to
    torch's own in value and gradient, but the gradient is made in the memory of the log-probabilities: over a large
    vocabulary torch's takes twice as long.
    """
    return smoothed_and_plain_cross_entropy(logits, labels, label_smoothing)[0]


def smoothed_and_plain_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Return `cross_entropy` with smoothing, and without (which has no gradient): what it costs is not measurable."""
    if labels.is_floating_point():
        log_probabilities = logits.float().log_softmax(dim=-1)
        target = torch.lerp(labels, torch.full_like(labels, 1 / labels.shape[-1]), label_smoothing)
        return -(target * log_probabilities).sum(), -(labels * log_probabilities.detach()).sum()
    inputs = logits.flatten(0, -2).float(), labels.flatten(), label_smoothing
    both: tuple[Tensor, Tensor] = _CrossEntropy.apply(*inputs)  # type: ignore[no-untyped-call]
    return both


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        log_probabilities = logits.log_softmax(dim=-1)
        ignored = labels == IGNORE_INDEX
        labels = labels.masked_fill(ignored, 0)
        chosen = log_probabilities.gather(1, labels[:, None])[:, 0]
        losses = -(1 - smoothing) * chosen
        if smoothing:
            losses = losses - smoothing * log_probabilities.mean(dim=-1)
        ctx.log_probabilities, ctx.labels, ctx.ignored, ctx.smoothing = log_probabilities, labels, ignored, smoothing
        loss = losses.masked_fill(ignored, 0.0).sum()
        plain = -chosen.masked_fill(ignored, 0.0).sum() if smoothing else loss.clone()
        ctx.mark_non_differentiable(plain)
        return loss, plain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        gradient: Tensor = ctx.log_probabilities.exp_()  # softmax(logits) minus the target distribution, in place
        ctx.log_probabilities = None
        if ctx.smoothing:
            gradient -= ctx.smoothing / gradient.shape[-1]
        gradient[torch.arange(len(gradient), device=gradient.device), ctx.labels] -= 1 - ctx.smoothing
        gradient *= torch.where(ctx.ignored, 0.0, upstream)[:, None]
        return gradient, None, None


def loss_normalizer(target_tokens: int, device: torch.device) -> float:
    """Return what to divide a step's summed loss by: the target tokens of all ranks, over the number of ranks.

    Data-parallel training averages gradients over ranks; dividing by tokens per rank turns that mean into the sum
    over all tokens divided by all tokens.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return float(max(target_tokens, 1))
    count = torch.tensor(float(target_tokens), device=device, dtype=torch.float64)
    torch.distributed.all_reduce(count)
    return max(float(count.item()), 1.0) / torch.distributed.get_world_size()
