"""Text to numbers and back."""

from __future__ import annotations

from qkv.text.tokenizer import BOS, EOS, PAD, UNK, Framed, Specials, Tokenizer
from qkv.text.training import Kind, train

__all__ = ["BOS", "EOS", "PAD", "UNK", "Framed", "Kind", "Specials", "Tokenizer", "train"]
