"""Finding sequences: greedy, sampled and beam decoding, forced scoring, ensembles and streams.

The options need no torch; everything else is imported when it is first used, so that reading a recipe stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkv.decoding.config import (
    BEAM_RULES,
    BEST_RULES,
    FAIRSEQ_RULES,
    HUGGING_FACE_EARLY_STOPPING_RULES,
    HUGGING_FACE_NEVER_RULES,
    HUGGING_FACE_RULES,
    TENSOR2TENSOR_RULES,
    Beam,
    BeamRules,
    DecodingConfig,
    Greedy,
    LengthLimit,
    LengthPenalty,
    Sample,
)
from qkv.lazy import export_lazily

if TYPE_CHECKING:
    from qkv.decoding.beam_search import run_beam_search
    from qkv.decoding.ensemble import Ensemble
    from qkv.decoding.generate import generate_all, generate_batch, score, stream_tokens
    from qkv.decoding.rules import AutoregressiveModel, Hypothesis, SearchRules
    from qkv.decoding.sampling import greedy_search, sample
    from qkv.generation_rules import GenerationRules

__all__ = [
    "BEST_RULES",
    "FAIRSEQ_RULES",
    "HUGGING_FACE_RULES",
    "HUGGING_FACE_EARLY_STOPPING_RULES",
    "HUGGING_FACE_NEVER_RULES",
    "BEAM_RULES",
    "TENSOR2TENSOR_RULES",
    "Beam",
    "BeamRules",
    "GenerationRules",
    "SearchRules",
    "DecodingConfig",
    "Ensemble",
    "Greedy",
    "Hypothesis",
    "LengthLimit",
    "LengthPenalty",
    "Sample",
    "AutoregressiveModel",
    "run_beam_search",
    "generate_batch",
    "generate_all",
    "greedy_search",
    "sample",
    "score",
    "stream_tokens",
]

_EXPORTS = {
    "Ensemble": "ensemble",
    "run_beam_search": "beam_search",
    "generate_batch": "generate",
    "generate_all": "generate",
    "score": "generate",
    "stream_tokens": "generate",
    "GenerationRules": "rules",
    "SearchRules": "rules",
    "Hypothesis": "rules",
    "AutoregressiveModel": "rules",
    "greedy_search": "sampling",
    "sample": "sampling",
}


__getattr__, __dir__ = export_lazily(__name__, {name: f"qkv.decoding.{one}" for name, one in _EXPORTS.items()})
