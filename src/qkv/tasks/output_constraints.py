"""Constraints on answers: phrases to include or exclude, glossary terms, and the placeholders of the source."""

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

_CONVERSION = r"(?:\d+|\*)?(?:\.(?:\d+|\*)?)?(?:hh?|ll?|[Lqjzt])?[diouxXeEfFgGaAcCsSpnr@]"
_FORMAT = r"(?::(?:[^{}]|\{[^{}]*\})*)?"  # after a colon; it may hold fields of its own
PLACEHOLDER_PATTERN = re.compile(
    "|".join(
        (
            rf"%(?:\(\w+\)|\d+\$)[-+ #0']*{_CONVERSION}",  # printf: %(name)s, %1$05d
            rf"%%|%[-+#0']*{_CONVERSION}(?!\w)",  # %s, %5.1f, and %% for a percent sign
            r"\{\{\{[^{}]*\}\}\}|\{\{[^{}]*\}\}",  # mustache: {{ name }}, {{{ name }}}
            # ICU: {count, plural, one {# file} other {# files}}, {day, date, short}
            r"\{\s*\w+\s*,\s*(?:plural|select|selectordinal)\s*,(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}",
            r"\{\s*\w+\s*,\s*(?:number|date|time|spellout|ordinal|duration)\b[^{}]*\}",
            rf"[$%#]?\{{\s*[^{{}}\s,:]*\s*(?:,\s*-?\d+)?{_FORMAT}\}}",  # {}, { name }, ${x}, {v:,.2f}, {0,10:N2}
            r"\$t\([^()]+\)",  # i18next
        )
    )
)
"""The placeholders in the texts of program interfaces, which the program replaces by values."""


@dataclass(frozen=True)
class LineConstraints:
    """The phrases that the answer to one line must contain, each as often as given, and those that it must not."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def violations(self, answer: str) -> list[str]:
        """Describe each constraint that an answer violates."""
        lacking = [
            f"{phrase!r} is missing" for phrase, times in Counter(self.include).items() if answer.count(phrase) < times
        ]
        return lacking + [f"{phrase!r} is there" for phrase in self.exclude if phrase in answer]


@dataclass(frozen=True)
class OutputConstraints:
    """The constraints on the answers to all lines.

    include, exclude: phrases that every answer must, and must not, contain. glossary: pairs of a source term and a
    target term; if a source contains the first as a word, in any case, its answer must contain the second.
    keep_placeholders: an answer must contain each placeholder of its source, as often as the source does.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    glossary: tuple[Pair, ...] = ()
    keep_placeholders: bool = False

    def __post_init__(self) -> None:
        if not all([*self.include, *self.exclude, *(part.strip() for pair in self.glossary for part in pair)]):
            raise DataError("an empty phrase was given to include or exclude; expected some text")
        for one in self.include:
            for other in self.exclude:
                if other in one:
                    raise DataError(
                        f"{one!r} is to be included and {other!r} excluded, but it contains that; remove one"
                    )
        for source, target in self.glossary:
            for other in self.exclude:
                if other in target:
                    raise DataError(
                        f"{target!r} is to be included for lines with {source!r}, and {other!r}, which it contains, is "
                        "excluded; remove one of them"
                    )

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude or self.glossary or self.keep_placeholders)

    def for_line(self, line: str) -> LineConstraints:
        """Return the constraints on the answer to a line. Raises DataError for a placeholder that is excluded."""
        must = list(self.include)
        for source, target in self.glossary:
            if re.search(rf"(?<!\w){re.escape(source)}(?!\w)", line, re.IGNORECASE) and target not in must:
                must.append(target)
        if self.keep_placeholders:
            must += (own := [found[0] for found in PLACEHOLDER_PATTERN.finditer(line)])
            for one, other in product(own, self.exclude):
                if other in one:
                    raise DataError(
                        f"{one!r} of {line[:40]!r} is to be kept and {other!r} excluded, but the first contains the "
                        "second; remove one"
                    )
        return LineConstraints(tuple(must), self.exclude)


def build_phrase_constraints(constraints: Sequence[LineConstraints], tokenizer: Tokenizer) -> list[PhraseConstraints]:
    """Build the constraints of a search. Raises VocabularyError for a phrase that cannot be encoded."""
    for phrase in dict.fromkeys(phrase for one in constraints for phrase in one.include):
        if tokenizer.decode(tokenizer.encode(phrase)).strip() != phrase.strip():
            raise VocabularyError(
                f"{phrase!r} is to be included, which this model cannot spell; expected text made of its target tokens"
            )
    spelling = TokenBytes(tokenizer.token_bytes())
    return [PhraseConstraints(spelling, one.include, one.exclude) for one in constraints]
