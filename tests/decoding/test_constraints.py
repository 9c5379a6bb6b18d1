"""Phrases that answers must and must not hold, and tags that follow their words."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv import tasks
from qkv.cli import main
from qkv.data.text.pairs import Tsv
from qkv.decoding import (
    Beam,
    DecodingConfig,
    Greedy,
    LengthLimit,
    LengthPenalty,
    Sample,
    SearchRules,
    run_beam_search,
)
from qkv.decoding.constraints import PhraseConstraints, TokenBytes, allocate_beam
from qkv.errors import ConfigError, DataError, VocabularyError
from qkv.models import build
from qkv.tasks import TASKS, OutputConstraints, TextGenerator, Transformer
from qkv.tasks.model_folder import Card
from qkv.tasks.output_constraints import PLACEHOLDER_PATTERN, build_phrase_constraints
from qkv.tasks.text2text.data import PreparedPairs
from qkv.tasks.text2text.tags import TaggedText, insert_tags, parse_tags
from qkv.text import train

PIECES = [b"", b"", b"a", b"b", b" a", b"ab", b" "]
BOS, EOS = 0, 1


class Table:
    """Log-probabilities that depend on the last token alone."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(len(PIECES), len(PIECES), generator=generator) * 2

    def step(self, tokens: Any, state: Any) -> Any:
        return self.table[tokens], state


class Nothing:
    def reorder(self, index: Any) -> Nothing:
        return self


def enumerate_outputs(seed: int, longest: int) -> dict[tuple[int, ...], float]:
    """Every answer there is, with its log-probability."""
    log_probs = Table(seed).table.log_softmax(-1)
    log_probs[:, BOS] = -torch.inf
    found = {}
    for length in range(longest):
        for body in product(range(2, len(PIECES)), repeat=length):
            path = (BOS, *body, EOS)
            found[path[1:]] = sum(float(log_probs[a, b]) for a, b in zip(path, path[1:], strict=False))
    return found


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(["a", "ab", "ba", "b a", "bb"]), max_size=2), st.booleans())
def test_a_wide_beam_finds_the_best_of_all_answers_that_keep_to_it(seed: int, must: list[str], some: bool) -> None:
    never = ["aa"] if some and "aa" not in "".join(must) else []
    phrases = PhraseConstraints(TokenBytes(PIECES), must, never)
    [[best]] = run_beam_search(
        Table(seed),
        Nothing(),
        SearchRules([5], BOS, EOS, suppress_tokens=[BOS], constraints=[phrases]),
        Beam(300, LengthPenalty("power", 0.0)),
    )
    allowed = {
        tokens: value
        for tokens, value in enumerate_outputs(seed, 5).items()
        if all(spell(tokens).count(one) >= times for one, times in Counter(must).items())
        and not any(one in spell(tokens) for one in never)
    }
    assert best.log_probability == pytest.approx(max(allowed.values()), abs=1e-4) and best.tokens in allowed


def spell(tokens: tuple[int, ...]) -> str:
    return b"".join(PIECES[token] for token in tokens).decode()


@given(st.integers(0, 10**6), st.sampled_from(["aba", "b a", "bbb", "ab ab"]))
def test_a_narrow_beam_holds_what_it_must(seed: int, phrase: str) -> None:
    constraints = SearchRules(
        [9], BOS, EOS, suppress_tokens=[BOS], constraints=[PhraseConstraints(TokenBytes(PIECES), [phrase])]
    )
    [[best]] = run_beam_search(Table(seed), Nothing(), constraints, Beam(2))
    assert best.is_finished and phrase in spell(best.tokens)


def test_a_phrase_is_held_whatever_it_is_spelt_with() -> None:
    phrases = PhraseConstraints(TokenBytes(PIECES), ["aab"])
    assert phrases.num_included_tokens == 2  # a, ab
    assert not phrases.is_unmet([4, 5]) and not phrases.is_unmet([2, 2, 3]) and phrases.is_unmet([4, 4])
    assert [phrases.find_bank(tokens) for tokens in ([], [3], [3, 4], [4, 2], [4, 5])] == [0, 0, 1, 2, 3]
    assert phrases.advancing_tokens([3, 2]) == {2, 5} and phrases.advancing_tokens([3]) == {
        4
    }  # a word ends before another begins
    apart = PhraseConstraints(TokenBytes([b"", b"", b"a", b"b", b" "]), ["a b"])
    assert apart.advancing_tokens([2]) == {4} and apart.advancing_tokens([]) == {
        2
    }  # a space goes on with a phrase, and begins none
    twice = PhraseConstraints(TokenBytes(PIECES), ["ab", "ab"])
    assert twice.is_unmet([5]) and not twice.is_unmet([5, 2, 3])


def test_what_must_not_be_held_is_not_completed() -> None:
    phrases = PhraseConstraints(TokenBytes(PIECES), exclude=["ba"])
    assert set(phrases.banned_tokens([3])) == {2, 5} and phrases.banned_tokens([2]) == []
    assert set(PhraseConstraints(TokenBytes(PIECES), exclude=["b"]).banned_tokens([])) == {3, 5}


def test_banks_share_a_beam() -> None:
    assert allocate_beam([0, 0, 0, 2, 1, 0], 4) == [0, 1, 3, 4] and allocate_beam([0, 1], 4) == [0, 1]


def runner() -> TextGenerator:
    torch.manual_seed(0)
    tokenizer = train(["the cat sat on the mat", "die Katze {name} saß (%s) auf der Matte", "<b>"] * 3, "bpe", 300)
    shape = Transformer(16, 2, 16, 1, 1).spec(tokenizer.size, tokenizer.size, shared=True)
    decoding = DecodingConfig(Beam(3), LengthLimit(1.0, 25))
    return TextGenerator(build(shape).eval(), tokenizer, tokenizer, TASKS["translation"], decoding)


@pytest.fixture(scope="module")
def model() -> TextGenerator:
    return runner()


def test_answers_keep_to_what_is_wanted(model: TextGenerator) -> None:
    wanted = OutputConstraints(
        include=("Katze",), exclude=("a m",), glossary=(("Mat", "Matte"),), keep_placeholders=True
    )
    lines = ["the cat {name}", "on the mat, twice %s and %s", ""]
    for line, [answer, *_] in zip(lines, model.predict_ranked(lines, constraints=wanted), strict=True):
        assert not line or wanted.for_line(line).violations(answer.text) == []
    assert wanted.for_line(lines[1]).include == ("Katze", "Matte", "%s", "%s")
    assert wanted.for_line("no format").include == ("Katze",)
    plain = list(model.predict_ranked(lines))
    assert [one[0].text for one in plain] == [
        one[0].text for one in model.predict_ranked(lines, constraints=OutputConstraints())
    ]
    for method in (Greedy(), Sample()):
        [[answer]] = model.predict_ranked(
            ["the cat"], DecodingConfig(method, LengthLimit(1.0, 9)), constraints=OutputConstraints(exclude=("e", "t"))
        )
        assert "e" not in answer.text and "t" not in answer.text


def test_what_cannot_be_wanted_is_refused(model: TextGenerator) -> None:
    with pytest.raises(ConfigError, match="must contain phrases is found by a beam search; use a beam"):
        list(
            model.predict_ranked(
                ["the cat"], DecodingConfig(Greedy()), constraints=OutputConstraints(include=("Katze",))
            )
        )
    with pytest.raises(DataError, match="an empty phrase"):
        OutputConstraints(include=("",))
    with pytest.raises(DataError, match="'Katze' is to be included and 'atz' excluded"):
        OutputConstraints(include=("Katze",), exclude=("atz",))
    with pytest.raises(
        DataError, match="'Konto' is to be included for lines with 'account', and 'ont', which it contains"
    ):
        OutputConstraints(exclude=("ont",), glossary=(("account", "Konto"),))
    with pytest.raises(DataError, match="'{name}' of 'to {name}' is to be kept and 'name' excluded"):
        OutputConstraints(exclude=("name",), keep_placeholders=True).for_line("to {name}")
    letters = train(["abc"], "character")
    with pytest.raises(VocabularyError, match="'xyz' is to be included, which this model cannot spell"):
        build_phrase_constraints([OutputConstraints(include=("xyz",)).for_line("")], letters)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{name} has {0} of %(count)s, %s and 100 % sure", ["{name}", "{0}", "%(count)s", "%s"]),
        (
            "${HOME} {{ user.name }} %1$s %.2f {count, plural, one {# item}}",
            ["${HOME}", "{{ user.name }}", "%1$s", "%.2f", "{count, plural, one {# item}}"],
        ),
        ("50% done, {}, 100% sure, 5%-ig", ["{}"]),
        (
            "%05.2f of %ld, %{name}, #{x}: $t(key_other) {x:.1f}",
            ["%05.2f", "%ld", "%{name}", "#{x}", "$t(key_other)", "{x:.1f}"],
        ),
    ],
)
def test_placeholders_are_found(text: str, found: list[str]) -> None:
    assert [one[0] for one in PLACEHOLDER_PATTERN.finditer(text)] == found


WORDS = ["red", "dog", "runs", "far"]


@given(st.permutations(range(4)), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3))
def test_tags_follow_their_words_and_none_is_lost(order: list[int], spans: list[tuple[int, int]]) -> None:
    pieces = list(WORDS)
    used: set[int] = set()
    for number, (begin, end) in enumerate(spans):
        held = set(range(begin, end + 1))
        if begin > end or used & held:
            continue
        used |= held
        pieces[begin] = f"<t{number}>{pieces[begin]}"
        pieces[end] += f"</t{number}>"
    line = " ".join(pieces)
    marked = parse_tags(line)
    assert marked.text == " ".join(WORDS)
    answer = " ".join(WORDS[number].upper() for number in order)
    weights = torch.eye(4)[list(order)]
    found = insert_tags(marked, answer, weights)
    assert re.sub(r"<[^<>]*>", "", found) == answer
    tags = re.compile(r"<[^<>]*>")
    assert sorted(tags.findall(found)) == sorted(tags.findall(line))
    assert is_well_formed(tags.findall(found))
    if list(order) == [0, 1, 2, 3]:
        assert found.lower() == line


def is_well_formed(tags: list[str]) -> bool:
    open_: list[str] = []
    for tag in tags:
        if not tag.startswith("</"):
            open_.append(tag[1:-1])
        elif not open_ or open_.pop() != tag[2:-1]:
            return False
    return not open_


@pytest.mark.parametrize(
    ("line", "answer", "order", "expected"),
    [
        ("Press <b>Save</b>.", "Drücken Sie Speichern.", [0, 0, 1], "Drücken Sie <b>Speichern</b>."),
        ("a <i>b <b>c</b></i>.", "C B A.", [2, 1, 0], "<i><b>C</b> B</i> A."),
        ("<p>one two</p>", "zwei eins", [1, 0], "<p>zwei eins</p>"),
        ("one<br/>two", "zwei eins", [1, 0], "<br/>zwei eins"),
        ("one <b>two", "eins zwei", [0, 1], "eins <b>zwei"),
        ("one</b> two", "eins zwei", [0, 1], "eins </b>zwei"),
        ("<a href='x>y'>one</a> two", "zwei eins", [1, 0], "zwei <a href='x>y'>eins</a>"),
        ("one < two & <b>two</b>", "eins < zwei & zwei", [0, 1, 2, 3, 4], "eins < zwei & <b>zwei</b>"),
        ("Load <b>{x}</b>: now", "Jetzt {x}: laden", [0, 0, 0], "Jetzt <b>{x}</b>: laden"),
        ("<b><i>one</b></i> two", "eins zwei", [0, 1], "<i><b>eins</b> </i>zwei"),
        ("<i>one</i></b></u> two", "zwei eins", [1, 0], "</b></u>zwei <i>eins</i>"),
        ('Is <a>"one"</a>? two', "Ist \u201eeins\u201c? zwei", [0, 1, 2], "Ist <a>\u201eeins\u201c</a>? zwei"),
        ("<b>one.</b> two", "eins. zwei", [0, 1], "<b>eins.</b> zwei"),
        ("(<b>one</b>) two", "(eins) zwei", [0, 1], "(<b>eins</b>) zwei"),
    ],
)
def test_where_tags_go(line: str, answer: str, order: list[int], expected: str) -> None:
    marked = parse_tags(line)
    assert insert_tags(marked, answer, torch.eye(len(marked.text.split()))[order]) == expected


def test_tags_are_placed_by_the_models_own_attention(model: TextGenerator) -> None:
    lines = ["the <b>cat</b> sat", "", "on <i>the <b>mat</b></i>", "plain"]
    found = list(tasks.translate_tagged(model, lines))
    plain = list(model.predict_ranked([parse_tags(line).text for line in lines]))
    assert [re.sub(r"<[^<>]*>", "", one[0].text) for one in found] == [one[0].text for one in plain]
    assert re.findall(r"<[^<>]*>", found[2][0].text) == ["<i>", "<b>", "</b>", "</i>"]
    assert isinstance(parse_tags(lines[0]), TaggedText)


def test_the_command(model: TextGenerator, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    (tmp_path / "terms.tsv").write_text("cat\tKatze\n")
    command = [
        "run",
        str(tmp_path / "model"),
        "the <b>cat</b> {name}",
        "sat",
        "--glossary",
        str(tmp_path / "terms.tsv"),
    ]
    done = CliRunner().invoke(main, [*command, "--exclude", "x", "--placeholders", "--tags"])
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    assert "Katze" in re.sub("</?b>", "", first) and "{name}" in re.sub("</?b>", "", first) and "<b>" in first
    assert "x" not in second and "Note" not in done.stderr
    many = ["--include", "Katze" * 30]
    done = CliRunner().invoke(main, ["run", str(tmp_path / "model"), "sat", *many])
    assert "1 answer violates the constraints, such as 'sat': 'Katze" in done.stderr
    done = CliRunner().invoke(main, ["run", str(tmp_path / "model"), "sat", "--include", "Katze", "--beam", "1"])
    assert done.exit_code == 2 and "use a beam" in done.output


def test_lines_that_do_not_say_what_to_answer_are_told(model: TextGenerator, tmp_path: Path) -> None:
    replace(model, card=Card(prefixes=("<2de>", "<2fr>"))).save(tmp_path / "model")
    command = ["run", str(tmp_path / "model"), "--beam", "1", "the cat", "", "<2fr> the mat"]
    told = "Note: 1 of the lines begin with none of <2de>, <2fr>, which tell this model what to answer, such as"
    assert f"{told} 'the cat'" in CliRunner().invoke(main, command).stderr
    assert "Note: 2 of" in CliRunner().invoke(main, [*command, "--prefix", "<2xx>"]).stderr
    assert "Note" not in CliRunner().invoke(main, [*command[:-3], "--prefix", "<2de>", "the cat"]).stderr
    (tmp_path / "pairs.tsv").write_text("the cat\tdie Katze\n<2de> the mat\tdie Matte\n")
    done = CliRunner().invoke(main, ["evaluate", str(tmp_path / "model"), str(tmp_path / "pairs.tsv")])
    assert "1 of them begin with none of the prefixes that tell this model what to answer" in done.stdout
    both = replace(model, card=Card(prefixes=("", "<BT>")))
    assert not both.missing_prefix("the cat") and not model.missing_prefix("the cat")


def test_what_stands_before_a_source_is_learned_and_asked(model: TextGenerator, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("the cat\tdie Katze\n\tx\n")
    origin = Tsv(tmp_path / "pairs.tsv", prefix="<2de>")
    assert tasks.prepare_pairs([origin], TASKS["translation"]) == [("<2de> the cat", "die Katze"), ("", "x")]
    assert list(PreparedPairs(origin, TASKS["translation"])) == tasks.prepare_pairs([origin], TASKS["translation"])
    model.save(tmp_path / "model")
    done = CliRunner().invoke(main, ["run", str(tmp_path / "model"), "--prefix", "<2de>", "the cat", ""])
    [[answer]] = model.predict_ranked(["<2de> the cat"], DecodingConfig(Beam(3), LengthLimit(1.0, 25)))
    assert done.stdout == f"{answer.text}\n\n"


PLACEHOLDERS = [
    *("%s", "%d", "%5.1f", "%-10s", "%05.2f", "%ld", "%zu", "%@", "%%", "%.*f", "%(price).2f", "%(name)s", "%1$s"),
    *("%1$05d", "%2$.1f", "{}", "{0}", "{name}", "{ count }", "{v:,.2f}", "{name!r:>10}", "{0,10:N2}", "{x:{w}.{p}}"),
    *("${x}", "%{count}", "#{x}", "{{ name }}", "{{#if a}}", "{{{ raw }}}", "$t(key)", "{d, date, short}"),
    "{count, plural, one {# file} other {# files in {folder}}}",
    "{who, select, male {his} other {their}}",
]


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
def test_every_kind_of_placeholder_is_found_whole(placeholder: str) -> None:
    assert [one[0] for one in PLACEHOLDER_PATTERN.finditer(f"before {placeholder} after")] == [placeholder]


@given(
    st.lists(st.sampled_from(PLACEHOLDERS) | st.sampled_from(["only", "50% of", "a (b)", "x, y:", "10 %", "C#", "$5"]))
)
def test_all_placeholders_of_a_text_are_found_in_order_and_nothing_else(pieces: list[str]) -> None:
    found = [one[0] for one in PLACEHOLDER_PATTERN.finditer(" ".join(pieces))]
    assert found == [piece for piece in pieces if piece in PLACEHOLDERS]
