"""Batches of labelled images: resized once, stored as bytes in a memory-mapped file, augmented when read."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from qkv.data import corpora
from qkv.data.batch import Batch
from qkv.data.corpora import Corpus
from qkv.data.images import processing, sources
from qkv.data.images.augmentation import ImageAugmentation, mixup
from qkv.data.images.processing import ImageProcessor, Pixels
from qkv.data.images.sources import Idx, ImageDataset, ImageFolder, Npz, Parquet
from qkv.errors import DataError, StorageError

ImageSource: TypeAlias = Corpus | ImageFolder | Npz | Idx | Parquet
"""Sources of labelled images: a split of a named corpus, a folder for each class, or one or two files."""

_MAX_BROKEN_FRACTION = 0.01
"""The fraction of images that may be broken before the rest is refused."""


def load_dataset(source: ImageSource) -> ImageDataset:
    """Load the images of a source. Raises DataError, with the file, for one that cannot be read."""
    return corpora.load_images(source.name, source.split) if isinstance(source, Corpus) else source.load_dataset()


def load_image(line: str) -> Pixels:
    """Load the pixels of an image, given by its path or as NAME#NUMBER, one of many in a file or a corpus.

    NAME is the path of an .npz, Parquet or IDX file, or CORPUS/SPLIT. Raises DataError if there is no such image.
    """
    name, mark, number = line.rpartition("#")
    if not mark or not number.isdecimal() or Path(line).exists():
        return processing.read_image(line)
    if Path(name).is_file():
        return sources.open_image_file(Path(name))(int(number))
    corpus, _, split = name.partition("/")
    found = _load_corpus_images(corpus, split)
    if int(number) >= len(found):
        raise DataError(f"{line} was requested; {name} has images 0 to {len(found) - 1}")
    return found.read_pixels(int(number))


@lru_cache(maxsize=2)
def _load_corpus_images(name: str, split: str) -> ImageDataset:
    return corpora.load_images(name, split)


@dataclass(frozen=True)
class ImageStore:
    """Labelled images of one size.

    pixels (images, height, width, channels) uint8, labels (images,) int64, digests of the pixels; notes on images that
    were
    left out.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: list[str]
    digests: list[bytes]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Sequence[int]) -> Tensor:
        """Return the images with some indices: (images, channels, height, width) uint8."""
        return torch.from_numpy(self.pixels[np.asarray(indices)]).permute(0, 3, 1, 2)


def fit_images(
    datasets: Sequence[ImageDataset], processor: ImageProcessor, classes: Sequence[str], path: Path
) -> ImageStore:
    """Read all images of some datasets, resize them if needed, and store their pixels in the file `path`.

    Raises DataError, with the file, for an image of another size if no size was given, for a class that is not among
    `classes`, and if more than a hundredth is broken; StorageError if there is no room.
    """
    known = {name: number for number, name in enumerate(classes)}
    labels: list[int] = []
    names: list[str] = []
    digests: list[bytes] = []
    faults: list[str] = []
    shape: tuple[int, ...] | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for album in datasets:
                for number, (name, label) in enumerate(zip(album.names, album.labels, strict=True)):
                    if label not in known:
                        raise DataError(f"{name} has the class {label!r}; expected one of {', '.join(classes)}")
                    try:
                        pixels = processor.resize_and_crop(album.read_pixels(number))
                    except DataError as error:
                        faults.append(str(error))
                        continue
                    shape = shape or pixels.shape
                    if pixels.shape != shape:
                        raise DataError(
                            f"{name} has {_format_size(pixels.shape)} pixels and {names[0]} has "
                            f"{_format_size(shape)}; expected "
                            "one size: set data.size, and all are brought to it"
                        )
                    raw = pixels.tobytes()
                    file.write(raw)
                    labels.append(known[label])
                    names.append(name)
                    digests.append(hashlib.blake2b(raw, digest_size=8).digest())
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error}; free some space or choose another folder") from error
    if len(faults) > _MAX_BROKEN_FRACTION * (len(faults) + len(names)) or shape is None:
        raise DataError(
            f"{len(faults):,} of {len(faults) + len(names):,} images cannot be used, such as: {faults[0]}"
            if faults
            else "there are no images; expected at least one"
        )
    notes = [f"{len(faults):,} images left out: {'; '.join(faults[:3])}"] if faults else []
    kept = np.memmap(path, dtype=np.uint8, mode="r", shape=(len(names), *shape))
    return ImageStore(np.asarray(kept), np.array(labels), names, digests, tuple(notes))


def _format_size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


class ImageBatches:
    """Batches of augmented images, numbered through all epochs: n is image n % count of epoch n // count.

    indices: the images to draw from. mixup: the alpha of `mixup`, None for none.
    """

    def __init__(
        self,
        store: ImageStore,
        indices: Sequence[int],
        processor: ImageProcessor,
        n_classes: int,
        augmentation: Sequence[ImageAugmentation] = (),
        mixup: float | None = None,
    ) -> None:
        self._store, self._indices = store, np.asarray(indices, dtype=np.int64)
        self._processor, self._n_classes = processor, n_classes
        self._augmentation, self._mixup = tuple(augmentation), mixup

    @property
    def count(self) -> int:
        """Return the number of images in an epoch."""
        return len(self._indices)

    @cached_property
    def fingerprint(self) -> int:
        """Return a hash that differs for other images or labels."""
        labels = self._store.labels[self._indices]
        return zlib.crc32(
            b"".join(self._store.digests[number] for number in self._indices), zlib.crc32(labels.tobytes())
        )

    def collate(self, indices: Sequence[int]) -> Batch:
        """Collate images into a batch, augmented and normalised."""
        chosen = self._indices[np.asarray(indices, dtype=np.int64) % self.count]
        pixels = self._store.select(chosen.tolist()).float()
        for augment in self._augmentation:
            pixels = augment(pixels)
        source = self._processor.normalize(pixels)
        labels = torch.from_numpy(self._store.labels[chosen])
        if self._mixup is not None:
            source, labels = mixup(source, functional.one_hot(labels, self._n_classes).float(), self._mixup)
        return Batch(source.contiguous(), None, None, labels, torch.as_tensor(list(indices), dtype=torch.int64))
