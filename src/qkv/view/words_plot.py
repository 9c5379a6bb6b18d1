"""A plot of a recording: its waveform, its spectrogram, and the time of each word."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from qkv.errors import DataError
from qkv.files import atomic_write
from qkv.lens.timestamps import TimedWord

_WIDTH, _WAVEFORM_HEIGHT, _FRAMES_HEIGHT, _WORDS_HEIGHT = 1000, 120, 160, 30  # in the units of the SVG
_MAX_COLUMNS = 250  # of the spectrogram


def plot_words(
    samples: Tensor, sample_rate: int, frames: Tensor, words: Sequence[TimedWord], path: Path, title: str
) -> None:
    """Write an SVG file of samples (samples,), frames (mels, frames) and words. Raises DataError for empty audio."""
    if not len(samples) or not frames.numel():
        raise DataError("there is no audio to draw; expected at least one sample and one frame")
    seconds = len(samples) / sample_rate
    bottom = _WAVEFORM_HEIGHT + _FRAMES_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 2 * _WORDS_HEIGHT}" '
        f'font-family="sans-serif" font-size="14"><title>{escape(title)}</title>',
        f'<rect width="100%" height="100%" fill="#fff"/><path d="{_waveform_path(samples)}" fill="#346"/>',
        *_spectrogram_cells(frames),
    ]
    for word in words:
        left, right = (_WIDTH * min(at / seconds, 1.0) for at in (word.start, word.end))
        parts.append(
            f'<rect x="{left:.1f}" y="0" width="{max(right - left, 1):.1f}" height="{bottom}" fill="#e70" '
            f'fill-opacity="0.25"/><text x="{left:.1f}" y="{bottom + _WORDS_HEIGHT - 10}">{escape(word.text)}</text>'
            f'<text x="{left:.1f}" y="{bottom + 2 * _WORDS_HEIGHT - 12}" font-size="10" fill="#666">'
            f"{word.start:.2f}–{word.end:.2f} s</text>"
        )
    with atomic_write(path) as part:
        part.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def _waveform_path(samples: Tensor) -> str:
    """Return the path around the loudest sample of each column."""
    edges = torch.linspace(0, len(samples), _WIDTH // 2 + 1).long().tolist()
    loud = float(samples.abs().max()) or 1.0
    highs = []
    for begin, end in zip(edges, edges[1:], strict=False):
        piece = samples[begin : max(end, begin + 1)]
        highs.append(float(piece.abs().max()) / loud * _WAVEFORM_HEIGHT / 2 if len(piece) else 0.0)
    above = [f"{2 * x},{_WAVEFORM_HEIGHT / 2 - high:.1f}" for x, high in enumerate(highs)]
    below = [f"{2 * x},{_WAVEFORM_HEIGHT / 2 + high:.1f}" for x, high in reversed(list(enumerate(highs)))]
    return f"M{' L'.join([*above, *below])}Z"


def _spectrogram_cells(frames: Tensor) -> list[str]:
    """Return one rectangle for each band and interval of frames, lighter where it is louder."""
    bottom = _WAVEFORM_HEIGHT + _FRAMES_HEIGHT
    columns = torch.nn.functional.adaptive_avg_pool1d(frames[None].float(), min(_MAX_COLUMNS, frames.shape[1]))[0]
    low, high = float(columns.min()), float(columns.max())
    shades = ((columns - low) / max(high - low, 1e-9) * 9).round().long().tolist()
    width, height = _WIDTH / columns.shape[1], _FRAMES_HEIGHT / len(shades)
    return [
        f'<rect x="{x * width:.1f}" y="{bottom - (band + 1) * height:.1f}" width="{width:.2f}" '
        f'height="{height:.2f}" fill="hsl(220 40% {15 + 8 * shade}%)"/>'
        for band, row in enumerate(shades)
        for x, shade in enumerate(row)
    ]
