"""Words and sentences of texts in any script, as the metrics count them."""

from __future__ import annotations

import re
import unicodedata

_JOINERS = "\u200c\u200d"  # between the letters of a word, as in Persian and in Indic scripts
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\uff07": "'"})
_UNSEGMENTED = re.compile(
    # Thai, Lao, Myanmar, Khmer, kana, Han: scripts without spaces between words
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003134f]"
)
_SENTENCE_END = re.compile(
    r"""(?:[.!?\u0964\u0965\u061f\u06d4\u1362][\"')\]\u00bb\u201d\u2019]?\s+|[\u3002\uff01\uff1f\uff61][\u300d\u300f\u201d]?\s*)"""
)
_OPENING = "\"'([\u00ab\u201c\u2018\u300c\u300e"


def is_word_character(character: str) -> bool:
    """Return whether a character belongs to a word: a letter, a number, or a mark on one of them."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


def normalize_transcript(line: str) -> str:
    """Return a transcript as its words alone, so that spelling conventions do not count.

    It is in lower case and in Unicode's form NFC. Letters, numbers, marks, apostrophes and the joiners within a word
    stay; everything else separates words.
    """
    text = unicodedata.normalize("NFC", line.translate(_APOSTROPHES).replace("\u0130", "i").lower())
    kept = []
    for before, character, after in zip(" " + text, text, text[1:] + " ", strict=False):
        joins = character in _JOINERS and is_word_character(before) and is_word_character(after)
        kept.append(character if joins or character == "'" or is_word_character(character) else " ")
    return " ".join("".join(kept).split())


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case and in Unicode's form NFC: runs of letters, numbers and marks.

    In a script without spaces between words, each letter with its marks is a word.
    """
    words: list[str] = []
    is_open = False  # whether the next character may continue the last word
    for character in unicodedata.normalize("NFC", text.lower()):
        if not is_word_character(character):
            is_open = is_open and character in _JOINERS
            continue
        is_mark = not character.isalnum()
        has_spaces = is_open and not (_UNSEGMENTED.match(character) or _UNSEGMENTED.match(words[-1][-1]))
        if is_open and (is_mark or has_spaces):
            words[-1] += character
        else:
            words.append(character)
        is_open = True
    return words


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text.

    A sentence ends at a full stop, an exclamation or a question mark of any script, before white space and a character
    that is not a small letter; the marks of Chinese and Japanese need no white space.
    """
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        following = text[end.end() :].lstrip(_OPENING)[:1]
        if following.isalnum() and not following.islower():
            sentences.append(text[start : end.end()].strip())
            start = end.end()
    return [one for one in [*sentences, text[start:].strip()] if one]
