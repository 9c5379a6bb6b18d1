"""Finding sequences: greedy, sampled and beam decoding, forced scoring, ensembles and streams.

The options need no torch; everything else is imported when it is first used, so that reading a recipe stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qkv.decoding.options import (
    BEST,
    FAIRSEQ,
    HUGGING_FACE,
    HUGGING_FACE_EARLY_STOPPING,
    HUGGING_FACE_NEVER,
    RULES,
    TENSOR2TENSOR,
    Beam,
    BeamRules,
    Decoding,
    Greedy,
    Length,
    LengthPenalty,
    Sample,
)

if TYPE_CHECKING:
    from qkv.decoding.ensemble import Ensemble
    from qkv.decoding.search import beam
    from qkv.decoding.sentences import decode, decode_all, score, stream
    from qkv.decoding.stepping import Constraints, Hypothesis, Stepper
    from qkv.decoding.walking import greedy, sample

__all__ = [
    "BEST",
    "FAIRSEQ",
    "HUGGING_FACE",
    "HUGGING_FACE_EARLY_STOPPING",
    "HUGGING_FACE_NEVER",
    "RULES",
    "TENSOR2TENSOR",
    "Beam",
    "BeamRules",
    "Constraints",
    "Decoding",
    "Ensemble",
    "Greedy",
    "Hypothesis",
    "Length",
    "LengthPenalty",
    "Sample",
    "Stepper",
    "beam",
    "decode",
    "decode_all",
    "greedy",
    "sample",
    "score",
    "stream",
]

_WHERE = {
    "Ensemble": "ensemble",
    "beam": "search",
    "decode": "sentences",
    "decode_all": "sentences",
    "score": "sentences",
    "stream": "sentences",
    "Constraints": "stepping",
    "Hypothesis": "stepping",
    "Stepper": "stepping",
    "greedy": "walking",
    "sample": "walking",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
