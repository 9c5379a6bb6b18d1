"""Labelled images as batches: fitted to one size once, kept as bytes in a file that is mapped, augmented when read."""

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

from qkv.data import albums, corpora, images
from qkv.data.albums import Album, Folder, Idx, Npz, Parquet
from qkv.data.augmentation import Augmentation, mixed
from qkv.data.batch import Batch
from qkv.data.corpora import Corpus
from qkv.data.images import ImagePreparation, Pixels
from qkv.errors import DataError, StorageError

PictureOrigin: TypeAlias = Corpus | Folder | Npz | Idx | Parquet
"""Where labelled images come from: a split of a named corpus, a folder for each class, or one or two files."""

_FAULTY = 0.01
"""The share of images that may be broken before nothing is learned from the rest."""


def album_of(origin: PictureOrigin) -> Album:
    """Open an origin of images; DataError, with the file, for one that cannot be read."""
    return corpora.album(origin.name, origin.split) if isinstance(origin, Corpus) else origin.album()


def find(line: str) -> Pixels:
    """The pixels that a line means: an image file by its path, or NAME#NUMBER, one of many in a file or a corpus.

    NAME is the path of an .npz, Parquet or IDX file, or CORPUS/SPLIT. Raises DataError if there is no such image.
    """
    name, mark, number = line.rpartition("#")
    if not mark or not number.isdecimal() or Path(line).exists():
        return images.read(line)
    if Path(name).is_file():
        return albums.images_in(Path(name))(int(number))
    corpus, _, split = name.partition("/")
    found = _corpus(corpus, split)
    if int(number) >= len(found):
        raise DataError(f"{line} was asked for; {name} has images 0 to {len(found) - 1}")
    return found.pixels(int(number))


@lru_cache(maxsize=2)
def _corpus(name: str, split: str) -> Album:
    return corpora.album(name, split)


@dataclass(frozen=True)
class Pictures:
    """Labelled images of one size.

    pixels (images, height, width, channels) uint8, labels (images,) int64, digests of the pixels; notes say what was
    left out.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: list[str]
    digests: list[bytes]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, numbers: Sequence[int]) -> Tensor:
        """Images by their numbers: (images, channels, height, width) uint8."""
        return torch.from_numpy(self.pixels[np.asarray(numbers)]).permute(0, 3, 1, 2)


def fitted(origins: Sequence[Album], preparation: ImagePreparation, classes: Sequence[str], place: Path) -> Pictures:
    """Read all images of some albums, of one size or brought to it, and keep their pixels in the file `place`.

    Raises DataError, with the file, for an image of another size if none was asked for, for a class that is not among
    `classes`, and if more than a hundredth is broken; StorageError if there is no room.
    """
    known = {name: number for number, name in enumerate(classes)}
    labels: list[int] = []
    names: list[str] = []
    digests: list[bytes] = []
    faults: list[str] = []
    shape: tuple[int, ...] | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb") as file:
            for album in origins:
                for number, (name, label) in enumerate(zip(album.names, album.labels, strict=True)):
                    if label not in known:
                        raise DataError(f"{name} is of the class {label!r}; expected one of {', '.join(classes)}")
                    try:
                        pixels = preparation.fitted(album.pixels(number))
                    except DataError as error:
                        faults.append(str(error))
                        continue
                    shape = shape or pixels.shape
                    if pixels.shape != shape:
                        raise DataError(
                            f"{name} has {_sides(pixels.shape)} pixels and {names[0]} has {_sides(shape)}; expected "
                            "one size: set data.size, and all are brought to it"
                        )
                    raw = pixels.tobytes()
                    file.write(raw)
                    labels.append(known[label])
                    names.append(name)
                    digests.append(hashlib.blake2b(raw, digest_size=8).digest())
    except OSError as error:
        raise StorageError(
            f"{place} could not be written: {error}; free some space or choose another folder"
        ) from error
    if len(faults) > _FAULTY * (len(faults) + len(names)) or shape is None:
        raise DataError(
            f"{len(faults):,} of {len(faults) + len(names):,} images cannot be used, such as: {faults[0]}"
            if faults
            else "there are no images; expected at least one"
        )
    notes = [f"{len(faults):,} images left out: {'; '.join(faults[:3])}"] if faults else []
    kept = np.memmap(place, dtype=np.uint8, mode="r", shape=(len(names), *shape))
    return Pictures(np.asarray(kept), np.array(labels), names, digests, tuple(notes))


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


class PictureBatches:
    """Batches of augmented images, which are numbered through all epochs: n is image n % count of epoch n // count.

    numbers: which of the pictures are learned from. mixup: the alpha of `mixed`, None for none.
    """

    def __init__(
        self,
        pictures: Pictures,
        numbers: Sequence[int],
        preparation: ImagePreparation,
        classes: int,
        augment: Sequence[Augmentation] = (),
        mixup: float | None = None,
    ) -> None:
        self._pictures, self._numbers = pictures, np.asarray(numbers, dtype=np.int64)
        self._preparation, self._classes = preparation, classes
        self._augment, self._mixup = tuple(augment), mixup

    @property
    def count(self) -> int:
        """How many images make an epoch."""
        return len(self._numbers)

    @cached_property
    def fingerprint(self) -> int:
        """A number that other images or labels would not have."""
        labels = self._pictures.labels[self._numbers]
        return zlib.crc32(
            b"".join(self._pictures.digests[number] for number in self._numbers), zlib.crc32(labels.tobytes())
        )

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Lay images side by side, augmented and normalised."""
        chosen = self._numbers[np.asarray(numbers, dtype=np.int64) % self.count]
        pixels = self._pictures.some(chosen.tolist()).float()
        for augment in self._augment:
            pixels = augment(pixels)
        source = self._preparation.normalised(pixels)
        labels = torch.from_numpy(self._pictures.labels[chosen])
        if self._mixup is not None:
            source, labels = mixed(source, functional.one_hot(labels, self._classes).float(), self._mixup)
        return Batch(source.contiguous(), None, None, labels, torch.as_tensor(list(numbers), dtype=torch.int64))
