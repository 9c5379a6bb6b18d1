"""The tokenizer: one `tokenizer.json` and four special tokens that are the same in every model."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import tokenizers
from tokenizers import models, pre_tokenizers

from qkv.errors import DataError, StorageError, VocabularyError

PAD: Final = 0
BOS: Final = 1
EOS: Final = 2
UNK: Final = 3
SPECIALS: Final = ("<pad>", "<s>", "</s>", "<unk>")

_LINES_AT_ONCE = 10_000


class Tokenizer:
    """Turns a line of text into token numbers and back; pad 0, bos 1, eos 2, unk 3.

    Text that merely looks like a special token ("</s>") is ordinary text and never becomes one.
    Raises VocabularyError if the four special tokens do not have these numbers.
    """

    pad: Final = PAD
    bos: Final = BOS
    eos: Final = EOS
    unk: Final = UNK

    def __init__(self, inner: tokenizers.Tokenizer, name: str = "this tokenizer") -> None:
        found = tuple(inner.id_to_token(number) for number in range(len(SPECIALS)))
        if found != SPECIALS:
            raise VocabularyError(
                f"{name} has {found} as its first four tokens, expected {SPECIALS}: it was not made by "
                f"qkv.text.train; train one, or take the tokenizer from the model's own folder"
            )
        inner.encode_special_tokens = True
        self._inner = inner
        self._by_word = isinstance(inner.model, models.WordLevel)
        self._by_byte = isinstance(inner.pre_tokenizer, pre_tokenizers.ByteLevel)

    @property
    def size(self) -> int:
        """How many tokens there are, the four special ones included."""
        return self._inner.get_vocab_size()

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of everything that decides how text is cut: equal digests, equal tokens."""
        return hashlib.sha256(self._inner.to_str().encode()).hexdigest()

    def encode(self, line: str) -> list[int]:
        """Give the token numbers of one line, without bos and eos; DataError if it is not valid Unicode."""
        return self.encode_all([line])[0]

    def encode_all(self, lines: Iterable[str]) -> list[list[int]]:
        """Give the token numbers of every line, in order and without bos and eos."""
        numbers: list[list[int]] = []
        rest = iter(lines)
        while chunk := list(islice(rest, _LINES_AT_ONCE)):
            try:
                encodings = self._inner.encode_batch_fast(chunk, add_special_tokens=False)
            except (UnicodeEncodeError, TypeError) as error:
                raise DataError(_unencodable(chunk, len(numbers))) from error
            numbers.extend(encoding.ids for encoding in encodings)
        if self._by_word:  # a symbol spelt "</s>" would be found in the table of words
            return [[n if n > UNK else UNK for n in line] for line in numbers]
        return numbers

    def decode(self, ids: Iterable[int]) -> str:
        """Give the text of these tokens up to the first eos, without pad, bos and unk."""
        kept: list[int] = []
        for number in ids:
            if number == EOS:
                break
            if number > UNK:
                kept.append(int(number))
        return self._inner.decode(kept, skip_special_tokens=False)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Give one string per token to show in a picture: a space is "▁", a part of a character "<0xC3>"."""
        return [self._display[number] if 0 <= number < self.size else f"<{number}?>" for number in ids]

    @functools.cached_property
    def _display(self) -> list[str]:
        names = [self._inner.id_to_token(number) or f"<{number}?>" for number in range(self.size)]
        shown = [_bytes_shown(name) for name in names] if self._by_byte else [_visible(name) for name in names]
        return [*SPECIALS, *shown[len(SPECIALS) :]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json`, whole or not at all; StorageError if the place cannot be written."""
        target = Path(path)
        try:
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        except OSError as error:
            raise StorageError(f"cannot write {target}: {error}; choose a folder that exists and has room") from error
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self._inner.to_str(pretty=True))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise StorageError(f"cannot write {target}: {error}; free some space or choose another place") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a `tokenizer.json` written by `save`; VocabularyError if it is missing, cut short or foreign."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise VocabularyError(
                f"cannot read the tokenizer {path}: {error}; expected a tokenizer.json in the model's folder"
            ) from error
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception, whatever is wrong
            raise VocabularyError(
                f"{path} is not a whole tokenizer.json ({error}); copy it again or train it anew"
            ) from error
        return cls(inner, str(path))

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Tokenizer) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Tokenizer({type(self._inner.model).__name__}, size={self.size})"


@functools.cache
def _byte_of() -> dict[str, int]:
    """Undo the byte-to-character table of byte-level models [Radford et al. 2019, section 2.2]."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _bytes_shown(name: str) -> str:
    table = _byte_of()
    if any(character not in table for character in name):
        return name
    raw = bytes(table[character] for character in name)
    try:
        return _visible(raw.decode())
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in raw)


def _visible(text: str) -> str:
    shown = text.replace(" ", "▁")
    return shown if shown.isprintable() else "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in shown)


def _unencodable(chunk: Sequence[str], before: int) -> str:
    for number, line in enumerate(chunk, before + 1):
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
