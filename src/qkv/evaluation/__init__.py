"""Scores, each with the signature that says what was counted: scores of unlike signatures do not compare."""

from __future__ import annotations

from qkv.evaluation.length import Bucket, by_length
from qkv.evaluation.likelihood import accuracy, bits_per_byte, nats_per_token, perplexity
from qkv.evaluation.score import Score
from qkv.evaluation.summaries import lead, oracle, rouge, sentences
from qkv.evaluation.translation import bleu, chrf, moses, multi_bleu, ter
from qkv.evaluation.words import WordErrors, edit_distance, transcript_errors, word_errors

__all__ = [
    "Bucket",
    "Score",
    "WordErrors",
    "accuracy",
    "bits_per_byte",
    "bleu",
    "by_length",
    "chrf",
    "edit_distance",
    "lead",
    "moses",
    "multi_bleu",
    "nats_per_token",
    "oracle",
    "perplexity",
    "rouge",
    "sentences",
    "ter",
    "transcript_errors",
    "word_errors",
]
