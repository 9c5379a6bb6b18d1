"""The tokenizer: how text becomes token numbers and comes back, in one file.

Every tokenizer made here has the same four special tokens and is one plain `tokenizer.json`. That of a published
model keeps its own special tokens, which any of them may lack, and what its model expects around a text; its file
holds both (`{"special_tokens": ..., "tokenizer": ...}`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import tokenizers
from tokenizers import models

from qkv.errors import DataError, VocabularyError
from qkv.files import atomic_write, parse_json

PAD: Final = 0
BOS: Final = 1
EOS: Final = 2
UNK: Final = 3
SPECIAL_TOKENS: Final = ("<pad>", "<s>", "</s>", "<unk>")

_CHUNK_LINES = 10_000


@dataclass(frozen=True)
class SpecialTokenIds:
    """The numbers of a tokenizer's special tokens, None where it has none; `size` counts its tokens."""

    size: int
    pad: int | None = None
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    mask: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            number = getattr(self, field.name)
            if field.name != "size" and number is not None and not (type(number) is int and 0 <= number < self.size):
                raise VocabularyError(f"{field.name}={number!r} names no token, expected a number below {self.size}")


class Encoding(NamedTuple):
    """A text as its model expects it: the ids, special tokens included, and for each the segment (0 or 1) it is of."""

    ids: list[int]
    segments: list[int]


class Tokenizer:
    """Turns a line of text into token numbers and back.

    Without `special_tokens` it is one made here: pad 0, bos 1, eos 2, unk 3, text that merely looks like a special
    token ("</s>") is ordinary text and never becomes one, and decoding stops at the first eos. With them it is that
    of a published model and does as its maker's library does: special tokens spelt in the text are special tokens, and
    decoding leaves them out wherever they stand.
    Raises VocabularyError if a tokenizer made here has other special tokens.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        name: str = "this tokenizer",
        *,
        special_tokens: SpecialTokenIds | None = None,
    ) -> None:
        self._is_native = special_tokens is None
        if special_tokens is None:
            found = tuple(inner.id_to_token(number) for number in range(len(SPECIAL_TOKENS)))
            if found != SPECIAL_TOKENS:
                raise VocabularyError(
                    f"{name} has {found} as its first four tokens, expected {SPECIAL_TOKENS}: it was not made by "
                    f"qkv.text.train; train one, or take the tokenizer from the model's own folder"
                )
            special_tokens = SpecialTokenIds(inner.get_vocab_size(), PAD, BOS, EOS, UNK)
        elif inner.get_vocab_size() > special_tokens.size and special_tokens.unk is None:
            raise VocabularyError(f"{name} knows more than {special_tokens.size} tokens and has none for the unknown")
        inner.encode_special_tokens = self._is_native
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.special_tokens = special_tokens
        self._is_word_level = isinstance(inner.model, models.WordLevel)
        self._is_byte_level = inner.decoder is not None and b'"ByteLevel"' in inner.decoder.__getstate__()

    @property
    def size(self) -> int:
        """How many tokens there are, the special ones included; a published model may have rows for more."""
        return self.special_tokens.size

    @property
    def pad(self) -> int:
        """The number of the token that fills a batch; VocabularyError if there is none."""
        return self._special_token("pad")

    @property
    def bos(self) -> int:
        """The number of the token before a text; VocabularyError if there is none."""
        return self._special_token("bos")

    @property
    def eos(self) -> int:
        """The number of the token after a text; VocabularyError if there is none."""
        return self._special_token("eos")

    @property
    def unk(self) -> int:
        """The number of the token for what is unknown; VocabularyError if there is none."""
        return self._special_token("unk")

    def _special_token(self, name: str) -> int:
        number: int | None = getattr(self.special_tokens, name)
        if number is None:
            raise VocabularyError(f"this tokenizer has no {name} token; see `special_tokens` for those it has")
        return number

    def token_to_id(self, token: str) -> int:
        """Return the id of a token spelled as in the vocabulary, e.g. "<|en|>"; VocabularyError if there is none."""
        number: int | None = self._inner.token_to_id(token)
        if number is None or number >= self.size:
            raise VocabularyError(
                f"{token!r} is not in the vocabulary of this tokenizer, which has {self.size}; check its spelling"
            )
        return number

    def vocabulary(self) -> list[str]:
        """Give every token as the vocabulary spells it, in the order of their numbers."""
        return [self._inner.id_to_token(number) or f"<{number}?>" for number in range(self.size)]

    def token_bytes(self) -> list[bytes]:
        """Give what every token adds to a text in UTF-8, with the space before a word; nothing for special tokens."""
        special = {number for number, token in self._inner.get_added_tokens_decoder().items() if token.special}
        special |= set(range(len(SPECIAL_TOKENS))) if self._is_native else set()
        return [
            b"" if number in special else self._piece_to_bytes(piece) for number, piece in enumerate(self.vocabulary())
        ]

    def _piece_to_bytes(self, piece: str) -> bytes:
        if self._is_word_level:
            return f" {piece}".encode()
        table = _byte_decoder()
        if self._is_byte_level and all(character in table for character in piece):
            return bytes(table[character] for character in piece)
        if re.fullmatch("<0x[0-9A-F]{2}>", piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def for_language(self, token: str) -> Tokenizer:
        """Return the tokenizer for texts of another language, which it marks with a token such as "fra_Latn".

        Raises VocabularyError if the vocabulary lacks that token, or if this tokenizer marks no language.
        """
        number = self.token_to_id(token)
        frame = self._inner.post_processor
        says = json.loads(frame.__getstate__()) if frame is not None else {}
        plain = {
            self._inner.id_to_token(n) for n in (self.special_tokens.bos, self.special_tokens.eos) if n is not None
        }
        found = [name for name in says.get("special_tokens", ()) if name not in plain]
        if self._is_native or len(found) != 1:
            raise VocabularyError(
                f"{found or 'nothing'} is added to a text besides its begin and end tokens, expected the token of one "
                f"language: take the tokenizer as it is"
            )
        there, here = json.dumps(found[0]), json.dumps(token)
        says["special_tokens"].pop(found[0])
        pieces = json.loads(json.dumps([says["single"], says["pair"]]).replace(f'"id": {there}', f'"id": {here}'))
        says["single"], says["pair"] = pieces
        says["special_tokens"][token] = {"id": token, "ids": [number], "tokens": [token]}
        whole = json.loads(self._inner.to_str()) | {"post_processor": says}
        return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(whole)), special_tokens=self.special_tokens)

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of everything that decides how text is cut: equal digests, equal tokens."""
        return hashlib.sha256(self._to_text(pretty=False).encode()).hexdigest()

    def encode(self, line: str) -> list[int]:
        """Give the token numbers of one line, without bos and eos; DataError if it is not valid Unicode."""
        return self.encode_batch([line])[0]

    def encode_batch(self, lines: Iterable[str]) -> list[list[int]]:
        """Give the token numbers of every line, in order and without bos and eos."""
        numbers = [
            self._replace_out_of_range(encoding.ids)
            for encoding in self._encode_chunks(lines, add_special_tokens=False)
        ]
        if self._is_native and self._is_word_level:  # a symbol spelt "</s>" would be found in the table of words
            return [[n if n > UNK else UNK for n in line] for line in numbers]
        return numbers

    def encode_with_special_tokens(self, line: str, second: str | None = None) -> Encoding:
        """Give the tokens of a line, or of two that belong together, with what the model expects around them.

        For a tokenizer made here that is an eos after each, and all of it is segment 0.
        """
        if self._is_native:
            ids = [number for text in (line, second) if text is not None for number in (*self.encode(text), EOS)]
            return Encoding(ids, [0] * len(ids))
        encoding = next(self._encode_chunks([line if second is None else (line, second)], add_special_tokens=True))
        return Encoding(self._replace_out_of_range(encoding.ids), encoding.type_ids)

    def encode_batch_with_special_tokens(self, lines: Iterable[str]) -> list[Encoding]:
        """Give every line with what the model expects around it, in order."""
        if self._is_native:
            return [Encoding([*ids, EOS], [0] * (len(ids) + 1)) for ids in self.encode_batch(lines)]
        return [
            Encoding(self._replace_out_of_range(one.ids), one.type_ids)
            for one in self._encode_chunks(lines, add_special_tokens=True)
        ]

    def _encode_chunks(
        self, lines: Iterable[str | tuple[str, str]], add_special_tokens: bool
    ) -> Iterator[tokenizers.Encoding]:
        rest, before = iter(lines), 0
        while chunk := list(islice(rest, _CHUNK_LINES)):
            try:
                yield from self._inner.encode_batch_fast(chunk, add_special_tokens=add_special_tokens)
            except (UnicodeEncodeError, TypeError) as error:
                raise DataError(_encoding_error(chunk, before)) from error
            before += len(chunk)

    def _replace_out_of_range(self, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self.size:  # a piece that cuts the text and that the model has no number for
            return [number if number < self.size else self.unk for number in ids]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Give the text of these tokens without the special ones, and up to the first eos if it was made here.

        Part of a character at an end is "\N{REPLACEMENT CHARACTER}", as is any part that belongs to no character.
        """
        if not self._is_native:
            return self._inner.decode([int(number) for number in ids if number < self.size], skip_special_tokens=True)
        kept: list[int] = []
        for number in ids:
            if number == EOS:
                break
            if number > UNK:
                kept.append(int(number))
        return self._inner.decode(kept, skip_special_tokens=False)

    def display_tokens(self, ids: Iterable[int]) -> list[str]:
        """Give one string per token to show: a space "▁", a new line "↵", a tab "⇥", part of a character "<0xC3>"."""
        return [self._display_vocabulary[number] if 0 <= number < self.size else f"<{number}?>" for number in ids]

    @functools.cached_property
    def _display_vocabulary(self) -> list[str]:
        shown = [_display_bytes(name) if self._is_byte_level else _make_visible(name) for name in self.vocabulary()]
        return [*SPECIAL_TOKENS, *shown[len(SPECIAL_TOKENS) :]] if self._is_native else shown

    def _to_text(self, pretty: bool) -> str:
        inner = self._inner.to_str(pretty=pretty)
        return (
            inner
            if self._is_native
            else f'{{"special_tokens": {json.dumps(asdict(self.special_tokens))},\n"tokenizer": {inner}}}'
        )

    def to_tokenizer_json(self) -> str:
        """Return the plain `tokenizer.json` that other libraries read; it does not say which tokens are special."""
        return self._inner.to_str(pretty=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to one file, whole or not at all; StorageError if the place cannot be written."""
        with atomic_write(Path(path)) as part:
            part.write_text(self._to_text(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a `tokenizer.json` written by `save`; VocabularyError if it is missing, truncated or foreign."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise VocabularyError(
                f"cannot read the tokenizer {path}: {error}; expected a tokenizer.json in the model's folder"
            ) from error
        try:
            special_tokens = None
            if text.startswith('{"special_tokens"'):
                value = parse_json(text)
                special_tokens, text = SpecialTokenIds(**value["special_tokens"]), json.dumps(value["tokenizer"])
                if not all(one is None or (type(one) is int and one >= 0) for one in asdict(special_tokens).values()):
                    raise ValueError(f"special_tokens: given {special_tokens}, expected token numbers")
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception, whatever is wrong
            raise VocabularyError(
                f"{path} is not a complete tokenizer.json ({error}); copy it or train it again"
            ) from error
        return cls(inner, str(path), special_tokens=special_tokens)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Tokenizer) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Tokenizer({type(self._inner.model).__name__}, size={self.size})"


@functools.cache
def _byte_decoder() -> dict[str, int]:
    """Undo the byte-to-character table of byte-level models [Radford et al. 2019, section 2.2]."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _display_bytes(name: str) -> str:
    table = _byte_decoder()
    if any(character not in table for character in name):  # an added token is spelt as it is
        return _make_visible(name)
    shown = bytes(table[character] for character in name).decode(errors="surrogateescape")
    return "".join(f"<0x{ord(c) & 0xFF:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else _make_visible(c) for c in shown)


def _make_visible(text: str) -> str:
    shown = text.replace(" ", "▁").replace("\n", "↵").replace("\t", "⇥")
    return shown if shown.isprintable() else "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in shown)


def _encoding_error(chunk: Sequence[str | tuple[str, str]], before: int) -> str:
    whole = ((number, part) for number, line in enumerate(chunk, before + 1) for part in _texts_of(line))
    for number, line in whole:
        if not isinstance(line, str):
            return f"line {number} is a {type(line).__name__}, expected a string: pass one string per line"
        try:
            line.encode()
        except UnicodeEncodeError as error:
            return (
                f"line {number} holds {line[error.start]!r} at character {error.start + 1}, which is no Unicode text: "
                f"read the input as UTF-8, without `surrogateescape`"
            )
    return "the lines could not be encoded: expected strings of Unicode text"


def _texts_of(line: str | tuple[str, str]) -> Sequence[str]:
    return line if isinstance(line, tuple) else (line,)
