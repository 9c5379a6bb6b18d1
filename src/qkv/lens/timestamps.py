"""When each word was said, as the cross-attention of a model that writes down what it hears shows it.

While such a model writes a token, some of its heads look at where that token is heard. Their weights, one row for each
token, are a map from text to time; the path through it that goes forward in both and meets the most weight gives every
token its beginning and its end (the method that came with Radford et al. 2022's code).
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
    """A stretch of text and when it is heard, in seconds from the beginning of the sound."""

    text: str
    start: float
    end: float


def compute_attention_map(
    trace: Trace, heads: Sequence[tuple[int, int]], *, positions: int | None = None, median_filter_width: int = 7
) -> Tensor:
    """What some heads together look at when they write: (queries, positions), of the first row of a batch.

    heads: pairs of a decoder block and a head of its cross-attention. positions: how many of the encoder's hold sound,
    the rest being silence that was added (None: all). Each head's weights are normalised over these positions, then
    over the queries to mean 0 and variance 1, so that what all of them look at counts for none, and smoothed by the
    median of `smooth` neighbours. Raises QkvError for no heads, or for ones that the trace does not have.
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
    """Each number replaced by the median of its `width` neighbours in the last dimension, mirrored at the ends."""
    around = width // 2
    if rows.shape[-1] <= around:
        return rows
    padded = functional.pad(rows, (around, around), mode="reflect")
    return padded.unfold(-1, width, 1).median(dim=-1).values


def align_with_dtw(matrix: Tensor) -> list[int]:
    """The column at which each row of a map (rows, columns) begins, on the path of the greatest sum.

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
    """When the tokens `begin` to `end` of the target that a trace shows are heard: (start, end) each, in seconds.

    The tokens before them, of which there is at least one, are those the model is told to begin with. heads and
    positions as for `attention_map`; seconds: how long an encoder's position is. Raises QkvError for tokens that the
    trace does not have.
    """
    matrix = compute_attention_map(trace, heads, positions=positions)
    if not 0 < begin < end <= len(matrix):
        raise QkvError(
            f"tokens {begin} to {end} were asked for; expected some from 1 to {len(matrix)}, the tokens of the target"
        )
    # A row shows where its query looks to write the token after it; the last one's end is where the next row begins.
    times = [column * seconds_per_position for column in align_with_dtw(matrix[begin - 1 : end])]
    return list(zip(times[:-1], times[1:], strict=True))


def group_words(token_texts: Sequence[str], times: Sequence[tuple[float, float]]) -> list[TimedWord]:
    """Join the texts of tokens, with their times, to words: a piece that begins with a space begins a word.

    Signs at a word's end belong to it, but not their time, in which nothing is said.
    """
    found: list[TimedWord] = []
    for piece, (start, end) in zip(token_texts, times, strict=True):
        if not found or piece[:1].isspace():
            found.append(TimedWord(piece.strip(), start, end))
        else:
            has_letters = any(character.isalnum() for character in piece)
            found[-1] = TimedWord(found[-1].text + piece, found[-1].start, end if has_letters else found[-1].end)
    return found
