"""Seeing what a model does, exactly, while it runs as fast as ever; and changing it."""

from __future__ import annotations

from qkv.lens.alignment import Alignment, Gold, align, best_heads, error_rate, parse_pharaoh, pharaoh, words_of
from qkv.lens.capture import Capture, read_capture, write_capture
from qkv.lens.interventions import Intervene, Together, ablate, knock_out, patch, swap_values
from qkv.lens.looking import look, trace_of
from qkv.lens.pointing import Pointed, pointed
from qkv.lens.recorder import Call, Recorder
from qkv.lens.reports import HeadReport, report, similarity
from qkv.lens.statistics import Statistics, measure
from qkv.lens.trace import AttentionTrace, Trace
from qkv.lens.why import Reason, Why, why

__all__ = [
    "Alignment",
    "AttentionTrace",
    "Call",
    "Capture",
    "Gold",
    "HeadReport",
    "Intervene",
    "Pointed",
    "Reason",
    "Recorder",
    "Statistics",
    "Together",
    "Trace",
    "Why",
    "ablate",
    "align",
    "best_heads",
    "error_rate",
    "knock_out",
    "look",
    "measure",
    "parse_pharaoh",
    "patch",
    "pharaoh",
    "pointed",
    "read_capture",
    "report",
    "similarity",
    "swap_values",
    "trace_of",
    "why",
    "words_of",
    "write_capture",
]
