"""The tables of docs/explanation/what-attention-shows.md: stress, the gender of an article, and models without a head.

    python benchmarks/findings.py stress
    python benchmarks/findings.py heads
    QKV_DATA=... python benchmarks/findings.py gender runs/multi30k

Sentences and words that the model did not learn from; greedy answers, kept as they are where something is hidden.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from qkv import lens, tasks
from qkv.data import corpora
from qkv.decoding import Greedy
from qkv.tap import Tap
from qkv.tasks import TextGenerator

FEMININE, OTHERS = ["▁eine", "▁einer"], ["▁ein", "▁einen", "▁einem", "▁eines"]
ARTICLES = FEMININE + OTHERS


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("finding", choices=["stress", "heads", "gender"])
    parser.add_argument("model", nargs="?", default="pronunciation", help="of gender: a translator into German")
    parser.add_argument("--count", type=int, default=None, help="words (120) or sentences (200)")
    options = parser.parse_args()
    torch.manual_seed(0)
    runner = tasks.load(options.model)
    assert isinstance(runner, TextGenerator)
    runner = replace(runner, decoding=replace(runner.decoding, method=Greedy()))
    {"stress": measure_stress, "heads": measure_heads, "gender": measure_gender}[options.finding](runner, options.count)


def load_words(count: int) -> list[tuple[str, set[str]]]:
    """Some words of 5 to 10 letters with all their pronunciations, drawn from the dictionary's validation part."""
    listed: dict[str, set[str]] = {}
    for word, sounds in corpora.load_pairs("cmudict", split="valid"):
        if word.isalpha() and 5 <= len(word) <= 10:
            listed.setdefault(word, set()).add(sounds)
    return random.Random(1).sample(sorted(listed.items()), count)


def measure_stress(model: TextGenerator, count: int | None) -> None:
    """How probable a second primary stress is where the decoder cannot see the first."""
    marked = torch.tensor([name.endswith("1") for name in model.token_names(range(model.target_tokenizer.size))])
    draw, found = random.Random(2), []
    for word, _ in load_words(count or 120):
        answer = next(model.predict_ranked([word]))[0]
        sounds = answer.text.split()
        first = next((place for place, sound in enumerate(sounds) if sound.endswith("1")), None)
        if first is None:
            continue
        later = next((place for place in range(first, len(sounds)) if sounds[place].endswith("0")), None)
        if later is None:
            continue
        others = [place for place in range(later) if place != first] or [first]

        def chance(hidden: Sequence[int], answer: Any = answer, later: int = later, word: str = word) -> float:
            tap: Tap = lens.knock_out("decoder.*.self_attention", hidden) if hidden else lens.Compose()
            logits = model.look(word, answer, tap=tap).logits
            assert logits is not None
            return float(logits[0, later].softmax(-1)[marked].sum())

        found.append((chance([]), chance([first + 1]), chance([draw.choice(others) + 1])))
    print("| hidden from the decoder's self-attention | a second primary stress, mean probability | above one half |")
    print("| --- | ---: | ---: |")
    names = ("nothing", "the stressed vowel", "another sound before, at random")
    for name, values in zip(names, zip(*found, strict=True), strict=True):
        print(f"| {name} | {sum(values) / len(values):.3f} | {sum(one > 0.5 for one in values)} of {len(values)} |")


def measure_heads(model: TextGenerator, count: int | None) -> None:
    """How many words come out right without each of the heads."""
    drawn = load_words(count or 120)

    def right(tap: Tap) -> int:
        answers = model.predict_ranked([word for word, _ in drawn], tap=tap)
        return sum(one[0].text in own for one, (_, own) in zip(answers, drawn, strict=True))

    trace = model.look(drawn[0][0])
    print(f"| switched off | right of {len(drawn)} |\n| --- | ---: |\n| nothing | {right(lens.Compose())} |")
    for attention in trace:
        for head in range(attention.heads):
            print(
                f"| `{attention.place}` head {head} | {right(lens.ablate(attention.place, heads=[head]))} |", flush=True
            )


def measure_gender(runner: TextGenerator, count: int | None) -> None:
    """How probable an article stays where the noun that comes after it, or something else, is hidden from some."""
    lines = [source for source, _ in corpora.load_pairs("multi30k", split="test_2016_flickr", source="en", target="de")]
    looked = [runner.look(line) for line in lines[: count or 200]]
    best = [head for head, _ in lens.find_best_heads([one.trace for one in looked[:50]], n_heads=2)]
    numbers = [
        number
        for number, name in enumerate(runner.token_names(range(runner.target_tokenizer.size)))
        if name in ARTICLES
    ]
    draw, found = random.Random(2), []
    for one in looked:
        names, sources = one.target_tokens, one.source_tokens
        weights = lens.align(one.trace, best).weights
        for place in range(1, len(names) - 1):
            if names[place] not in ARTICLES or not names[place + 1].startswith("▁"):
                continue
            noun = int(weights[place].argmax())  # of the token after the article; the begin token has no row
            article = next((at for at in range(noun - 1, max(-1, noun - 4), -1) if sources[at] in ("▁a", "▁an")), None)
            if article is None or noun != article + 1:
                continue
            others = [at for at in range(len(sources) - 2) if at not in (noun, article)]
            chances = _article_probabilities(runner, one, place, numbers, noun, article, draw.choice(others))
            found.append((names[place], chances))
    print(f"aligned by {', '.join(f'{place} head {head}' for place, head in best)}\n")
    for title, forms in (("feminine", FEMININE), ("masculine or neuter", OTHERS)):
        some = [chances for said, chances in found if said in forms]
        print(f"| hidden, {len(some)} articles, {title} | mean probability | another article is more probable |")
        print("| --- | ---: | ---: |")
        for name in some[0]:
            values = [one[name] for one in some]
            share = sum(changed for _, changed in values) / len(values)
            print(f"| {name} | {sum(value for value, _ in values) / len(values):.2f} | {share:.0%} |")
        print()


def _article_probabilities(
    runner: TextGenerator, looked: Any, place: int, numbers: Sequence[int], noun: int, article: int, other: int
) -> dict[str, tuple[float, bool]]:
    """For each way of hiding: the article's probability, and whether another article has a greater one."""

    def crossing(at: int) -> Tap:
        return lens.knock_out("decoder.*.cross_attention", [at])

    reading = lens.knock_out("encoder.*.self_attention", [noun])
    taps = {
        "nothing": lens.Compose(),
        "the noun from the decoder": crossing(noun),
        "the noun from the encoder's other tokens": reading,
        "the noun from both": lens.Compose(crossing(noun), reading),
        "the English article from the decoder": crossing(article),
        "another token from the decoder, at random": crossing(other),
    }
    said = int(looked.target[0, place])
    told = {}
    for name, tap in taps.items():
        logits = runner.look(looked.text, looked.answer, tap=tap).logits[0, place - 1].softmax(-1)
        told[name] = (float(logits[said]), float(logits[list(numbers)].max()) > float(logits[said]))
    return told


if __name__ == "__main__":
    main()
