"""Tokenizers: what goes in comes out, and a foreign one is named as such."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import DataError, StorageError, VocabularyError
from qkv.text import BOS, EOS, PAD, UNK, Tokenizer, TokenizerKind, train

LINES = ["A man  in a blue shirt.", "Ein Mann läuft im Park.", "dogs play </s> \u2028 in \x85 snow", "日本語 🙂"] * 5
LOSSLESS = {kind: train(LINES, kind=kind, vocab=300) for kind in ("bpe", "unigram")}
LOSSLESS["byte"] = train(LINES, kind="byte")
CHARACTER = train(LINES, kind="character")
PHONEMES = train(["K ER1 N AH0 L", "HH AH0 L OW1"], kind="word")
text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("kind", LOSSLESS)
@given(line=text)
@settings(deadline=None)
def test_any_text_comes_back_unchanged(kind: str, line: str) -> None:
    tokenizer = LOSSLESS[kind]
    ids = tokenizer.encode(line)
    assert tokenizer.decode(ids) == line
    assert all(UNK < number < tokenizer.size for number in ids)
    assert len(tokenizer.display_tokens(ids)) == len(ids)


@given(line=st.text(st.sampled_from(sorted(set("".join(LINES))))))
def test_characters_that_were_seen_come_back_unchanged(line: str) -> None:
    assert CHARACTER.decode(CHARACTER.encode(line)) == line
    assert len(CHARACTER.encode(line)) == len(line)


@given(symbols=st.lists(st.sampled_from(["K", "ER1", "N", "AH0", "OW1"])))
def test_words_come_back_one_space_apart(symbols: list[str]) -> None:
    ids = PHONEMES.encode("  ".join(symbols))
    assert len(ids) == len(symbols)
    assert PHONEMES.decode(ids) == " ".join(symbols)


@pytest.mark.parametrize("kind", get_args(TokenizerKind))
def test_text_that_looks_special_is_not(kind: TokenizerKind) -> None:
    tokenizer = train([*LINES, "<pad> <s> </s> <unk>"], kind=kind, vocab=None)
    ids = tokenizer.encode("a </s> <s> <pad>")
    assert not {PAD, BOS, EOS} & set(ids)


def test_what_was_never_seen_is_unknown() -> None:
    assert CHARACTER.encode("aЖ")[1] == UNK
    assert PHONEMES.encode("K ZZ") == [PHONEMES.encode("K")[0], UNK]


def test_decoding_stops_at_the_end_and_skips_specials() -> None:
    ids = CHARACTER.encode("man")
    assert CHARACTER.decode([BOS, *ids, PAD, UNK, EOS, *ids]) == "man"


def test_tokens_show_spaces_and_parts_of_characters() -> None:
    byte = LOSSLESS["byte"]
    assert byte.display_tokens([BOS, *byte.encode("a ä")]) == ["<s>", "a", "▁", "<0xC3>", "<0xA4>"]
    assert byte.display_tokens(byte.encode("\n\t\r")) == ["↵", "⇥", "<U+000D>"]
    assert byte.display_tokens([9999]) == ["<9999?>"]
    assert "▁Mann" == LOSSLESS["bpe"].display_tokens(LOSSLESS["bpe"].encode("Mann"))[0] + "n"
    assert CHARACTER.display_tokens(CHARACTER.encode("a b")) == ["a", "▁", "b"]


def test_lowercase_is_part_of_the_tokenizer(tmp_path: Path) -> None:
    for kind in get_args(TokenizerKind):
        tokenizer = train(["Ein Mann"], kind=kind, lowercase=True)
        tokenizer.save(tmp_path / "t.json")
        assert Tokenizer.load(tmp_path / "t.json").decode(tokenizer.encode("EIN mann")) == "ein mann"


def test_vocab_bounds_the_size() -> None:
    assert train(LINES, kind="bpe", vocab=280).size == 280
    assert train(LINES, kind="unigram", vocab=280).size <= 280
    assert train(LINES, kind="byte").size == 260
    assert train(LINES, kind="character", vocab=9).size == 9
    assert train(["a b b c c c"], kind="word", vocab=6).display_tokens([4, 5]) == ["c", "b"]


@pytest.mark.parametrize("kind", get_args(TokenizerKind))
def test_saved_and_loaded_is_the_same(kind: TokenizerKind, tmp_path: Path) -> None:
    tokenizer = train(LINES, kind=kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again == tokenizer and hash(again) == hash(tokenizer) and again.size == tokenizer.size
    assert again.encode_batch(LINES) == tokenizer.encode_batch(LINES)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_training_gives_the_same_in_every_process() -> None:
    code = f"import qkv.text as t; print([t.train({LINES!r}, kind=k, vocab=300).digest for k in ('bpe', 'unigram')])"
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1


def test_a_missing_cut_or_foreign_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(VocabularyError, match="cannot read"):
        Tokenizer.load(path)
    CHARACTER.save(path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(VocabularyError, match="not a complete tokenizer.json"):
        Tokenizer.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(VocabularyError, match="cannot read"):
        Tokenizer.load(path)
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "a": 1}, unk_token="[PAD]")).save(str(path))
    with pytest.raises(VocabularyError, match="first four tokens"):
        Tokenizer.load(path)


def test_bad_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="unknown"):
        train(LINES, kind="syllable")  # type: ignore[arg-type]
    with pytest.raises(VocabularyError, match="at least 260"):
        train(LINES, kind="bpe", vocab=100)
    with pytest.raises(VocabularyError, match="exactly 260"):
        train(LINES, kind="byte", vocab=300)
    for kind in get_args(TokenizerKind):
        if kind == "byte":
            continue
        with pytest.raises(VocabularyError, match="no text"):
            train(["", "  "], kind=kind)
    with pytest.raises(DataError, match="line 2 .* character 3"):
        CHARACTER.encode_batch(["a", "ab\udc80"])
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"):
        CHARACTER.save(tmp_path / "file" / "tokenizer.json")
