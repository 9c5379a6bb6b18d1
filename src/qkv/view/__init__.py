"""Pictures of what the lens saw."""

from __future__ import annotations

from qkv.view.chart import achieved
from qkv.view.writing import page

__all__ = ["achieved", "page"]
