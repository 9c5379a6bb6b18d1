"""Models, built from specs."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from qkv import spec
from qkv.models.protocol import SequenceModel, State
from qkv.models.transformer import Transformer

__all__ = ["SequenceModel", "State", "build", "build_on_meta"]


def build(config: spec.Spec) -> SequenceModel:
    """Build the model that a spec describes, with parameters drawn from torch's generator."""
    if isinstance(config, spec.Transformer):
        return Transformer(config)
    if isinstance(config, spec.DualEncoder):
        from qkv.models.dual_encoder import DualEncoder

        return DualEncoder(config)
    from qkv.models.recurrent import Recurrent

    return Recurrent(config)


def build_on_meta(config: spec.Spec) -> SequenceModel:
    """Build the model that a spec describes on the meta device: its parameters have shapes but no memory."""
    with torch.device("meta"), _SkipInit():
        return build(config)


class _SkipInit(TorchFunctionMode):
    """A mode that skips initialisation: on the meta device, torch would load its compiler for it,
    which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in _INIT_FUNCTIONS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


_INIT_FUNCTIONS = ("normal_", "uniform_", "kaiming_uniform_")  # methods of tensors, and functions of torch.nn.init
