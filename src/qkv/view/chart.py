"""A picture of what agents achieved beside what they were asked for, as SVG, written by hand: it is a few lines."""

from __future__ import annotations

import math
from pathlib import Path

from qkv.tasks.agent import Playing
from qkv.training.checkpoint import replacing

_WIDTH, _HEIGHT, _MARGIN = 480, 360, 56


def achieved(playing: Playing, path: Path) -> None:
    """Write an SVG: the mean of the achieved returns over each asked one, a bar of one deviation, and what was asked.

    Raises StorageError if it cannot be written.
    """
    asked = [one.asked for one in playing.achieved]
    reached = [one.mean + sign * one.deviation for one in playing.achieved for sign in (-1, 1)]
    across, up = _Axis(asked, _MARGIN, _WIDTH - 16), _Axis([*asked, *reached], _HEIGHT - _MARGIN, 16)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">',
        f"<title>Achieved over asked return, {playing.episodes} episodes each</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
    ]
    for mark in across.marks():
        parts.append(_line((across.at(mark), 16), (across.at(mark), _HEIGHT - _MARGIN), "#eee"))
        parts.append(_text(across.at(mark), _HEIGHT - _MARGIN + 18, f"{mark:g}"))
    for mark in up.marks():
        parts.append(_line((_MARGIN, up.at(mark)), (_WIDTH - 16, up.at(mark)), "#eee"))
        parts.append(_text(_MARGIN - 8, up.at(mark) + 4, f"{mark:g}", "end"))
    low, high = max(across.low, up.low), min(across.high, up.high)
    parts.append(_line((across.at(low), up.at(low)), (across.at(high), up.at(high)), "#999", "4 4"))
    for one in playing.achieved:
        x, bar = across.at(one.asked), (up.at(one.mean - one.deviation), up.at(one.mean + one.deviation))
        parts.append(_line((x, bar[0]), (x, bar[1]), "#2563a8"))
        parts.append(f'<circle cx="{x:.1f}" cy="{up.at(one.mean):.1f}" r="4" fill="#2563a8"/>')
    parts.append(_text((_MARGIN + _WIDTH) / 2, _HEIGHT - 16, "asked return"))
    parts.append(f'<g transform="translate(14 {(_HEIGHT - _MARGIN) / 2:.0f}) rotate(-90)">')
    parts.append(_text(0, 0, "achieved return, with one standard deviation") + "</g></svg>\n")
    with replacing(path) as part:
        part.write_text("\n".join(parts), encoding="utf-8")


class _Axis:
    """From numbers to places between two ends of the picture."""

    def __init__(self, numbers: list[float], begin: float, end: float) -> None:
        self.low, self.high = min(numbers), max(numbers)
        if self.low == self.high:
            self.low, self.high = self.low - 1, self.high + 1
        room = (self.high - self.low) / 20
        self.low, self.high = self.low - room, self.high + room
        self.begin, self.end = begin, end

    def at(self, number: float) -> float:
        """The place of a number."""
        return self.begin + (self.end - self.begin) * (number - self.low) / (self.high - self.low)

    def marks(self) -> list[float]:
        """About five round numbers."""
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def _line(start: tuple[float, float], end: tuple[float, float], color: str, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="{color}"{dashed}/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
