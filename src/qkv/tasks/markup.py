"""Inline tags: taken out of a line, and put around what stands for the same words in its answer.

    Press <b>Save</b> to keep it.   ->   Zum Behalten drücken Sie <b>Speichern</b>.

Which words these are, the weights of cross-attention say: of the heads that align best over the lines at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from qkv import lens
from qkv.decoding import Decoding
from qkv.errors import DataError
from qkv.lens import Trace
from qkv.lens.alignment import Head
from qkv.tasks.runner import Answer, Looked, Runner
from qkv.tasks.wishes import Wanted

_TAG = re.compile(r"""<(/?)([A-Za-z][\w:.-]*)((?:\s(?:"[^"]*"|'[^']*'|[^<>"'])*)?/?)>""")
_BEFORE = "([\u201e\u201c\u00ab\u00bf\u00a1\"'"
_AFTER = ".,;:!?)]\u201c\u201d\u00bb\u2026\"'"
_QUOTES = "\u201e\u201c\u201d\u00ab\u00bb\"'"
_HEADS = 2
_AT_ONCE = 20


@dataclass
class Tag:
    """A pair of tags around a part of a text, in characters of the text without tags; one alone closes nothing."""

    opening: str
    begin: int
    closing: str = ""
    end: int = -1
    inside: list[Tag] = field(default_factory=list)


@dataclass(frozen=True)
class Marked:
    """A text without its tags, and these."""

    text: str
    tags: list[Tag]


def parse(line: str) -> Marked:
    """Take the tags out of a line. One that is never closed, or closes nothing, stands alone at its place."""
    whole = Tag("", 0)
    open_, text, last = [whole], "", 0
    for found in _TAG.finditer(line):
        text += line[last : found.start()]
        last = found.end()
        closes, name, rest = found.groups()
        if closes and name in [_name(tag) for tag in open_[1:]]:
            while _name(open_[-1]) != name:  # what was opened inside and never closed
                open_.pop()
            closed = open_.pop()
            closed.closing, closed.end = found[0], len(text)
            continue
        alone = bool(closes) or rest.endswith("/")
        if alone and text[-1:].isalnum() and line[last : last + 1].isalnum():
            text += " "  # it parted two words, which it has to do no longer
        tag = Tag(found[0], len(text))
        open_[-1].inside.append(tag)
        if not alone:
            open_.append(tag)
    text += line[last:]
    _flatten(whole)
    return Marked(text, whole.inside)


def without_tags(line: str) -> str:
    """A line without its tags."""
    return parse(line).text


def _name(tag: Tag) -> str:
    found = _TAG.match(tag.opening)
    return found[2] if found else ""


def _flatten(above: Tag) -> None:
    """What was never closed stands alone, and what it seemed to hold stands beside it."""
    flat: list[Tag] = []
    for tag in above.inside:
        _flatten(tag)
        flat.append(tag)
        if tag.end < 0:
            flat += tag.inside
            tag.inside = []
    above.inside = flat


def answer_marked(
    runner: Runner, lines: Iterable[str], decoding: Decoding | None = None, wanted: Wanted | None = None
) -> Iterator[list[Answer]]:
    """Answer lines that hold tags: their texts are answered without, and the tags put where these words went.

    One line in, one list out, as `Runner.run`. Raises DataError for a model without cross-attention to align by.
    """
    rest = iter(lines)
    while chunk := list(islice(rest, _AT_ONCE)):
        marked = [parse(line) for line in chunk]
        yield from put_back(runner, marked, list(runner.run((one.text for one in marked), decoding, wanted=wanted)))


def put_back(runner: Runner, marked: Sequence[Marked], answered: Sequence[Sequence[Answer]]) -> Iterator[list[Answer]]:
    """Answers to the texts of some lines, with the tags that were taken out of these; raises as `answer_marked`."""
    looked = {
        number: [runner.look(one.text, answer) for answer in own]
        for number, (one, own) in enumerate(zip(marked, answered, strict=True))
        if one.tags and own[0].tokens
    }
    heads = _aligning([one for own in looked.values() for one in own])
    for number, (one, own) in enumerate(zip(marked, answered, strict=True)):
        if number not in looked:
            yield [replace(answer, text=answer.text + _all(one.tags)) for answer in own]
            continue
        yield [
            replace(answer, text=placed(one, answer.text, _weights(seen, heads, one.text, answer.text)))
            for answer, seen in zip(own, looked[number], strict=True)
        ]


def _aligning(looked: Sequence[Looked]) -> list[Head]:
    if not looked:
        return []
    traces: list[Trace] = [one.trace for one in looked]
    if not any(attention.place.endswith("cross_attention") for attention in traces[0]):
        raise DataError("tags are placed by cross-attention, which this model has none of; take the tags out")
    return [head for head, _ in lens.best_heads(traces, count=_HEADS)]


def _weights(looked: Looked, heads: Sequence[Head], source: str, answer: str) -> Tensor:
    """What each word of the answer takes from each word of the source, (target words, source words)."""
    sources = _spread(looked.source_tokens, source)
    targets = _spread(looked.target_tokens[1:], answer)
    sources += [None] * (len(looked.source_tokens) - len(sources))
    targets += [None] * (len(looked.target_tokens) - 1 - len(targets))
    count = looked.trace[heads[0][0]].queries
    targets += [None] * (count - len(targets))
    found = lens.align(looked.trace, heads, source_words=sources, target_words=targets[:count]).weights
    size = len(_words(answer)), len(_words(source))
    whole = torch.zeros(size)
    whole[: found.shape[0], : found.shape[1]] = found[: size[0], : size[1]]
    return whole


def _words(text: str) -> list[tuple[int, int]]:
    """Where words begin and end."""
    return [found.span() for found in re.finditer(r"\S+", text)]


def _spread(tokens: Sequence[str], text: str) -> list[int | None]:
    """The word of each token, None for those that stand for no part of the text, such as an end token."""
    words, found, place = _words(text), list[int | None](), 0
    letters = [(character, number) for number, (begin, end) in enumerate(words) for character in text[begin:end]]
    for token in tokens:
        own = token.replace("\u2581", "")
        own = re.sub(r"(<0x[0-9A-F]{2}>)+", "\ufffd", own)
        if not own:
            found.append(letters[place][1] if place < len(letters) else None)
        elif place < len(letters) and (own.startswith("\ufffd") or letters[place][0] == own[0]):
            found.append(letters[place][1])
            place += len(own)
        else:
            found.append(None)
    return found


def placed(marked: Marked, answer: str, weights: Tensor) -> str:
    """The answer with the tags of its source, given what its words take from the source's, (target, source words)."""
    sources, targets = _words(marked.text), _words(answer)
    shares = _kept(weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-9), marked.text, answer)
    inserted: list[tuple[int, int, str]] = []  # where, in which order there, and what

    def place(tags: Sequence[Tag], free: list[int], within: tuple[int, int], depth: int) -> None:
        """Give each of some tags beside each other words out of `free`, which those above them hold `within`."""
        for tag in sorted(tags, key=lambda one: one.begin - one.end):  # those around most come first
            if tag.end < 0:
                at = _before(tag.begin, sources, targets, shares, answer)
                inserted.append((at, 0, tag.opening))
                continue
            held = [n for n, (begin, end) in enumerate(sources) if begin < tag.end and end > tag.begin]
            rivals = [n for n in range(len(sources)) if n not in held]
            window = _window(shares, held, rivals, free)
            if not window or not held:
                at = _before(tag.begin, sources, targets, shares, answer)
                inserted.append((at, 0, tag.opening + tag.closing))
                continue
            begin, end = targets[window[0]][0], targets[window[-1]][1]
            begin, end = _trimmed(marked.text[tag.begin : tag.end], answer, max(begin, within[0]), min(end, within[1]))
            inserted.append((begin, depth + 1, tag.opening))
            inserted.append((end, -depth - 1, tag.closing))
            place(tag.inside, list(window), (begin, end), depth + 1)
            for number in window:
                free.remove(number)

    place(marked.tags, list(range(len(targets))), (0, len(answer)), 0)
    for at, _, tag in sorted(reversed(inserted), key=lambda one: (-one[0], -one[1])):  # those alone keep their order
        answer = answer[:at] + tag + answer[at:]
    return answer


def _kept(shares: Tensor, source: str, answer: str) -> Tensor:
    """What words take, where one that stands once in the source and once in the answer takes from itself alone."""
    sources, targets = ([word.strip(_BEFORE + _AFTER) for word in text.split()] for text in (source, answer))
    for number, word in enumerate(sources):
        if word and sources.count(word) == targets.count(word) == 1:
            shares[:, number] = 0.0
            shares[targets.index(word)] = torch.eye(len(sources))[number]
    return shares


def _window(shares: Tensor, held: Sequence[int], rivals: Sequence[int], free: Sequence[int]) -> list[int]:
    """The stretch of free words of the answer that takes most from the words held, and little from their rivals."""
    if not rivals:
        return list(free)
    gain = (shares[:, list(held)].sum(dim=1) - shares[:, list(rivals)].amax(dim=1)).tolist()
    best: tuple[float, list[int]] = (0.0, [])
    run: list[int] = []
    total = 0.0
    for number in free:
        if run and (number != run[-1] + 1 or total <= 0):
            run, total = [], 0.0
        run, total = [*run, number], total + gain[number]
        if total > best[0]:
            best = total, run
    if best[1] or not free:
        return best[1]
    return [max(free, key=lambda number: float(shares[number, list(held)].sum()))]


def _trimmed(source: str, answer: str, begin: int, end: int) -> tuple[int, int]:
    """Leave marks at the edges outside, such as a full stop, unless the source's tags hold such a one there."""
    end = begin + len(answer[begin:end].rstrip(_others(_AFTER, source[-1:]))) or end
    kept = answer[begin:end].lstrip(_others(_BEFORE, source[:1]))
    return end - len(kept) if kept else begin, end


def _others(marks: str, held: str) -> str:
    """Marks without one that is held; a quotation mark stands for all, which differ by language."""
    return "".join(mark for mark in marks if mark not in (_QUOTES if held and held in _QUOTES else held))


def _before(
    at: int, sources: Sequence[tuple[int, int]], targets: Sequence[tuple[int, int]], shares: Tensor, answer: str
) -> int:
    """Where a tag that stands alone goes: before what stands for the word after it."""
    after = [number for number, (begin, end) in enumerate(sources) if begin >= at]
    if not after or not targets:
        return len(answer)
    if after[0] == 0:
        return 0
    return targets[int(shares[:, after[0]].argmax())][0]


def _all(tags: Sequence[Tag]) -> str:
    return "".join(tag.opening + _all(tag.inside) + tag.closing for tag in tags)
