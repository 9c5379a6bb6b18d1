"""Inline tags: removed from a line, and put around the corresponding words of its answer.

    Press <b>Save</b> to keep it.   ->   Zum Behalten drücken Sie <b>Speichern</b>.

The weights of cross-attention decide which words these are, in the heads that align best over the given lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from qkv import lens
from qkv.decoding import DecodingConfig
from qkv.errors import DataError
from qkv.lens import Trace
from qkv.lens.alignment import HeadIndex
from qkv.tasks.base import Answer
from qkv.tasks.output_constraints import OutputConstraints
from qkv.tasks.text_generator import TextGenerator

_TAG_PATTERN = re.compile(r"""<(/?)([A-Za-z][\w:.-]*)((?:\s(?:"[^"]*"|'[^']*'|[^<>"'])*)?/?)>""")
_OPENING_PUNCTUATION = "([\u201e\u201c\u00ab\u00bf\u00a1\"'"
_CLOSING_PUNCTUATION = ".,;:!?)]\u201c\u201d\u00bb\u2026\"'"
_QUOTES = "\u201e\u201c\u201d\u00ab\u00bb\"'"
_N_HEADS = 2
_BATCH_SIZE = 20


@dataclass
class Tag:
    """A pair of tags around a part of a text, in characters of the text without tags; one alone closes nothing."""

    opening: str
    start: int
    closing: str = ""
    end: int = -1
    children: list[Tag] = field(default_factory=list)


@dataclass(frozen=True)
class TaggedText:
    """A text without its tags, and the tags."""

    text: str
    tags: list[Tag]


def parse_tags(line: str) -> TaggedText:
    """Remove the tags from a line. A tag that is never closed, or closes nothing, stands alone at its position."""
    whole = Tag("", 0)
    open_, text, last = [whole], "", 0
    for found in _TAG_PATTERN.finditer(line):
        text += line[last : found.start()]
        last = found.end()
        closes, name, rest = found.groups()
        if closes and name in [_get_tag_name(tag) for tag in open_[1:]]:
            while _get_tag_name(open_[-1]) != name:  # what was opened inside and never closed
                open_.pop()
            closed = open_.pop()
            closed.closing, closed.end = found[0], len(text)
            continue
        alone = bool(closes) or rest.endswith("/")
        if alone and text[-1:].isalnum() and line[last : last + 1].isalnum():
            text += " "  # it parted two words, which it has to do no longer
        tag = Tag(found[0], len(text))
        open_[-1].children.append(tag)
        if not alone:
            open_.append(tag)
    text += line[last:]
    _flatten(whole)
    return TaggedText(text, whole.children)


def strip_tags(line: str) -> str:
    """Return a line without its tags."""
    return parse_tags(line).text


def _get_tag_name(tag: Tag) -> str:
    found = _TAG_PATTERN.match(tag.opening)
    return found[2] if found else ""


def _flatten(parent: Tag) -> None:
    """Turn tags that were never closed into single tags, followed by the content that they seemed to hold."""
    flat: list[Tag] = []
    for tag in parent.children:
        _flatten(tag)
        flat.append(tag)
        if tag.end < 0:
            flat += tag.children
            tag.children = []
    parent.children = flat


def translate_tagged(
    model: TextGenerator,
    lines: Iterable[str],
    decoding: DecodingConfig | None = None,
    constraints: OutputConstraints | None = None,
) -> Iterator[list[Answer]]:
    """Answer lines with tags: the text is answered without them, and they are put around the same words again.

    One line in, one list out, as `TextGenerator.predict`. Raises DataError for a model without cross-attention to
    align by.
    """
    rest = iter(lines)
    while chunk := list(islice(rest, _BATCH_SIZE)):
        marked = [parse_tags(line) for line in chunk]
        yield from restore_tags(
            model, marked, list(model.predict_ranked((one.text for one in marked), decoding, constraints=constraints))
        )


def restore_tags(
    model: TextGenerator, tagged: Sequence[TaggedText], answers: Sequence[Sequence[Answer]]
) -> Iterator[list[Answer]]:
    """Return the answers to some lines with the tags that were removed from the lines; raises as `translate_tagged`."""
    looked = {
        number: [model.look(one.text, answer) for answer in own]
        for number, (one, own) in enumerate(zip(tagged, answers, strict=True))
        if one.tags and own[0].tokens
    }
    heads = _find_alignment_heads([one for own in looked.values() for one in own])
    for number, (one, own) in enumerate(zip(tagged, answers, strict=True)):
        if number not in looked:
            yield [replace(answer, text=answer.text + _render_tags(one.tags)) for answer in own]
            continue
        yield [
            replace(
                answer, text=insert_tags(one, answer.text, _compute_word_weights(seen, heads, one.text, answer.text))
            )
            for answer, seen in zip(own, looked[number], strict=True)
        ]


def _find_alignment_heads(results: Sequence[Trace]) -> list[HeadIndex]:
    if not results:
        return []
    traces: list[Trace] = list(results)
    if not any(attention.place.endswith("cross_attention") for attention in traces[0]):
        raise DataError("tags are placed by cross-attention, which this model has none of; take the tags out")
    return [head for head, _ in lens.find_best_heads(traces, n_heads=_N_HEADS)]


def _compute_word_weights(result: Trace, heads: Sequence[HeadIndex], source: str, answer: str) -> Tensor:
    """Return the attention of each word of the answer to each word of the source, (target words, source words)."""
    sources = _assign_words(result.source_tokens, source)
    targets = _assign_words(result.target_tokens[1:], answer)
    sources += [None] * (len(result.source_tokens) - len(sources))
    targets += [None] * (len(result.target_tokens) - 1 - len(targets))
    count = result[heads[0][0]].queries
    targets += [None] * (count - len(targets))
    found = lens.align(result, heads, source_word_ids=sources, target_word_ids=targets[:count]).weights
    size = len(_find_word_spans(answer)), len(_find_word_spans(source))
    whole = torch.zeros(size)
    whole[: found.shape[0], : found.shape[1]] = found[: size[0], : size[1]]
    return whole


def _find_word_spans(text: str) -> list[tuple[int, int]]:
    """Return the start and end of each word."""
    return [found.span() for found in re.finditer(r"\S+", text)]


def _assign_words(tokens: Sequence[str], text: str) -> list[int | None]:
    """Return the word of each token, None for tokens that belong to no word, such as an end token."""
    words, found, place = _find_word_spans(text), list[int | None](), 0
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


def insert_tags(tagged: TaggedText, answer: str, weights: Tensor) -> str:
    """Return the answer with the tags of its source, by the weights from its words to those of the source."""
    sources, targets = _find_word_spans(tagged.text), _find_word_spans(answer)
    shares = _align_unique_words(weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-9), tagged.text, answer)
    inserted: list[tuple[int, int, str]] = []  # where, in which order there, and what

    def place(tags: Sequence[Tag], free: list[int], within: tuple[int, int], depth: int) -> None:
        """Assign words of `free` to each of some sibling tags, within the words of their parent."""
        for tag in sorted(tags, key=lambda one: one.start - one.end):  # those around most come first
            if tag.end < 0:
                at = _find_insertion_point(tag.start, sources, targets, shares, answer)
                inserted.append((at, 0, tag.opening))
                continue
            held = [n for n, (begin, end) in enumerate(sources) if begin < tag.end and end > tag.start]
            rivals = [n for n in range(len(sources)) if n not in held]
            window = _select_words(shares, held, rivals, free)
            if not window or not held:
                at = _find_insertion_point(tag.start, sources, targets, shares, answer)
                inserted.append((at, 0, tag.opening + tag.closing))
                continue
            begin, end = targets[window[0]][0], targets[window[-1]][1]
            begin, end = _trim_punctuation(
                tagged.text[tag.start : tag.end], answer, max(begin, within[0]), min(end, within[1])
            )
            inserted.append((begin, depth + 1, tag.opening))
            inserted.append((end, -depth - 1, tag.closing))
            place(tag.children, list(window), (begin, end), depth + 1)
            for number in window:
                free.remove(number)

    place(tagged.tags, list(range(len(targets))), (0, len(answer)), 0)
    for at, _, tag in sorted(reversed(inserted), key=lambda one: (-one[0], -one[1])):  # those alone keep their order
        answer = answer[:at] + tag + answer[at:]
    return answer


def _align_unique_words(weights: Tensor, source: str, answer: str) -> Tensor:
    """Align each word that is unique in the source and in the answer with itself alone; return the changed weights."""
    sources, targets = (
        [word.strip(_OPENING_PUNCTUATION + _CLOSING_PUNCTUATION) for word in text.split()] for text in (source, answer)
    )
    for number, word in enumerate(sources):
        if word and sources.count(word) == targets.count(word) == 1:
            weights[:, number] = 0.0
            weights[targets.index(word)] = torch.eye(len(sources))[number]
    return weights


def _select_words(weights: Tensor, held: Sequence[int], rivals: Sequence[int], free: Sequence[int]) -> list[int]:
    """Return the run of free answer words that is aligned best with the words of a tag, and least with others."""
    if not rivals:
        return list(free)
    gain = (weights[:, list(held)].sum(dim=1) - weights[:, list(rivals)].amax(dim=1)).tolist()
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
    return [max(free, key=lambda number: float(weights[number, list(held)].sum()))]


def _trim_punctuation(source: str, answer: str, start: int, end: int) -> tuple[int, int]:
    """Leave marks at the edges outside, such as a full stop, unless the source's tags hold such a one there."""
    end = start + len(answer[start:end].rstrip(_exclude_mark(_CLOSING_PUNCTUATION, source[-1:]))) or end
    kept = answer[start:end].lstrip(_exclude_mark(_OPENING_PUNCTUATION, source[:1]))
    return end - len(kept) if kept else start, end


def _exclude_mark(marks: str, excluded: str) -> str:
    """Remove a punctuation mark from a list; a quotation mark removes all, because languages differ in these."""
    return "".join(mark for mark in marks if mark not in (_QUOTES if excluded and excluded in _QUOTES else excluded))


def _find_insertion_point(
    position: int, sources: Sequence[tuple[int, int]], targets: Sequence[tuple[int, int]], weights: Tensor, answer: str
) -> int:
    """Return the position of a single tag: before the words that are aligned with the word after it."""
    after = [number for number, (begin, end) in enumerate(sources) if begin >= position]
    if not after or not targets:
        return len(answer)
    if after[0] == 0:
        return 0
    return targets[int(weights[:, after[0]].argmax())][0]


def _render_tags(tags: Sequence[Tag]) -> str:
    return "".join(tag.opening + _render_tags(tag.children) + tag.closing for tag in tags)
