"""Linear layers in a quarter of the memory: one byte per element, and one scale per row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv.pretrained.weights.cursor import release_memory


class Int8Linear(nn.Module):
    """A linear layer whose matrix is stored as integers from -127 to 127, with a scale for each output.

    Dettmers et al. 2022, section 2.1 (absolute maximum, row by row), without their treatment of outliers. It computes
    and
    exposes the matrix in float32, and cannot be trained.
    """

    int8_weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        matrix = linear.weight.detach().float()
        scale = matrix.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("int8_weight", (matrix / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        release_memory(linear.weight)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def weight(self) -> Tensor:
        """The matrix (out, in) that the integers represent."""
        return self.int8_weight.to(self.scale.dtype) * self.scale[:, None]

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the layer: (..., in) -> (..., out)."""
        product = functional.linear(hidden, self.int8_weight.to(hidden.dtype)) * self.scale.to(hidden.dtype)
        return product if self.bias is None else product + self.bias


def quantize(model: nn.Module) -> None:
    """Replace every linear layer of a model by an `Int8Linear`, one after the other; embeddings and norms stay."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
