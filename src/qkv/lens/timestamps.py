"""Word times from the cross-attention of a speech-to-text model.

While such a model predicts a token, some of its heads attend to the audio of that token. Their weights, one row for
each
token, are a map from text to time; the monotonic path through it with the largest weight gives every token its start
and its end (the method published with the code of Radford et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from qkv.errors import QkvError
from qkv.lens.trace import Trace


@dataclass(frozen=True)
class TimedWord:
    """A span of text and its time in seconds from the start of the audio."""

    text: str
    start: float
    end: float


def compute_attention_map(
    trace: Trace, heads: Sequence[tuple[int, int]], *, positions: int | None = None, median_filter_width: int = 7
) -> Tensor:
    """Combine the cross-attention of some heads into one map (queries, positions), for the first row of a batch.

    heads: pairs of a decoder block and a head of its cross-attention. positions: how many of the encoder's positions
    contain
    audio, the rest being padding (None: all). Each head's weights are normalised over these positions, then over the
    queries to mean 0 and variance 1, so that positions which all queries attend to do not count, and smoothed by a
    median
    filter of width `median_filter`. Raises QkvError for no heads, or for ones that the trace does not have.
    """
    if not heads:
        raise QkvError("no heads were given; expected pairs of block and head, such as a model's alignment_heads")
    maps = []
    for block, head in heads:
        weights = trace[f"decoder.{block}.cross_attention"].compute_weights(head)[0, :, :positions].float()
        weights = weights / weights.sum(dim=-1, keepdim=True)
        spread, mean = torch.std_mean(weights, dim=0, keepdim=True, correction=0)
        maps.append((weights - mean) / spread.clamp(min=torch.finfo(torch.float32).tiny))
    return _median_filter(torch.stack(maps), median_filter_width).mean(dim=0)


def _median_filter(rows: Tensor, width: int) -> Tensor:
    """Replace each number by the median of its `width` neighbours in the last dimension, mirrored at the ends."""
    around = width // 2
    if rows.shape[-1] <= around:
        return rows
    padded = functional.pad(rows, (around, around), mode="reflect")
    return padded.unfold(-1, width, 1).median(dim=-1).values


def align_with_dtw(matrix: Tensor) -> list[int]:
    """Return the column at which each row of a map (rows, columns) begins, on the path with the largest sum.

    The path goes from the first corner to the last by steps of one row, one column or both: dynamic time warping
    (Sakoe and Chiba 1978). Raises QkvError for an empty map.
    """
    costs = (-matrix).tolist()
    if not costs or not costs[0]:
        raise QkvError(f"a map of shape {tuple(matrix.shape)} was given; expected rows and columns")
    best, came = costs[0][:1], []
    for number in range(1, len(costs[0])):
        best.append(best[-1] + costs[0][number])
    for row in costs[1:]:
        total, steps = [best[0] + row[0]], ["up"]
        for number in range(1, len(row)):
            both, up, along = best[number - 1], best[number], total[-1]
            step = "both" if both < up and both < along else "up" if up < both and up < along else "along"
            total.append(row[number] + (both if step == "both" else up if step == "up" else along))
            steps.append(step)
        best = total
        came.append(steps)
    found, column = [0] * len(costs), len(costs[0]) - 1
    for row_number in range(len(costs) - 1, 0, -1):
        while came[row_number - 1][column] == "along":
            column -= 1
        found[row_number] = column
        column -= came[row_number - 1][column] == "both"
    return found


def compute_token_times(
    trace: Trace,
    heads: Sequence[tuple[int, int]],
    *,
    begin: int,
    end: int,
    positions: int | None = None,
    seconds_per_position: float = 0.02,
) -> list[tuple[float, float]]:
    """Return the (start, end) in seconds of each of the tokens `begin` to `end` of the target.

    At least one token precedes them: those that the output is forced to begin with. heads and positions as for
    `compute_attention_map`; seconds: the duration of an encoder position. Raises QkvError for tokens that the trace
    does
    not have.
    """
    matrix = compute_attention_map(trace, heads, positions=positions)
    if not 0 < begin < end <= len(matrix):
        raise QkvError(
            f"tokens {begin} to {end} were requested; expected some from 1 to {len(matrix)}, the tokens of the target"
        )
    # A row shows where its query attends to predict the next token; the last one ends where the next row begins.
    times = [column * seconds_per_position for column in align_with_dtw(matrix[begin - 1 : end])]
    return list(zip(times[:-1], times[1:], strict=True))


def group_words(token_texts: Sequence[str], times: Sequence[tuple[float, float]]) -> list[TimedWord]:
    """Join the texts of tokens, with their times, to words: a piece that begins with a space begins a word.

    Punctuation at the end of a word belongs to it, but its time, which is silent, does not.
    """
    found: list[TimedWord] = []
    for piece, (start, end) in zip(token_texts, times, strict=True):
        if not found or piece[:1].isspace():
            found.append(TimedWord(piece.strip(), start, end))
        else:
            has_letters = any(character.isalnum() for character in piece)
            found[-1] = TimedWord(found[-1].text + piece, found[-1].start, end if has_letters else found[-1].end)
    return found
