"""How well a language model predicts a text, through a window that slides over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qkv.errors import DataError

_IGNORE_INDEX = -100
_MAX_LOGITS, _MAX_TOKENS = 2**24, 2**14  # logits, and with few of them hidden vectors, fill the memory


@dataclass(frozen=True)
class SlidingWindow:
    """A window of `context` tokens that moves on by `stride`: all but the first tokens of a text are predicted with at
    least context - stride tokens before them. Raises DataError unless 0 < stride <= context."""

    context: int
    stride: int

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.context:
            raise DataError(
                f"stride={self.stride} was given with context={self.context}; expected 1 to {self.context}: a window "
                "that moves on further than it sees would leave tokens out"
            )


@torch.no_grad()
def negative_log_likelihood(
    model: Any,
    texts: Sequence[Sequence[int]],
    window: SlidingWindow,
    *,
    bos: int | None,
    eos: int | None,
    vocab_size: int,
) -> tuple[float, int]:
    """Return the negative log-likelihood of texts in nats, and the number of tokens; each text is scored by itself.

    model: forward(target=(batch, length) int64) -> logits (batch, length, vocab), as a decoder alone. texts: token
    ids without special tokens. bos: the token before a text; without one, its first token is not counted. eos: the
    token to be predicted after it, if any.
    """
    device = next(model.parameters()).device
    rows = sorted((row for text in texts for row in _window_rows(text, window, bos, eos)), key=lambda row: len(row[0]))
    at_once = max(1, min(_MAX_LOGITS // vocab_size, _MAX_TOKENS) // window.context)
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        longest = len(some[-1][0])
        target = torch.tensor([[*given, *[0] * (longest - len(given))] for given, _ in some], device=device)
        labels = torch.tensor(
            [[*targets, *[_IGNORE_INDEX] * (longest - len(targets))] for _, targets in some], device=device
        )
        logits: Tensor = model(target=target)  # what stands after the end of a row no place before it sees
        total += functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=_IGNORE_INDEX, reduction="sum"
        )
        count += int((labels != _IGNORE_INDEX).sum())
    return float(total), count


def _window_rows(
    text: Sequence[int], window: SlidingWindow, bos: int | None, eos: int | None
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the input and the labels of each window; _IGNORE_INDEX for tokens that another window scores."""
    whole = [*([] if bos is None else [bos]), *text, *([] if eos is None else [eos])]
    given, targets = whole[:-1], whole[1:]
    start = done = 0
    while done < len(targets):
        end = min(start + window.context, len(targets))
        yield given[start:end], [_IGNORE_INDEX] * (done - start) + targets[done:end]
        start, done = start + window.stride, end
