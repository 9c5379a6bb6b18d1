"""Corpora of images, whose names are CORPUS/SPLIT#NUMBER."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qkv.data.corpora.fetch import find_local, matches_record, read_content, unpack
from qkv.data.corpora.info import CorpusFile, CorpusInfo, CorpusSelection
from qkv.data.images import sources
from qkv.data.images.sources import ImageDataset
from qkv.data.text.pairs import Pair
from qkv.errors import CorpusError, MissingExtraError


def read_image_labels(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read the name and the class of each image."""
    assert info.load_images is not None
    album = info.load_images(info, selection.split)
    return list(zip(album.names, album.labels, strict=True))


def load_digits(info: CorpusInfo, split: str) -> ImageDataset:
    """Load the digits that scikit-learn ships, with grey levels from 0 to 16; every fifth image is for testing."""
    raw = _read_sklearn_digits(info)
    table = np.array([line.split(b",") for line in raw.splitlines()]).astype(np.uint8)
    chosen = table[(np.arange(len(table)) % 5 == 4) == (split == "test")]
    grey = np.rint(chosen[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return sources.dataset_from_arrays(f"{info.name}/{split}", grey, chosen[:, 64])


def load_mnist(info: CorpusInfo, split: str) -> ImageDataset:
    """Load 10,000 of MNIST's training images, or its 10,000 test images."""
    train, images, labels = info.files
    if split == "train":
        found = _load_arrays(train, info)
        return sources.dataset_from_arrays(f"{info.name}/{split}", found["images"], found["labels"])
    return _load_idx(info, split, images, labels)


def load_fashion_mnist(info: CorpusInfo, split: str) -> ImageDataset:
    """Load Fashion-MNIST, whose classes have names."""
    test_images, test_labels, images, labels = info.files
    files = (images, labels) if split == "train" else (test_images, test_labels)
    names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    album = _load_idx(info, split, *files)
    return replace(album, labels=[names[int(label)] for label in album.labels])


def _load_idx(info: CorpusInfo, split: str, images: CorpusFile, labels: CorpusFile) -> ImageDataset:
    found = (sources.parse_idx(read_content(file, info.name), file.path) for file in (images, labels))
    return sources.dataset_from_arrays(f"{info.name}/{split}", *found)


def load_cifar10(info: CorpusInfo, split: str) -> ImageDataset:
    """Load JPEG files that are concatenated in an array."""
    found = _load_arrays(next(file for file in info.files if f"_{split}_" in file.path), info)
    files, offsets = found["jpeg"], found["offsets"].tolist()
    labels = list(map(str, found["classes"][found["label"]]))
    return sources.dataset_from_files(
        f"{info.name}/{split}", lambda number: files[offsets[number] : offsets[number + 1]].tobytes(), labels
    )


def _load_arrays(file: CorpusFile, info: CorpusInfo) -> dict[str, npt.NDArray[Any]]:
    with np.load(io.BytesIO(read_content(file, info.name)), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _read_sklearn_digits(info: CorpusInfo) -> bytes:
    """Read the file of scikit-learn, which is not imported."""
    (file,) = info.files
    if find_local(file):
        return read_content(file, info.name)
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise MissingExtraError(
            f"the corpus {info.name} is in the package scikit-learn, which is not installed; install it with: "
            "pip install 'qkv[see]'"
        )
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    data = unpack(path.read_bytes(), file) if path.is_file() else b""
    if not matches_record(data, file):
        raise CorpusError(
            f"{path} is not the file recorded for the corpus {info.name}; install another version: pip install "
            "-U scikit-learn"
        )
    return data
