"""Byte-level BPE: how a text is cut into words before, by the name GGUF files give it [Radford et al. 2019]."""

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
"""Name -> the patterns that cut a text one after the other."""

IGNORE_MERGES: Final = frozenset({"llama-bpe", "llama3", "llama-v3"})
"""Those where a word that is a token is never cut, whatever the merges say."""


def build_tokenizer(
    vocab: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    name: str,
    *,
    pre_tokenizer: str = "gpt2",
    add_prefix_space: bool = False,
) -> tokenizers.Tokenizer:
    """Make the tokenizer. Raises VocabularyError, with `name`, for an unknown cut or merges that do not fit."""
    if pre_tokenizer not in PRE_TOKENIZER_PATTERNS:
        raise VocabularyError(
            f"{name} cuts text in the way called {pre_tokenizer!r}, which is not known here; known are "
            f"{', '.join(sorted(PRE_TOKENIZER_PATTERNS))}"
        )
    try:
        model = models.BPE(vocab=dict(vocab), merges=list(merges), ignore_merges=pre_tokenizer in IGNORE_MERGES)
    except Exception as error:  # the library raises plain Exception, whatever is wrong
        raise VocabularyError(f"{name} is no table of merges over its vocabulary: {error}; copy it again") from error
    inner = tokenizers.Tokenizer(model)
    if PRE_TOKENIZER_PATTERNS[pre_tokenizer] == (_GPT2_PATTERN,):
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    else:
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZER_PATTERNS[pre_tokenizer]]
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    inner.decoder = decoders.ByteLevel()
    return inner
