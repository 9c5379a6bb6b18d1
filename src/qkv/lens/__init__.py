"""Seeing what a model does, exactly, while it runs as fast as ever; and changing it."""

from __future__ import annotations

from qkv.lens.looking import look, trace_of
from qkv.lens.recorder import Call, Intervene, Recorder
from qkv.lens.trace import AttentionTrace, Trace

__all__ = ["AttentionTrace", "Call", "Intervene", "Recorder", "Trace", "look", "trace_of"]
