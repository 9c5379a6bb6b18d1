"""What a model reads, turned into one vector for each position and told where it stands."""

from __future__ import annotations

from qkv import spec
from qkv.inputs.patches import PatchReader
from qkv.inputs.reader import Reader
from qkv.inputs.tokens import TokenReader

__all__ = ["PatchReader", "Reader", "TokenReader", "reader"]


def reader(choice: spec.Stack) -> Reader:
    """Build what reads the input of a stack."""
    if isinstance(choice.reads, spec.Patches):
        return PatchReader(choice, choice.reads)
    return TokenReader(choice, choice.reads)
