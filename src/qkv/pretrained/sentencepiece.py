"""SentencePiece models (`.model`, `.spm`) as tokenizers: unigram and BPE, their normaliser and byte fallback.

Source: Kudo and Richardson 2018, and the fields of `sentencepiece_model.proto`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from qkv.errors import VocabularyError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2

_SPACE: Final = "▁"
_UNUSED_SCORE: Final = -1e9
"""A score so low that the piece is used only if no other segmentation exists."""


class Piece(NamedTuple):
    """A token, its score (log probability or minus its rank) and its kind (NORMAL ... BYTE)."""

    text: str
    score: float = 0.0
    type: int = NORMAL


@dataclass(frozen=True)
class SentencePieceModel:
    """The contents of a SentencePiece model: its pieces by id, how it segments and how it normalises text.

    specials: maps each role that it has (pad, bos, eos, unk) to its id.
    """

    pieces: tuple[Piece, ...]
    model_type: int = UNIGRAM
    special_ids: tuple[tuple[str, int], ...] = ()
    byte_fallback: bool = False
    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True

    @property
    def unk_id(self) -> int | None:
        """The id of the unknown piece, None if it has none."""
        return next((number for number, piece in enumerate(self.pieces) if piece.type == UNKNOWN), None)


def parse_model(content: bytes, name: str) -> SentencePieceModel:
    """Parse the bytes of a `.model` file. Raises VocabularyError, with `name`, for truncated or unsupported content."""
    try:
        return _parse_model(content)
    except (ValueError, struct.error) as error:
        raise VocabularyError(f"{name} is not a complete SentencePiece model: {error}; copy it again") from error


def _parse_model(content: bytes) -> SentencePieceModel:
    pieces, trainer, normalizer = [], b"", b""
    for field, value in _iter_fields(content):
        if field == 1:
            pieces.append(_parse_piece(_require_bytes(value)))
        elif field == 2:
            trainer = _require_bytes(value)
        elif field == 3:
            normalizer = _require_bytes(value)
        elif field == 5 and dict(_iter_fields(_require_bytes(value))).get(2):
            raise ValueError("it changes the text after decoding, which is not supported")
    if not pieces:
        raise ValueError("it has no pieces")
    says, does = dict(_iter_fields(trainer)), dict(_iter_fields(normalizer))
    kind = _require_int(says.get(3, UNIGRAM))
    if kind not in (UNIGRAM, BPE):
        raise ValueError(f"its model_type is {kind}, expected 1 (unigram) or 2 (BPE)")
    if _require_int(says.get(24, 0)) or not _require_int(does.get(5, 1)):
        raise ValueError("it marks spaces after a word or not at all, which is not supported")
    roles = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
    numbers = {role: _require_int(says.get(field, default)) for role, (field, default) in roles.items()}
    if any(number >= len(pieces) for number in numbers.values()):
        raise ValueError(f"its special tokens are {numbers} and it has {len(pieces)} pieces")
    charsmap = _require_bytes(does.get(2, b""))
    if charsmap and (len(charsmap) < 4 or struct.unpack_from("<I", charsmap)[0] not in range(4, len(charsmap) - 3, 4)):
        raise ValueError("the table of its normaliser is truncated")
    return SentencePieceModel(
        tuple(pieces),
        kind,
        tuple((role, number) for role, number in numbers.items() if number >= 0),
        byte_fallback=bool(_require_int(says.get(35, 0))),
        precompiled_charsmap=charsmap,
        add_dummy_prefix=bool(_require_int(does.get(3, 1))),
        remove_extra_whitespaces=bool(_require_int(does.get(4, 1))),
    )


def _parse_piece(content: bytes) -> Piece:
    says = dict(_iter_fields(content))
    score = struct.unpack("<f", _require_bytes(says.get(2, bytes(4))))[0]
    return Piece(_require_bytes(says.get(1, b"")).decode(), round_score(score), _require_int(says.get(3, NORMAL)))


def round_score(score: float) -> float:
    """Round a float32 score to nine digits, which identify it: with more, a written score is not read back exactly."""
    return float(f"{score:.9g}")


def _iter_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protocol buffers message: integers as int, everything else as bytes."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _read_varint(message, at)
            yield key >> 3, value
            continue
        if wire == 2:
            length, at = _read_varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"byte {at} starts no field")
        if length > len(message) - at:
            raise ValueError(f"a field of {length} bytes starts at byte {at} of {len(message)}")
        yield key >> 3, message[at : at + length]
        at += length


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it ends within a number")
        value |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return value, at
    raise ValueError(f"the number before byte {at} is too long")


def _require_int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("it has text where a number belongs")
    return value - (1 << 64) if value >> 63 else value


def _require_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("it has a number where text belongs")
    return value


def build_tokenizer(
    model: SentencePieceModel,
    name: str,
    pre_normalizers: Sequence[normalizers.Normalizer] = (),
    strip_spaces: bool = False,
) -> tokenizers.Tokenizer:
    """Build the tokenizer that encodes and decodes text as the SentencePiece model does; control pieces are special.

    pre_normalizers: applied to a text before the model's own normaliser.
    strip_spaces: whether to strip spaces at both ends of a decoded text, rather than one at its start.
    """
    try:
        inner = tokenizers.Tokenizer(_build_unigram(model) if model.model_type == UNIGRAM else _build_bpe(model))
        steps = [
            *pre_normalizers,
            *([normalizers.Precompiled(model.precompiled_charsmap)] if model.precompiled_charsmap else []),
        ]
    except Exception as error:  # the library raises a plain Exception for every error
        raise VocabularyError(f"the SentencePiece model {name} cannot be used: {error}; copy it again") from error
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    own = sorted((p.text for p in model.pieces if p.type == USER_DEFINED and p.text), key=len, reverse=True)
    if own:  # they are never split nor merged with their neighbours
        inner.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(re.escape(text) for text in own)), "isolated")
    joined = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip_spaces:
        joined.append(decoders.Replace(Regex("^ +| +$"), ""))
    elif model.add_dummy_prefix:
        joined.append(decoders.Strip(" ", 1, 0))
    inner.decoder = decoders.Sequence(joined)
    special = [piece.text for piece in model.pieces if piece.type in (CONTROL, UNKNOWN)]
    inner.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return inner


def _build_unigram(model: SentencePieceModel) -> models.Unigram:
    # the library derives the unknown's score from the lowest score, so pieces that only represent bytes get no lower
    # one
    lowest = min((piece.score for piece in model.pieces if piece.type == NORMAL), default=0.0)
    scores = {BYTE: lowest, UNUSED: _UNUSED_SCORE}
    table = [(piece.text, scores.get(piece.type, piece.score)) for piece in model.pieces]
    return models.Unigram(table, unk_id=model.unk_id, byte_fallback=model.byte_fallback)


def _build_bpe(model: SentencePieceModel) -> models.BPE:
    """Build a BPE model, in which two pieces are merged by the score of the result, the highest first."""
    scores = {piece.text: piece.score for piece in model.pieces if piece.type == NORMAL}
    merges = [
        (-score, -at, (text[:at], text[at:]))
        for text, score in scores.items()
        for at in range(1, len(text))
        if text[:at] in scores and text[at:] in scores
    ]
    return models.BPE(
        vocab={piece.text: number for number, piece in enumerate(model.pieces)},
        merges=[pair for _, _, pair in sorted(merges)],
        unk_token=None if model.unk_id is None else model.pieces[model.unk_id].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=any(piece.type == USER_DEFINED for piece in model.pieces),
    )
