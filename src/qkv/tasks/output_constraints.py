"""What an answer is to hold and what not: phrases, a glossary's terms, and the placeholders of its source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from qkv.data.text.pairs import Pair
from qkv.decoding.constraints import PhraseConstraints, TokenBytes
from qkv.errors import DataError, VocabularyError
from qkv.text import Tokenizer

PLACEHOLDER_PATTERN = re.compile(
    r"%\(\w+\)[a-zA-Z]|%\d+\$[a-zA-Z@]"  # printf: %(name)s, %1$s
    r"|%[-+#0]*\d*(?:\.\d+)?(?:hh?|ll?|z)?[sdiufeExXcr@](?!\w)"  # %s, %d, %05.2f, %ld
    r"|\{\{\s*[^{}\s]+\s*\}\}|[$%#]?\{[^{}\s,]*\}|\$t\([^()]+\)"  # {{ name }}, {name}, {0}, {}, ${x}, %{x}, $t(x)
)
"""What programs fill in, in the texts of their interfaces."""


@dataclass(frozen=True)
class LineConstraints:
    """What the answer to one line must hold, each as often as it is given, and what it must not; as text."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def violations(self, answer: str) -> list[str]:
        """In words, what an answer does not keep to."""
        lacking = [
            f"{phrase!r} is missing" for phrase, times in Counter(self.include).items() if answer.count(phrase) < times
        ]
        return lacking + [f"{phrase!r} is there" for phrase in self.exclude if phrase in answer]


@dataclass(frozen=True)
class OutputConstraints:
    """What is wanted of the answers to all lines.

    must, never: of every answer. terms: (in the source, in the answer): where a source holds the first, as a word and
    in whatever case, its answer must hold the second. placeholders: those of the source must be held, as often.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    glossary: tuple[Pair, ...] = ()
    keep_placeholders: bool = False

    def __post_init__(self) -> None:
        if not all([*self.include, *self.exclude, *(part.strip() for pair in self.glossary for part in pair)]):
            raise DataError("an empty phrase was given to hold or not to hold; expected some text")
        for one in self.include:
            for other in self.exclude:
                if other in one:
                    raise DataError(f"{one!r} must be held and {other!r} must not; the one holds the other")
        for source, target in self.glossary:
            for other in self.exclude:
                if other in target:
                    raise DataError(
                        f"{target!r} must be held where a line has {source!r}, and {other!r} must not; "
                        "take one of them out"
                    )

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude or self.glossary or self.keep_placeholders)

    def for_line(self, line: str) -> LineConstraints:
        """What is wanted of the answer to a line. Raises DataError for a placeholder that must not be held."""
        must = list(self.include)
        for source, target in self.glossary:
            if re.search(rf"(?<!\w){re.escape(source)}(?!\w)", line, re.IGNORECASE) and target not in must:
                must.append(target)
        if self.keep_placeholders:
            must += (own := [found[0] for found in PLACEHOLDER_PATTERN.finditer(line)])
            for one, other in product(own, self.exclude):
                if other in one:
                    raise DataError(
                        f"{one!r} of {line[:40]!r} must be held and {other!r} must not; the one holds the other"
                    )
        return LineConstraints(tuple(must), self.exclude)


def build_phrase_constraints(constraints: Sequence[LineConstraints], tokenizer: Tokenizer) -> list[PhraseConstraints]:
    """The same for a search. Raises VocabularyError for a phrase that the model cannot spell."""
    for phrase in dict.fromkeys(phrase for one in constraints for phrase in one.include):
        if tokenizer.decode(tokenizer.encode(phrase)).strip() != phrase.strip():
            raise VocabularyError(
                f"an answer has to hold {phrase!r}, which this model cannot spell; expected what answers are made of"
            )
    spelling = TokenBytes(tokenizer.token_bytes())
    return [PhraseConstraints(spelling, one.include, one.exclude) for one in constraints]
