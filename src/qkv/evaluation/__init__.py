"""Scores, each with the signature that says what was counted: scores of unlike signatures do not compare."""

from __future__ import annotations

from qkv.evaluation.error_rates import PronunciationErrors, edit_distance, pronunciation_errors, transcript_errors
from qkv.evaluation.length_buckets import LengthBucket, score_by_length
from qkv.evaluation.likelihood import accuracy, bits_per_byte, nats_per_token, perplexity
from qkv.evaluation.score import Score
from qkv.evaluation.summarization import lead_baseline, oracle_baseline, rouge
from qkv.evaluation.translation import bleu, chrf, multi_bleu, ter, tokenize_moses
from qkv.evaluation.words import normalize_transcript, split_sentences, split_words

__all__ = [
    "LengthBucket",
    "Score",
    "PronunciationErrors",
    "accuracy",
    "bits_per_byte",
    "bleu",
    "score_by_length",
    "chrf",
    "edit_distance",
    "lead_baseline",
    "tokenize_moses",
    "multi_bleu",
    "nats_per_token",
    "oracle_baseline",
    "perplexity",
    "rouge",
    "normalize_transcript",
    "split_sentences",
    "split_words",
    "ter",
    "transcript_errors",
    "pronunciation_errors",
]
