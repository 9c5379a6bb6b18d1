"""What a model reads, turned into one vector for each position and told where it stands."""

from __future__ import annotations

from qkv import spec
from qkv.inputs.frames import FrameReader
from qkv.inputs.patches import PatchReader
from qkv.inputs.reader import Reader
from qkv.inputs.tokens import TokenReader
from qkv.inputs.trajectory import TrajectoryReader
from qkv.inputs.waveform import WaveformReader

__all__ = ["FrameReader", "PatchReader", "Reader", "TokenReader", "TrajectoryReader", "WaveformReader", "reader"]


def reader(choice: spec.Stack) -> Reader:
    """Build what reads the input of a stack."""
    match choice.reads:
        case spec.Tokens():
            return TokenReader(choice, choice.reads)
        case spec.Patches():
            return PatchReader(choice, choice.reads)
        case spec.Frames():
            return FrameReader(choice, choice.reads)
        case spec.Waveform():
            return WaveformReader(choice, choice.reads)
        case spec.Trajectory():
            return TrajectoryReader(choice, choice.reads)
