"""Parallel text: one line in, one line out; and every way a file can be wrong has a name."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.data import (
    CleaningConfig,
    Jsonl,
    ParallelFiles,
    Tsv,
    decode_lines,
    exclude_sources,
    find_leakage,
    group_references,
    read_lines,
    read_pairs,
    tokenize_pairs,
)
from qkv.data.text import pairs as reading_module
from qkv.data.text.pairs import to_single_line
from qkv.errors import ConfigError, DataError
from qkv.text import train

BYTES = train([], kind="byte")
WORDS = train(["a b c d"], kind="word")


def write_file(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\ufeff\r")), min_size=1))
def test_one_line_in_one_line_out(text: list[str]) -> None:
    assert list(decode_lines(io.BytesIO("".join(line + "\n" for line in text).encode()), "text")) == text
    assert list(decode_lines(io.BytesIO("".join(line + "\r\n" for line in text).encode()), "text")) == text


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "\ufeffone\u2028still \x85 \x0b\x0c one\rone\r\n\ntwo"
    for name in ("text", "text.gz"):
        assert list(read_lines(write_file(tmp_path / name, text))) == [
            "one\u2028still \x85 \x0b\x0c one\rone",
            "",
            "two",
        ]


def test_all_forms_give_the_same_pairs(tmp_path: Path) -> None:
    pairs = [("ein Hund", "a dog"), ("", "empty"), ("zwei", "two")]
    for end in ("", ".gz"):
        source = write_file(tmp_path / f"a.de{end}", "".join(f"{source}\n" for source, _ in pairs))
        target = write_file(tmp_path / f"a.en{end}", "".join(f"{target}\n" for _, target in pairs))
        table = write_file(tmp_path / f"a.tsv{end}", "".join(f"x\t{target}\t{source}\n" for source, target in pairs))
        records = "".join(json.dumps({"de": source, "en": target, "n": 1}) + "\n" for source, target in pairs)
        objects = write_file(tmp_path / f"a.jsonl{end}", records)
        origins: list[Iterable[tuple[str, str]]] = [
            ParallelFiles(source, target),
            Tsv(table, 2, 1),
            Jsonl(objects, "de", "en"),
        ]
        assert [read_pairs(origin) for origin in origins] == [pairs] * 3
        assert [read_pairs(origin) for origin in origins] == [pairs] * 3, "an origin can be read again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"good\nM\xfcnchen\n", r"line 2, byte 2: 0xFC is not UTF-8"),
        (b"cut \xe2\x82", r"line 1, byte 5: 0xE2 is not UTF-8"),
        (gzip.compress(b"some text\n" * 100, mtime=0)[:-9], "damaged gzip"),
        (gzip.compress(b"some text\n" * 100, mtime=0)[:20] + b"????", "damaged gzip"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"bad.txt.*{message}"):
        list(read_lines(path))


def test_a_missing_file_a_folder_and_an_endless_line_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list(read_lines(tmp_path / "none"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_lines(tmp_path))
    monkeypatch.setattr(reading_module, "_MAX_LINE_BYTES", 10)
    assert list(read_lines(write_file(tmp_path / "a", "123456789\n123456789\n"))) == ["123456789"] * 2
    with pytest.raises(DataError, match="line 2 is longer than 10 bytes"):
        list(read_lines(write_file(tmp_path / "a", "123456789\n1234567890\n")))


@pytest.mark.parametrize("longer", ["source", "target"])
def test_unequal_line_counts_are_named(tmp_path: Path, longer: str) -> None:
    counts = {"source": 3, "target": 3} | {longer: 5}
    files = ParallelFiles(*(write_file(tmp_path / side, "x\n" * count) for side, count in counts.items()))
    with pytest.raises(DataError, match=f"source has {counts['source']} lines and .*target has {counts['target']}"):
        read_pairs(files)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\na\tb\tc\n", "line 2 has 3 columns, expected 2"),
        ("a\tb\na b\n", "line 2 has 1 columns, expected 2"),
        ("a b\n", "has 1 column separated by tabs; expected columns 0 and 1"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(Tsv(write_file(tmp_path / "t.tsv", content)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"source": "a", ', "line 2 is not JSON"),
        ("", "line 2 is not JSON"),
        ("[1]", "line 2 holds a list"),
        ('{"source": "a"}', "line 2 has no key 'target', its keys are .'source'."),
        ('{"source": 1, "target": "b"}', "'source' is a int"),
        ('{"source": "\\ud800", "target": "b"}', "no Unicode text"),
    ],
)
def test_bad_json_is_named(tmp_path: Path, line: str, message: str) -> None:
    good = '{"source": "a", "target": "b"}\n'
    with pytest.raises(DataError, match=message):
        read_pairs(Jsonl(write_file(tmp_path / "t.jsonl", f"{good}{line}\n{good}")))


def test_reading_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no pairs"):
        read_pairs([])


def test_the_report_names_what_was_dropped() -> None:
    pairs = [("a", "b"), ("", "b"), ("a", "  "), ("a b c d", "b"), ("a", "b " * 100_000), ("c", "d"), ("d", "\t")]
    store, report = tokenize_pairs(pairs, WORDS, WORDS, CleaningConfig(max_length=3, max_dropped_fraction=1))
    assert [[ids.tolist() for ids in store[n] if ids is not None] for n in range(len(store))] == [
        [[4], [5]],
        [[6], [7]],
    ]
    assert (report.kept, report.dropped_count) == (2, 5)
    assert report.dropped["empty"].count == 3
    long = report.dropped["longer than 3 tokens"]
    assert long.count == 2 and long.examples[0].startswith("example 4: '(4 tokens) a b c d")
    assert "(100,000 tokens)" in long.examples[1] and len(long.examples[1]) < 150
    assert "7 examples: 2 kept" in str(report) and "example 2: ' ||| b'" in str(report)
    assert type(report).from_json(json.loads(json.dumps(report.to_json()))) == report


def test_long_examples_can_be_truncated() -> None:
    store, report = tokenize_pairs(
        [("a b c", "b"), ("a", "b " * 100_000)], WORDS, WORDS, CleaningConfig(max_length=2, overflow="truncate")
    )
    assert store.lengths.tolist() == [[3, 2], [2, 3]]
    assert (report.kept, report.truncated.count, report.dropped_count) == (2, 2, 0)
    assert "2 of them truncated" in str(report)


def test_too_much_dropped_stops_unless_allowed() -> None:
    pairs = [("a", "b")] * 98 + [("", "b")] * 2
    with pytest.raises(
        DataError, match=r"2\.0% of the examples would be dropped, 1\.0%(.|\n)*max_dropped_fraction=0\.021"
    ):
        tokenize_pairs(pairs, WORDS, WORDS)
    assert len(tokenize_pairs(pairs, WORDS, WORDS, CleaningConfig(max_dropped_fraction=0.021))[0]) == 98
    assert len(tokenize_pairs(pairs + [("a", "b")] * 100, WORDS, WORDS)[0]) == 198
    with pytest.raises(DataError, match="no example is left"):
        tokenize_pairs([("", "")], WORDS, WORDS, CleaningConfig(max_dropped_fraction=1))
    with pytest.raises(ConfigError, match="(?s)max_length=0.*max_dropped_fraction=2"):
        CleaningConfig(max_length=0, max_dropped_fraction=2)


def test_targets_alone_need_no_source() -> None:
    store, report = tokenize_pairs([("", "a b"), ("", "c")], None, WORDS)
    assert store[0][0] is None and store.lengths.tolist() == [[3], [2]] and report.kept == 2


def test_a_store_is_found_again_by_its_content(tmp_path: Path) -> None:
    pairs = [("a", "b")] * 200 + [("", "b")]
    first, report = tokenize_pairs(pairs, WORDS, WORDS, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    stamp = (folder / "ids.npy").stat().st_mtime_ns
    again, report_again = tokenize_pairs(iter_twice(pairs), WORDS, WORDS, cache=tmp_path)
    assert report == report_again and report.dropped_count == 1 and len(again) == len(first) == 200
    assert (folder / "ids.npy").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="would be dropped"):
        tokenize_pairs(pairs, WORDS, WORDS, CleaningConfig(max_dropped_fraction=0), cache=tmp_path)
    tokenize_pairs([*pairs, ("c", "d")], WORDS, WORDS, cache=tmp_path)
    tokenize_pairs(pairs, WORDS, BYTES, cache=tmp_path)
    tokenize_pairs(pairs, None, WORDS, cache=tmp_path)
    tokenize_pairs(pairs, WORDS, WORDS, CleaningConfig(max_length=5), cache=tmp_path)
    tokenize_pairs([("ab", "")] * 1 + [("a", "b")] * 200, WORDS, WORDS, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    (folder / "metadata.json").write_text("{")
    with pytest.raises(DataError, match="delete that folder"):
        tokenize_pairs(pairs, WORDS, WORDS, cache=tmp_path)


def iter_twice(pairs: list[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """Something that is not a list and can be gone through more than once."""
    return {number: pair for number, pair in enumerate(pairs)}.values()


def test_leakage_is_by_exact_source() -> None:
    training = [("a dog", "x"), ("a cat", "y")]
    found = find_leakage(training, {"valid": [("a dog", "z"), ("A dog", "x")], "test": [("new", "y")]})
    assert found["valid"].count == 1 and found["valid"].examples == ["example 1: 'a dog'"]
    assert found["test"].count == 0
    assert exclude_sources(training, [("a dog", "z")], [("b", "c")]) == [("a cat", "y")]
    assert group_references([("a", "1"), ("b", "2"), ("a", "3")]) == {"a": ["1", "3"], "b": ["2"]}


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=8))
def test_as_many_lines_are_read_as_texts_were_written(texts: list[str]) -> None:
    written = "".join(f"{to_single_line(text)}\n" for text in texts)
    read = list(decode_lines(io.BytesIO(written.encode()), "written"))
    assert len(read) == len(texts)
    for text, line in zip(texts[1:], read[1:], strict=True):
        assert line == to_single_line(text)


@pytest.mark.parametrize(
    ("text", "line"), [("a\nb", "a b"), ("a\r\nb\n", "a b"), ("a\u2028b\u0085c\fd", "a\u2028b\u0085c\fd"), ("", "")]
)
def test_line_breaks_become_spaces_and_other_separators_stay(text: str, line: str) -> None:
    assert to_single_line(text) == line
