"""The loss of one optimizer step: label-smoothed cross entropy over every target token of the step.

The sum over tokens is divided once, by the number of target tokens in the whole step: over all accumulated batches
and all ranks. So one token weighs the same in whichever batch it lies, and accumulating k batches equals one big one.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100
"""The label of a place that is no target, e.g. padding."""


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy in nats, summed over the labels that are not IGNORE, as a float32 scalar.

    logits (..., vocab), labels (...) int64. With smoothing s the target distribution is 1 - s on the label plus
    s / vocab on every token (Szegedy et al. 2016, section 7).
    """
    flat = logits.flatten(0, -2).float()
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)


def step_tokens(tokens: int, device: torch.device) -> float:
    """Return what to divide a step's summed loss by: the target tokens of all ranks, over the number of ranks.

    Data-parallel training averages gradients over ranks; dividing by tokens per rank turns that mean into the sum
    over all tokens divided by all tokens.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return float(max(tokens, 1))
    count = torch.tensor(float(tokens), device=device, dtype=torch.float64)
    torch.distributed.all_reduce(count)
    return max(float(count.item()), 1.0) / torch.distributed.get_world_size()
