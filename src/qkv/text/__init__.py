"""Text to numbers and back."""

from __future__ import annotations

from qkv.text.tokenizer import BOS, EOS, PAD, UNK, Encoding, SpecialTokenIds, Tokenizer
from qkv.text.trainers import TokenizerKind, train

__all__ = ["BOS", "EOS", "PAD", "UNK", "Encoding", "TokenizerKind", "SpecialTokenIds", "Tokenizer", "train"]
