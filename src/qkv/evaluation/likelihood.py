"""Scores of predictions rather than of text: perplexity, bits for each byte, accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qkv.errors import DataError
from qkv.evaluation.score import Score, check_paired


def nats_per_token(total_nll: float, tokens: int) -> Score:
    """Return the mean negative log-likelihood of a token; total_nll is the sum over `tokens` tokens, in nats.

    It depends on the tokenizer; `bits_per_byte` does not. Raises DataError unless tokens is positive.
    """
    return Score("loss", _mean(total_nll, tokens, "tokens"), f"nats|per:token|tokens:{tokens}")


def perplexity(total_nll: float, tokens: int) -> Score:
    """e to the mean negative log-likelihood of a token; total_nll is the sum over `tokens` tokens, in nats.

    It depends on the tokenizer; `bits_per_byte` does not. Raises DataError unless tokens is positive.
    """
    mean = _mean(total_nll, tokens, "tokens")
    return Score("perplexity", math.exp(mean) if mean < 700 else math.inf, f"per:token|tokens:{tokens}")


def bits_per_byte(total_nll: float, count: int) -> Score:
    """Return the bits per byte of UTF-8 text; total_nll is the sum over all tokens, in nats, of `count` bytes.

    Raises DataError unless count is positive.
    """
    return Score("bits_per_byte", _mean(total_nll, count, "bytes") / math.log(2), f"per:utf-8-byte|bytes:{count}")


def accuracy(hypotheses: Sequence[Any], references: Sequence[Any]) -> Score:
    """Return the percentage of predictions that equal their reference. Raises DataError for unequal counts."""
    check_paired(hypotheses, references)
    right = sum(bool(one == other) for one, other in zip(hypotheses, references, strict=True))
    return Score("accuracy", 100 * right / len(hypotheses), f"percent|equal|examples:{len(hypotheses)}")


def _mean(total: float, count: int, name: str) -> float:
    if count <= 0:
        raise DataError(f"{name}={count} was given; at least 1 was expected: nothing was scored")
    return total / count
