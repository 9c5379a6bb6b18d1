"""Byte-level BPE, and its pre-tokenizers under the names that GGUF files use [Radford et al. 2019]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from qkv.errors import VocabularyError

_GPT2_PATTERN: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGIT_PATTERN: Final = r"\p{N}"

PRE_TOKENIZER_PATTERNS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "roberta-bpe", "mpt", "olmo", "jina-es", "jina-de"), (_GPT2_PATTERN,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (_DIGIT_PATTERN, _GPT2_PATTERN)
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"), (_CASELESS_PATTERN % "{1,3}",)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), (_CASELESS_PATTERN % "",)),
}
"""Maps a name to the patterns that split a text, applied in order."""

IGNORE_MERGES: Final = frozenset({"llama-bpe", "llama3", "llama-v3"})
"""Pre-tokenizers that never split a word that is a token, whatever the merges say."""


def build_tokenizer(
    vocab: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    name: str,
    *,
    pre_tokenizer: str = "gpt2",
    add_prefix_space: bool = False,
) -> tokenizers.Tokenizer:
    """Build the tokenizer. Raises VocabularyError, with `name`, for an unknown pre-tokenizer or merges
    that do not fit."""
    if pre_tokenizer not in PRE_TOKENIZER_PATTERNS:
        raise VocabularyError(
            f"{name} uses the pre-tokenizer {pre_tokenizer!r}; expected one of "
            f"{', '.join(sorted(PRE_TOKENIZER_PATTERNS))}"
        )
    try:
        model = models.BPE(vocab=dict(vocab), merges=list(merges), ignore_merges=pre_tokenizer in IGNORE_MERGES)
    except Exception as error:  # the library raises a plain Exception for every error
        raise VocabularyError(f"{name} is not a table of merges for its vocabulary: {error}; copy it again") from error
    inner = tokenizers.Tokenizer(model)
    if PRE_TOKENIZER_PATTERNS[pre_tokenizer] == (_GPT2_PATTERN,):
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    else:
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZER_PATTERNS[pre_tokenizer]]
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    inner.decoder = decoders.ByteLevel()
    return inner
