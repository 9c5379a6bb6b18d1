"""What a model is: a tree of small frozen choices that has the shape of the module tree.

A spec says everything that shapes the parameters and the mathematics, and nothing about training. It is kept as
JSON beside the weights and rebuilds the model with no look-up of a name. This package needs no torch.

    Transformer                       Recurrent
      encoder: Stack | None             source, target: Tokens
      decoder: Stack | None             attention: None | "additive" | "dot" | "general"
        reads: Tokens | Patches | ...   answers: Vocabulary
        positions: Learned | Sinusoidal | Convolved | None
        blocks: (Block, ...)
          self_attention, cross_attention: Attention (position: Rotary | RelativeBias | Alibi | None)
          self_attention may be a Recurrence
          feed_forward: FeedForward | Experts
          norm: Norm, norm_at: "pre" | "post" | "both" | "result"
      answers: Vocabulary | PointerGenerator | Labels | Classes | Vector | Actions | States

    Towers
      source, target: Transformer       two encoders, whose vectors are compared
"""

from __future__ import annotations

from qkv.errors import SpecError
from qkv.spec.answers import (
    Actions,
    Answers,
    Classes,
    Dense,
    Labels,
    PointerGenerator,
    Pool,
    States,
    Vector,
    Vocabulary,
)
from qkv.spec.blocks import (
    AcrossHeads,
    Activation,
    Alibi,
    Attention,
    Block,
    ByWavelength,
    Experts,
    FeedForward,
    Interpolated,
    Norm,
    Position,
    Recurrence,
    RelativeBias,
    Rotary,
    Scaling,
    Stretched,
    Yarn,
)
from qkv.spec.files import (
    from_json,
    to_json,
)
from qkv.spec.inputs import (
    Convolution,
    Convolved,
    Frames,
    Learned,
    Patches,
    Reads,
    Segments,
    Sinusoidal,
    Tokens,
    Trajectory,
    Waveform,
)
from qkv.spec.models import (
    Recurrent,
    Spec,
    Stack,
    Towers,
    Transformer,
)

__all__ = [
    "AcrossHeads",
    "Actions",
    "Activation",
    "Alibi",
    "Answers",
    "Attention",
    "Block",
    "ByWavelength",
    "Classes",
    "Convolution",
    "Convolved",
    "Dense",
    "Experts",
    "FeedForward",
    "Frames",
    "Interpolated",
    "Labels",
    "Learned",
    "Norm",
    "Patches",
    "PointerGenerator",
    "Pool",
    "Position",
    "Reads",
    "Recurrence",
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
    "Stretched",
    "Tokens",
    "Towers",
    "Trajectory",
    "Transformer",
    "Vector",
    "Vocabulary",
    "Waveform",
    "Yarn",
    "from_json",
    "to_json",
]
