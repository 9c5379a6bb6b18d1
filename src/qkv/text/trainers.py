"""Making a tokenizer from text: five kinds, one result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal, get_args

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from qkv.errors import VocabularyError
from qkv.text.tokenizer import SPECIAL_TOKENS, Tokenizer

TokenizerKind = Literal["bpe", "unigram", "byte", "character", "word"]

_N_BYTES = 256
_DEFAULT_VOCAB_SIZE = 8000


def train(
    lines: Iterable[str], kind: TokenizerKind = "bpe", vocab: int | None = None, lowercase: bool = False
) -> Tokenizer:
    """Make a tokenizer that knows the given lines, with at most `vocab` tokens (the four special ones included).

    "bpe" [Sennrich et al. 2016] and "unigram" [Kudo 2018] work on bytes, so that any text comes back unchanged;
    "byte" has one token per byte, "character" one per character seen here, "word" one per symbol between
    spaces seen here (phonemes, for example). Without `vocab`, bpe and unigram take 8,000 and the others all they see.
    Raises VocabularyError for an unknown kind, a vocabulary too small for it, or no text at all.
    """
    if kind not in get_args(TokenizerKind):
        raise VocabularyError(
            f"tokenizer kind {kind!r} is unknown, expected one of {', '.join(get_args(TokenizerKind))}"
        )
    least = len(SPECIAL_TOKENS) + (_N_BYTES if kind in ("bpe", "unigram", "byte") else 1)
    if vocab is not None and (vocab < least or (kind == "byte" and vocab != least)):
        bound = "exactly" if kind == "byte" else "at least"
        raise VocabularyError(f"vocab={vocab} does not fit kind {kind!r}: expected {bound} {least}, or none")
    if kind == "byte":
        return Tokenizer(_build_byte_tokenizer(lowercase))
    some = _require_text(lines)
    if kind == "bpe":
        return Tokenizer(_train_bpe(some, vocab or _DEFAULT_VOCAB_SIZE, lowercase))
    if kind == "unigram":
        return Tokenizer(_train_unigram(some, vocab or _DEFAULT_VOCAB_SIZE, lowercase))
    if kind == "character":
        return Tokenizer(_train_character_level(some, vocab, lowercase))
    return Tokenizer(_train_word_level(some, vocab, lowercase))


def _require_text(lines: Iterable[str]) -> Iterator[str]:
    """Pass the lines on, once it is sure that one of them holds something."""
    rest = iter(lines)
    for line in rest:
        if line.strip():
            return chain([line], rest)
    raise VocabularyError("there is no text to make a tokenizer from: expected at least one line that is not empty")


def _make_byte_level(inner: tokenizers.Tokenizer, lowercase: bool) -> tokenizers.Tokenizer:
    """Cut text into words with their leading space, on bytes.

    One space is put before every line and taken off again, so that a word at the start of a line is the same
    token as elsewhere.
    """
    space = normalizers.Prepend(" ")
    inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), space]) if lowercase else space
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    inner.encode_special_tokens = True
    return inner


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _add_special_tokens(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    inner.add_special_tokens(list(SPECIAL_TOKENS))
    return inner


def _train_bpe(lines: Iterator[str], vocab: int, lowercase: bool) -> tokenizers.Tokenizer:
    inner = _make_byte_level(tokenizers.Tokenizer(models.BPE()), lowercase)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=_alphabet(), show_progress=False
    )
    inner.train_from_iterator(lines, trainer)
    return inner


def _train_unigram(lines: Iterator[str], vocab: int, lowercase: bool) -> tokenizers.Tokenizer:
    inner = _make_byte_level(tokenizers.Tokenizer(models.Unigram()), lowercase)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=_alphabet(),
        unk_token=SPECIAL_TOKENS[3],
        show_progress=False,
    )
    inner.train_from_iterator(lines, trainer)
    return _add_special_tokens(
        _make_byte_level(tokenizers.Tokenizer(models.Unigram(_make_deterministic(inner), unk_id=3)), lowercase)
    )


def _make_deterministic(trained: tokenizers.Tokenizer) -> list[tuple[str, float]]:
    """Order the pieces by falling score, and make the result the same in every process.

    The library gives bytes that it never saw scores a little apart, just above the lowest one, in an order that
    changes from process to process; here they all get the lowest.
    """
    scores = {piece: round(score, 6) for piece, score in json.loads(trained.to_str())["model"]["vocab"]}
    for special in SPECIAL_TOKENS:
        del scores[special]
    lowest = min(scores.values())
    for piece, score in scores.items():
        if len(piece) == 1 and score < lowest + 0.0001 * (_N_BYTES + 1):
            scores[piece] = lowest
    ordered = sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
    return [(special, 0.0) for special in SPECIAL_TOKENS] + ordered


def _build_byte_tokenizer(lowercase: bool) -> tokenizers.Tokenizer:
    table = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *_alphabet()])}
    inner = tokenizers.Tokenizer(models.BPE(vocab=table, merges=[]))
    if lowercase:
        inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return _add_special_tokens(inner)


def _build_vocabulary(counts: Counter[str], vocab: int | None) -> dict[str, int]:
    """Number the symbols by falling count, equal counts in the order of their code points."""
    ordered = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
    kept = [symbol for symbol in ordered if symbol not in SPECIAL_TOKENS][
        : None if vocab is None else vocab - len(SPECIAL_TOKENS)
    ]
    return {token: number for number, token in enumerate([*SPECIAL_TOKENS, *kept])}


def _train_character_level(lines: Iterator[str], vocab: int | None, lowercase: bool) -> tokenizers.Tokenizer:
    normalizer = normalizers.Lowercase()
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(normalizer.normalize_str(line) if lowercase else line)
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=_build_vocabulary(counts, vocab), merges=[], unk_token=SPECIAL_TOKENS[3])
    )
    if lowercase:
        inner.normalizer = normalizer
    inner.decoder = decoders.Fuse()
    return _add_special_tokens(inner)


def _train_word_level(lines: Iterator[str], vocab: int | None, lowercase: bool) -> tokenizers.Tokenizer:
    normalizer = normalizers.Lowercase()
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update((normalizer.normalize_str(line) if lowercase else line).split())
    inner = tokenizers.Tokenizer(models.WordLevel(vocab=_build_vocabulary(counts, vocab), unk_token=SPECIAL_TOKENS[3]))
    if lowercase:
        inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _add_special_tokens(inner)
