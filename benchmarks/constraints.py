"""Whether a translator's answers keep to what is asked of them, on held-out texts: phrases, placeholders, tags.

    python benchmarks/constraints.py translate

Phrases are drawn from the references (as Post & Vilar 2018 do: words anywhere, or a stretch of them), so that an
answer that holds them is one that a translator might have given. Tags are put around one to three words of each source.
Where they belong is told by texts that have tags themselves, of all parts of the corpus, for they are few: in the
translators' own answers, from which the tags are taken out, they are put back by the model's attention.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from timing import print_table

from qkv import evaluation, tasks
from qkv.data import corpora
from qkv.data.text.pairs import Pair, Tsv
from qkv.tasks import OutputConstraints, TextGenerator
from qkv.tasks.output_constraints import PLACEHOLDER_PATTERN, LineConstraints
from qkv.tasks.text2text.tags import parse_tags, restore_tags, strip_tags

TAG = re.compile(r"</?[a-z][^<>]*>")
INSIDE = re.compile(r"<([a-z]+)[^<>]*>([^<>]+)</\1>")
MARKS = ".,;:!?()\u201e\u201c\u201d\u2026'\""


@dataclass(frozen=True)
class ReferenceConstraints(OutputConstraints):
    """Something else is wanted of the answer to each line."""

    each: dict[str, LineConstraints] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return True

    def of(self, line: str) -> LineConstraints:
        """What is wanted of the answer to a line."""
        return self.each[line]


@dataclass(frozen=True)
class Texts:
    """Held-out sources, their references, and the answers where nothing is asked."""

    sources: list[str]
    references: list[str]
    plain: list[str]

    def select(self, numbers: Sequence[int]) -> Texts:
        """A part of them."""
        return Texts(*([own[number] for number in numbers] for own in (self.sources, self.references, self.plain)))


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="translation", help="a translator (%(default)s)")
    parser.add_argument("--file", type=Path, default=None, help="a .tsv of pairs; ui-strings unless given")
    parser.add_argument("--count", type=int, default=None, help="the first so many texts; all unless given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runner = tasks.load(options.model)
    assert isinstance(runner, TextGenerator)
    if options.file is None:
        every = [
            corpora.load_pairs("ui-strings", part, source="en", target="de") for part in ("test", "valid", "train")
        ]
    else:
        every = [list(Tsv(options.file))]
    pairs = dict(every[0][: options.count])
    sources, references = list(pairs), list(pairs.values())
    texts = Texts(sources, references, translate(runner, sources))
    print(f"{len(sources):,} texts; BLEU {evaluation.bleu(texts.plain, references).signature}\n")
    measure_phrases(runner, texts)
    measure_placeholders(runner, texts)
    measure_tags(runner, texts, [pair for part in every for pair in part])


def translate(runner: TextGenerator, lines: Sequence[str], wanted: OutputConstraints | None = None) -> list[str]:
    """The best answer to each line."""
    return [found[0].text for found in runner.predict_ranked(lines, constraints=wanted)]


def measure_phrases(runner: TextGenerator, texts: Texts) -> None:
    """Phrases that must be there and words that must not: how many are, and what that does to the scores."""
    rows: list[list[object]] = []
    for name, count, together in (
        ("a word of the reference", 1, True),
        ("2 words of it", 2, False),
        ("3 words of it, a stretch", 3, True),
    ):
        draw = random.Random(1)
        must = [draw_phrases(draw, target, count, together) for target in texts.references]
        rows += compare(runner, texts, f"must: {name}", [LineConstraints(include=one) for one in must])
    draw, never = random.Random(1), []
    for answer, target in zip(texts.plain, texts.references, strict=True):
        wrong = [word for word in split_words(answer) if word not in target and not PLACEHOLDER_PATTERN.search(word)]
        never.append((draw.choice(wrong),) if wrong else ())
    rows += compare(
        runner,
        texts,
        "never: a word of the answer that the reference has not",
        [LineConstraints((), one) for one in never],
    )
    print_table(["", "phrases there", "without asking", "BLEU", "without asking", "chrF", "without asking"], rows)


def split_words(text: str) -> list[str]:
    """The words of a text, without the marks around them; of at least two letters."""
    return [word for one in text.split() if len(word := one.strip(MARKS)) > 1]


def draw_phrases(draw: random.Random, text: str, count: int, together: bool) -> tuple[str, ...]:
    """Words drawn from a text, or one stretch of so many; all of it where it is shorter."""
    if together:
        every = text.split()
        begin = draw.randrange(max(1, len(every) - count + 1))
        return tuple(filter(None, [" ".join(every[begin : begin + count]).strip(MARKS)]))
    every = list(dict.fromkeys(split_words(text)))
    return tuple(draw.sample(every, min(count, len(every))))


def compare(runner: TextGenerator, texts: Texts, name: str, wishes: Sequence[LineConstraints]) -> list[list[object]]:
    """The row of the table: of the texts of which something is asked, if there are any, with and without asking."""
    asked = [number for number, one in enumerate(wishes) if one.include or one.exclude]
    if not asked:
        return []
    some, own = texts.select(asked), [wishes[number] for number in asked]
    found = translate(runner, some.sources, ReferenceConstraints(each=dict(zip(some.sources, own, strict=True))))
    cells: list[object] = [f"{name} ({len(asked):,} texts)"]
    total = sum(len(one.include) + len(one.exclude) for one in own)
    for answers in (found, some.plain):
        there = sum(
            phrase in answer
            for one, answer in zip(own, answers, strict=True)
            for phrase in (*one.include, *one.exclude)
        )
        cells.append(f"{there:,} of {total:,} ({there / total:.1%})")
    for score in (evaluation.bleu, evaluation.chrf):
        cells += [f"{score(answers, some.references).value:.2f}" for answers in (found, some.plain)]
    return [cells]


def measure_placeholders(runner: TextGenerator, texts: Texts) -> None:
    """How many placeholders are as often in the answers as in the sources, and what that does to the score."""
    with_some = texts.select([n for n, source in enumerate(texts.sources) if PLACEHOLDER_PATTERN.search(source)])
    found, rows = translate(runner, with_some.sources, OutputConstraints(keep_placeholders=True)), []
    for name, answers in (("without asking", with_some.plain), ("--placeholders", found)):
        kept = total = whole = 0
        for source, answer in zip(with_some.sources, answers, strict=True):
            there, want = (Counter(one[0] for one in PLACEHOLDER_PATTERN.finditer(text)) for text in (answer, source))
            kept, total, whole = kept + (there & want).total(), total + want.total(), whole + (there == want)
        bleu = evaluation.bleu(answers, with_some.references).value
        rows.append([name, f"{kept:,} of {total:,}", f"{whole:,} of {len(answers):,}", f"{bleu:.2f}"])
    print_table(["placeholders", "kept", "texts with the same ones", "BLEU"], rows)


def measure_tags(runner: TextGenerator, texts: Texts, translators: Sequence[Pair]) -> None:
    """How many texts have all of their tags, well nested, and how many tags are where translators put them."""
    draw = random.Random(1)
    marked = [add_tags(draw, source) for source in texts.sources]
    found = [
        one[0].text
        for one in tasks.translate_tagged(runner, marked, constraints=OutputConstraints(keep_placeholders=True))
    ]
    every = [(TAG.findall(line), TAG.findall(answer)) for line, answer in zip(marked, found, strict=True)]
    whole = sum(sorted(one) == sorted(other) for one, other in every)
    nested = sum(is_well_nested(other) for _, other in every)
    right, total = count_restored_tags(runner, translators)
    print_table(
        ["", "with all of their tags", "with valid nesting", "tags around the same words as the translators' own"],
        [["--tags", *(f"{n:,} of {len(marked):,} texts" for n in (whole, nested)), f"{right:,} of {total:,}"]],
    )


def count_restored_tags(runner: TextGenerator, translators: Sequence[Pair]) -> tuple[int, int]:
    """Of the tags in translators' answers, how many are put back around the same words, and how many there are."""
    pairs = [
        pair for pair in translators if (own := sorted(TAG.findall(pair[0]))) and own == sorted(TAG.findall(pair[1]))
    ]
    right = total = 0
    for begin in range(0, len(pairs), 20):  # as many as the command takes at a time
        some = pairs[begin : begin + 20]
        read = [parse_tags(source) for source, _ in some]
        given = [
            [runner.look(one.text, strip_tags(answer)).answer] for one, (_, answer) in zip(read, some, strict=True)
        ]
        for (_, answer), own in zip(some, restore_tags(runner, read, given), strict=True):
            there = INSIDE.findall(answer)
            total += len(there)
            right += (Counter(there) & Counter(INSIDE.findall(own[0].text))).total()
    return right, total


def add_tags(draw: random.Random, text: str) -> str:
    """A text with <b> around one to three of its words, and <i> around one of these where there are more."""
    every = text.split()
    count = min(len(every), draw.randint(1, 3))
    begin = draw.randrange(len(every) - count + 1)
    chosen = every[begin : begin + count]
    if count > 1:
        within = draw.randrange(count)
        chosen[within] = f"<i>{chosen[within]}</i>"
    return " ".join([*every[:begin], f"<b>{' '.join(chosen)}</b>", *every[begin + count :]])


def is_well_nested(tags: Sequence[str]) -> bool:
    """Whether each tag is closed by its own, the last one first."""
    open_: list[str] = []
    for tag in tags:
        if not tag.startswith("</"):
            open_.append(tag[1:-1].split()[0])  # without its attributes
        elif not open_ or open_.pop() != tag[2:-1]:
            return False
    return not open_


if __name__ == "__main__":
    main()
