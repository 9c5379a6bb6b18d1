"""Text to numbers and back."""

from __future__ import annotations

from qkv.text.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from qkv.text.training import Kind, train

__all__ = ["BOS", "EOS", "PAD", "UNK", "Kind", "Tokenizer", "train"]
