"""Tools that show what a model computes, exactly and at full speed, and that change it."""

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
from qkv.lens.capture import Capture, read_capture, write_capture
from qkv.lens.copy_attribution import CopyAttribution, attribute_copies
from qkv.lens.explanation import Explanation, TokenEffect, explain
from qkv.lens.head_reports import HeadReport, head_similarity, report_heads
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
    "ablate",
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
