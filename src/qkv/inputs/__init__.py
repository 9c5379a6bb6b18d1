"""Input embeddings: they map what a model reads to one vector for each position."""

from __future__ import annotations

from qkv import spec
from qkv.inputs.base import InputEmbedding
from qkv.inputs.frames import FrameEmbedding
from qkv.inputs.patches import PatchEmbedding
from qkv.inputs.tokens import TokenEmbedding
from qkv.inputs.trajectory import TrajectoryEmbedding
from qkv.inputs.waveform import WaveformEmbedding

__all__ = [
    "FrameEmbedding",
    "PatchEmbedding",
    "InputEmbedding",
    "TokenEmbedding",
    "TrajectoryEmbedding",
    "WaveformEmbedding",
    "build_embedding",
]


def build_embedding(config: spec.Stack) -> InputEmbedding:
    """Build the input embedding of a stack."""
    match config.input:
        case spec.Tokens():
            return TokenEmbedding(config, config.input)
        case spec.Patches():
            return PatchEmbedding(config, config.input)
        case spec.Frames():
            return FrameEmbedding(config, config.input)
        case spec.Waveform():
            return WaveformEmbedding(config, config.input)
        case spec.Trajectory():
            return TrajectoryEmbedding(config, config.input)
