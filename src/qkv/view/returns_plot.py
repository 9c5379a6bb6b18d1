"""A plot of achieved returns over target returns, as SVG."""

from __future__ import annotations

import math
from pathlib import Path

from qkv.files import atomic_write
from qkv.tasks.reinforcement_learning.model import RolloutReport

_WIDTH, _HEIGHT, _MARGIN = 480, 360, 56


def plot_returns(report: RolloutReport, path: Path) -> None:
    """Write an SVG: the mean achieved return over each target return, with a bar of one standard deviation.

    Raises StorageError if it cannot be written.
    """
    targets = [one.target_return for one in report.statistics]
    achieved = [one.mean + sign * one.std for one in report.statistics for sign in (-1, 1)]
    across, up = _Scale(targets, _MARGIN, _WIDTH - 16), _Scale([*targets, *achieved], _HEIGHT - _MARGIN, 16)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">',
        f"<title>Achieved over target return, {report.episodes} episodes each</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    for mark in across.ticks():
        parts.append(_svg_line((across.to_pixel(mark), 16), (across.to_pixel(mark), _HEIGHT - _MARGIN), "#eee"))
        parts.append(_svg_text(across.to_pixel(mark), _HEIGHT - _MARGIN + 18, f"{mark:g}"))
    for mark in up.ticks():
        parts.append(_svg_line((_MARGIN, up.to_pixel(mark)), (_WIDTH - 16, up.to_pixel(mark)), "#eee"))
        parts.append(_svg_text(_MARGIN - 8, up.to_pixel(mark) + 4, f"{mark:g}", "end"))
    low, high = max(across.low, up.low), min(across.high, up.high)
    parts.append(
        _svg_line((across.to_pixel(low), up.to_pixel(low)), (across.to_pixel(high), up.to_pixel(high)), "#999", "4 4")
    )
    for one in report.statistics:
        x, bar = across.to_pixel(one.target_return), (up.to_pixel(one.mean - one.std), up.to_pixel(one.mean + one.std))
        parts.append(_svg_line((x, bar[0]), (x, bar[1]), "#2563a8"))
        parts.append(f'<circle cx="{x:.1f}" cy="{up.to_pixel(one.mean):.1f}" r="4" fill="#2563a8"/>')
    parts.append(_svg_text((_MARGIN + _WIDTH) / 2, _HEIGHT - 16, "target return"))
    parts.append(f'<g transform="translate(14 {(_HEIGHT - _MARGIN) / 2:.0f}) rotate(-90)">')
    parts.append(_svg_text(0, 0, "achieved return, with one standard deviation") + "</g></svg>\n")
    with atomic_write(path) as part:
        part.write_text("\n".join(parts), encoding="utf-8")


class _Scale:
    """Maps values to pixels between two ends of the plot."""

    def __init__(self, values: list[float], begin: float, end: float) -> None:
        self.low, self.high = min(values), max(values)
        if self.low == self.high:
            self.low, self.high = self.low - 1, self.high + 1
        room = (self.high - self.low) / 20
        self.low, self.high = self.low - room, self.high + room
        self.begin, self.end = begin, end

    def to_pixel(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.begin + (self.end - self.begin) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return about five round values."""
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def _svg_line(start: tuple[float, float], end: tuple[float, float], color: str, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="{color}"{dashed}/>'
    )


def _svg_text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
