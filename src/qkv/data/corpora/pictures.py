"""Corpora of images, each of which is called CORPUS/SPLIT#NUMBER."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qkv.data import albums
from qkv.data.albums import Album
from qkv.data.corpora.entry import Choice, Entry, File
from qkv.data.corpora.fetch import as_recorded, content, given, unpacked
from qkv.data.reading import Pair
from qkv.errors import CorpusError, MissingExtraError


def named(entry: Entry, choice: Choice) -> list[Pair]:
    """The name and the class of each image."""
    assert entry.album is not None
    album = entry.album(entry, choice.split)
    return list(zip(album.names, album.labels, strict=True))


def digits(entry: Entry, split: str) -> Album:
    """Read the digits that scikit-learn ships, whose grey goes from 0 to 16; every fifth image is for testing."""
    raw = _shipped(entry)
    table = np.array([line.split(b",") for line in raw.splitlines()]).astype(np.uint8)
    chosen = table[(np.arange(len(table)) % 5 == 4) == (split == "test")]
    grey = np.rint(chosen[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return albums.of_arrays(f"{entry.name}/{split}", grey, chosen[:, 64])


def mnist(entry: Entry, split: str) -> Album:
    """Read 10,000 of MNIST's training images, or its 10,000 test images."""
    train, images, labels = entry.files
    if split == "train":
        found = _arrays(train, entry)
        return albums.of_arrays(f"{entry.name}/{split}", found["images"], found["labels"])
    return _idx(entry, split, images, labels)


def fashion(entry: Entry, split: str) -> Album:
    """Read Fashion-MNIST, whose classes have names."""
    test_images, test_labels, images, labels = entry.files
    files = (images, labels) if split == "train" else (test_images, test_labels)
    names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    album = _idx(entry, split, *files)
    return replace(album, labels=[names[int(label)] for label in album.labels])


def _idx(entry: Entry, split: str, images: File, labels: File) -> Album:
    found = (albums.of_idx(content(file, entry.name), file.path) for file in (images, labels))
    return albums.of_arrays(f"{entry.name}/{split}", *found)


def cifar(entry: Entry, split: str) -> Album:
    """Read JPEG files that lie one after the other in an array."""
    found = _arrays(next(file for file in entry.files if f"_{split}_" in file.path), entry)
    files, offsets = found["jpeg"], found["offsets"].tolist()
    labels = list(map(str, found["classes"][found["label"]]))
    return albums.of_files(
        f"{entry.name}/{split}", lambda number: files[offsets[number] : offsets[number + 1]].tobytes(), labels
    )


def _arrays(file: File, entry: Entry) -> dict[str, npt.NDArray[Any]]:
    with np.load(io.BytesIO(content(file, entry.name)), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _shipped(entry: Entry) -> bytes:
    """The file of scikit-learn, which is not imported."""
    (file,) = entry.files
    if given(file):
        return content(file, entry.name)
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise MissingExtraError(
            f"the corpus {entry.name} lies in the package scikit-learn, which is not installed; install it with: "
            "pip install 'qkv[see]'"
        )
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    data = unpacked(path.read_bytes(), file) if path.is_file() else b""
    if not as_recorded(data, file):
        raise CorpusError(
            f"{path} is not the file recorded for the corpus {entry.name}; install another version: pip install "
            "-U scikit-learn"
        )
    return data
