"""The models: what a spec becomes."""

from __future__ import annotations

from qkv import spec
from qkv.models.protocol import SequenceModel, State
from qkv.models.transformer import Transformer

__all__ = ["SequenceModel", "State", "build"]


def build(choice: spec.Spec) -> SequenceModel:
    """Build the model a spec describes, its parameters drawn fresh from torch's generator."""
    if isinstance(choice, spec.Transformer):
        return Transformer(choice)
    if isinstance(choice, spec.Towers):
        from qkv.models.towers import Towers

        return Towers(choice)
    from qkv.models.recurrent import Recurrent

    return Recurrent(choice)
