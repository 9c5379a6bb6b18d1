"""Finding where a NaN or an infinity came from, after a step has met one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qkv.errors import NonFiniteError


def locate_nonfinite(
    model: nn.Module, compute_loss: Callable[[Any], Tensor], batches: Sequence[Any], step: int, remedy: str
) -> NonFiniteError:
    """Return the error to raise: the layer and the batch in which the first non-finite number arose.

    `forward` computes the summed loss of one of `batches`; it is run again here with every module watched. The
    gradients of the failed step must still be there.
    """
    parameter = next((name for name, p in model.named_parameters() if not _is_finite(p)), None)
    if parameter is not None:
        return _make_error(f"the parameter {parameter} itself", batches, step, remedy)
    for batch in batches:
        place = _find_nonfinite_output(model, compute_loss, batch)
        if place is not None:
            return _make_error(f"the output of {place}", [batch], step, remedy)
    broken = [name for name, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    if broken:  # the backward pass comes from the end, so the last of them in the model's order was reached first
        others = f" and of {len(broken) - 1} parameters before it" if len(broken) > 1 else ""
        return _make_error(f"the gradient of {broken[-1]}{others}", batches, step, remedy)
    return _make_error("the norm of all gradients together, each of them finite", batches, step, remedy)


def _find_nonfinite_output(model: nn.Module, compute_loss: Callable[[Any], Tensor], batch: Any) -> str | None:
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and output.is_floating_point() and not _is_finite(output):
                found.append(f"{name} ({type(module).__name__})" if name else "the model (its logits)")

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            loss = compute_loss(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not found and not _is_finite(loss):
        found.append("the loss, from finite logits")
    return found[0] if found else None


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _make_error(place: str, batches: Sequence[Any], step: int, remedy: str) -> NonFiniteError:
    examples = [number for batch in batches for number in batch.index.tolist()]
    shown = ", ".join(map(str, examples[:12])) + (", ..." if len(examples) > 12 else "")
    return NonFiniteError(
        f"Step {step}: NaN or infinity, first seen in {place}, on the batch of {len(examples)} examples {shown}. "
        f"Expected finite numbers. {remedy}"
    )
