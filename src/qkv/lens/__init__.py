"""Seeing what a model does, exactly, while it runs as fast as ever; and changing it."""

from __future__ import annotations

from qkv.lens.alignment import Alignment, GoldAlignment, align, find_best_heads, alignment_error_rate, parse_pharaoh, format_pharaoh, compute_word_ids
from qkv.lens.capture import Capture, read_capture, write_capture
from qkv.lens.interventions import Intervention, Compose, ablate, knock_out, patch, swap_values
from qkv.lens.tracing import look, build_trace
from qkv.lens.copy_attribution import CopyAttribution, attribute_copies
from qkv.lens.recorder import Call, Recorder
from qkv.lens.head_reports import HeadReport, report_heads, head_similarity
from qkv.lens.statistics import AttentionStatistics, compute_statistics
from qkv.lens.trace import AttentionTrace, Trace
from qkv.lens.explanation import TokenEffect, Explanation, explain

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
