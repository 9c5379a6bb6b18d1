"""Phrases that an answer must or must not hold, as a search sees them: in the bytes that its tokens spell.

Whatever tokens a phrase is spelt with, it is held or it is not. Dynamic beam allocation (Post & Vilar 2018): the
hypotheses of a sentence are sorted by how much of what they must hold they do hold, and each of these banks keeps its
best ones, so that a hypothesis that begins a phrase has no need to beat those that have not. Ends are open only to
hypotheses that hold everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import zip_longest

_MAX_CONTINUATIONS = 3  # to go on with a phrase: the longest tokens that fit


class TokenBytes:
    """What each token of a vocabulary adds to a text, in bytes; b"" for a token that adds nothing."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)
        self._containing: dict[bytes, list[int]] = {}
        self._starting_with: dict[bytes, list[int]] = {}

    @cached_property
    def _token_of_piece(self) -> dict[bytes, int]:
        return {piece: number for number, piece in reversed(list(enumerate(self.pieces))) if piece}

    @cached_property
    def _max_piece_length(self) -> int:
        return max(map(len, self.pieces), default=0)

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes that some tokens spell."""
        return b"".join(self.pieces[token] for token in tokens)

    def prefix_tokens(self, text: bytes) -> list[int]:
        """Return the tokens that a text may begin with, the longest first."""
        lengths = range(min(len(text), self._max_piece_length), 0, -1)
        return [self._token_of_piece[text[:length]] for length in lengths if text[:length] in self._token_of_piece][
            :_MAX_CONTINUATIONS
        ]

    def count_tokens(self, text: bytes) -> int:
        """Return how many tokens spell a text if each is the longest that fits."""
        number = 0
        while text:
            number += 1
            text = text[max(1, len(self.pieces[best[0]]) if (best := self.prefix_tokens(text)) else 1) :]
        return number

    def tokens_containing(self, text: bytes) -> list[int]:
        """Return the tokens that contain a whole text."""
        if text not in self._containing:
            self._containing[text] = [number for number, piece in enumerate(self.pieces) if text in piece]
        return self._containing[text]

    def tokens_starting_with(self, text: bytes) -> list[int]:
        """Return the tokens that begin with a text."""
        if text not in self._starting_with:
            self._starting_with[text] = [number for number, piece in enumerate(self.pieces) if piece.startswith(text)]
        return self._starting_with[text]


class PhraseConstraints:
    """What one answer must hold, each phrase as often as it is given, and what it must not."""

    def __init__(self, token_bytes: TokenBytes, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self.token_bytes = token_bytes
        self.include = Counter(phrase.encode() for phrase in include)
        self.exclude = [phrase.encode() for phrase in exclude]

    @cached_property
    def num_included_tokens(self) -> int:
        """How many tokens spell all that must be held, if each is the longest that fits."""
        return sum(times * self.token_bytes.count_tokens(phrase) for phrase, times in self.include.items())

    def is_unmet(self, tokens: Sequence[int]) -> bool:
        """Return whether the answer so far lacks a required phrase."""
        return bool(self._missing_phrases(self.token_bytes.decode(tokens)))

    def find_bank(self, tokens: Sequence[int]) -> int:
        """Return how many bytes of the required phrases an answer holds; of an unfinished one, those it ends with.

        Banks count bytes and not phrases: in one bank for all hypotheses with an unfinished phrase, those that have
        just begun it would always beat those that have nearly finished it.
        """
        text = self.token_bytes.decode(tokens)
        missing = self._missing_phrases(text)
        held = sum(times * len(phrase) for phrase, times in (self.include - missing).items())
        return held + max((_matched_length(text, phrase) for phrase in missing), default=0)

    def advancing_tokens(self, tokens: Sequence[int]) -> set[int]:
        """Return the next tokens that would continue or begin a missing phrase."""
        text = self.token_bytes.decode(tokens)
        missing = self._missing_phrases(text)
        begun = {phrase: length for phrase in missing if (length := _matched_length(text, phrase))}
        found: set[int] = set()
        for phrase, length in begun.items():
            found.update(self.token_bytes.prefix_tokens(phrase[length:]))
        if not begun:
            inside = text[-1:].isalnum() or text[-1:] > b"\x7f"  # of a word, which ends first
            for phrase in missing:
                found.update(self.token_bytes.prefix_tokens(b" " + phrase))
                if not (inside and phrase[:1].isalnum()):
                    found.update(self.token_bytes.prefix_tokens(phrase))
            found -= self._space_tokens
        return found

    @cached_property
    def _space_tokens(self) -> set[int]:
        """A space by itself begins nothing."""
        return {number for number, piece in enumerate(self.token_bytes.pieces) if piece == b" "}

    def banned_tokens(self, tokens: Sequence[int]) -> list[int]:
        """Return the next tokens that would complete an excluded phrase."""
        text = self.token_bytes.decode(tokens)
        found: list[int] = []
        for phrase in self.exclude:
            found += self.token_bytes.tokens_containing(phrase)
            for length in range(1, len(phrase)):
                if text.endswith(phrase[:length]):
                    found += self.token_bytes.tokens_starting_with(phrase[length:])
        return found

    def _missing_phrases(self, text: bytes) -> Counter[bytes]:
        return Counter(
            {phrase: more for phrase, times in self.include.items() if (more := times - text.count(phrase)) > 0}
        )


def _matched_length(text: bytes, phrase: bytes) -> int:
    """Return how many bytes of a phrase a text ends with."""
    return next((length for length in range(len(phrase) - 1, 0, -1) if text.endswith(phrase[:length])), 0)


def allocate_beam(banks: Sequence[int], size: int) -> list[int]:
    """Return which candidates, best first, are kept: the best of each bank, then the second best, up to `size`."""
    members: dict[int, list[int]] = {}
    for number, bank in enumerate(banks):
        members.setdefault(bank, []).append(number)
    turns = zip_longest(*(members[bank] for bank in sorted(members, reverse=True)))
    return sorted([one for turn in turns for one in turn if one is not None][:size])
