"""Look into a model while it runs on its fast path, exactly; explain its answers; and change what it does."""

from __future__ import annotations

from qkv.lens.alignment import (
    Alignment,
    GoldAlignment,
    align,
    alignment_error_rate,
    compute_word_ids,
    find_best_heads,
    format_pharaoh,
    parse_pharaoh,
)
from qkv.lens.attributions import (
    attention_rollout,
    direct_logit_attribution,
    gradient_times_weight,
    logit_lens,
    value_zeroing,
)
from qkv.lens.capture import Capture, read_capture, write_capture
from qkv.lens.circuits import (
    LowRankMatrix,
    composition_scores,
    copying_score,
    ov_circuit,
    qk_circuit,
    token_circuit,
)
from qkv.lens.copy_attribution import CopyAttribution, attribute_copies
from qkv.lens.explanation import Explanation, TokenEffect, explain
from qkv.lens.head_reports import HeadReport, find_dead_heads, head_similarity, report_heads
from qkv.lens.interventions import Compose, Intervention, ablate, knock_out, patch, swap_values
from qkv.lens.recorder import Call, Recorder
from qkv.lens.statistics import AttentionStatistics, compute_statistics
from qkv.lens.trace import AttentionTrace, Trace
from qkv.lens.tracing import build_trace, look

__all__ = [
    "Alignment",
    "AttentionTrace",
    "Call",
    "Capture",
    "GoldAlignment",
    "HeadReport",
    "Intervention",
    "CopyAttribution",
    "TokenEffect",
    "Recorder",
    "AttentionStatistics",
    "Compose",
    "Trace",
    "Explanation",
    "LowRankMatrix",
    "ablate",
    "attention_rollout",
    "composition_scores",
    "copying_score",
    "direct_logit_attribution",
    "find_dead_heads",
    "gradient_times_weight",
    "logit_lens",
    "ov_circuit",
    "qk_circuit",
    "token_circuit",
    "value_zeroing",
    "align",
    "find_best_heads",
    "alignment_error_rate",
    "knock_out",
    "look",
    "compute_statistics",
    "parse_pharaoh",
    "patch",
    "format_pharaoh",
    "attribute_copies",
    "read_capture",
    "report_heads",
    "head_similarity",
    "swap_values",
    "build_trace",
    "explain",
    "compute_word_ids",
    "write_capture",
]
