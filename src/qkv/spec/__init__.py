"""What a model is: a tree of small frozen dataclasses that has the shape of the module tree.

A spec contains everything that determines the parameters and the mathematics, and nothing about training. It is stored
as JSON with the weights and rebuilds the model without any lookup by name. This package needs no torch.

    Transformer                       Recurrent
      encoder: Stack | None             source, target: Tokens
      decoder: Stack | None             attention: None | "additive" | "dot" | "general"
        input: Tokens | Patches | ...   head: Vocabulary
        positions: Learned | Sinusoidal | Convolutional | None
        blocks: (Block, ...)
          self_attention, cross_attention: Attention (position: Rotary | RelativeBias | Alibi | None)
          self_attention may be an SSRU
          feed_forward: FeedForward | Experts
          norm: Norm, norm_at: "pre" | "post" | "both" | "result"
      head: Vocabulary | PointerGenerator | Labels | Classes | Vector | Actions | States

    DualEncoder
      source, target: Transformer       two encoders, whose vectors are compared
"""

from __future__ import annotations

from qkv.errors import SpecError
from qkv.spec.blocks import (
    SSRU,
    AcrossHeads,
    Activation,
    Alibi,
    Attention,
    Block,
    Experts,
    FeedForward,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Norm,
    Position,
    RelativeBias,
    Rotary,
    Scaling,
    YarnScaling,
)
from qkv.spec.heads import (
    Actions,
    Classes,
    Dense,
    Head,
    Labels,
    PointerGenerator,
    Pool,
    States,
    Vector,
    Vocabulary,
)
from qkv.spec.inputs import (
    Convolution,
    Convolutional,
    Frames,
    Input,
    Learned,
    Patches,
    Segments,
    Sinusoidal,
    Tokens,
    Trajectory,
    Waveform,
)
from qkv.spec.models import (
    DualEncoder,
    Recurrent,
    Spec,
    Stack,
    Transformer,
)
from qkv.spec.serialization import (
    from_json,
    to_json,
)

__all__ = [
    "AcrossHeads",
    "Actions",
    "Activation",
    "Alibi",
    "Head",
    "Attention",
    "Block",
    "Llama3Scaling",
    "Classes",
    "Convolution",
    "Convolutional",
    "Dense",
    "Experts",
    "FeedForward",
    "Frames",
    "LinearScaling",
    "Labels",
    "Learned",
    "Norm",
    "Patches",
    "PointerGenerator",
    "Pool",
    "Position",
    "Input",
    "SSRU",
    "Recurrent",
    "RelativeBias",
    "Rotary",
    "Scaling",
    "Segments",
    "Sinusoidal",
    "Spec",
    "SpecError",
    "Stack",
    "States",
    "LongRopeScaling",
    "Tokens",
    "DualEncoder",
    "Trajectory",
    "Transformer",
    "Vector",
    "Vocabulary",
    "Waveform",
    "YarnScaling",
    "from_json",
    "to_json",
]
