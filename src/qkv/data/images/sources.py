"""Labelled images on disk: folders of image files, arrays in .npz, IDX and Parquet files.

Every image has a unique name: its path, or its file and its index there, "images.npz#17".
This module needs no torch; reading pixels needs the extra `images` (Pillow), Parquet the extra `see` (pyarrow).
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qkv.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from qkv.data.images.processing import Pixels

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images: the name and the class of each, and a function that reads the pixels of one by its index.

    pixels returns uint8 (height, width) or (height, width, 3), and raises DataError, with the name, for a broken image.
    """

    name: str
    names: Sequence[str]
    labels: Sequence[str]
    read_pixels: Callable[[int], Pixels]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class ImageFolder:
    """A folder with one folder for each class, which has the name of the class, with image files anywhere below."""

    path: Path

    def load_dataset(self) -> ImageDataset:
        """Find the files. Raises DataError if there are none, or some that belong to no class."""
        if not self.path.is_dir():
            raise DataError(
                f"{self.path} is not a folder; expected one that contains a folder of images for each class"
            )
        found = sorted(path for path in self.path.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
        found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(self.path).parts)]
        if loose := [path for path in found if path.parent == self.path]:
            raise DataError(f"{loose[0]} is not in the folder of a class; expected {self.path}/CLASS/{loose[0].name}")
        if not found:
            raise DataError(f"{self.path} contains no images; expected files such as {self.path}/CLASS/IMAGE.png")
        labels = [path.relative_to(self.path).parts[0] for path in found]
        return ImageDataset(str(self.path), list(map(str, found)), labels, lambda number: _read_image(found[number]))


@dataclass(frozen=True)
class Npz:
    """Arrays in one .npz file: uint8 `images` (count, height, width), with 3 or 1 channels last if any, and `labels`.

    Labels are integers or strings; an array "classes" of strings names the integers.
    """

    path: Path
    images: str = "images"
    labels: str = "labels"

    def load_dataset(self) -> ImageDataset:
        """Load the arrays. Raises DataError, with the file, for others; nothing is unpickled."""
        found = read_arrays(self.path)
        for name in (self.images, self.labels):
            if name not in found:
                raise DataError(
                    f"{self.path} has no array {name!r}, its arrays are {', '.join(found)}: set images and labels to "
                    "arrays that are there"
                )
        return dataset_from_arrays(str(self.path), found[self.images], found[self.labels], found.get("classes"))


@dataclass(frozen=True)
class Idx:
    """Two IDX files of bytes, as MNIST has: `images` (count, height, width) and `labels` (count,); also .gz."""

    images: Path
    labels: Path

    def load_dataset(self) -> ImageDataset:
        """Load the files. Raises DataError, with the file, for one that is truncated or contains something else."""
        return dataset_from_arrays(str(self.images), read_idx(self.images), read_idx(self.labels))


@dataclass(frozen=True)
class Parquet:
    """A Parquet file with a column of image files, as bytes or as {bytes, path}, and one of labels."""

    path: Path
    image: str = "image"
    label: str = "label"

    def load_dataset(self) -> ImageDataset:
        """Load the columns. Raises DataError, with the file, for others, and MissingExtraError without pyarrow."""
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise MissingExtraError(
                f"{self.path}: Parquet needs pyarrow, which is not installed; install it with: pip install 'qkv[see]'"
            ) from error
        try:
            table = parquet.ParquetFile(self.path).read([self.image, self.label])
            cells, labels = (table.column(name).to_pylist() for name in (self.image, self.label))
        except (ArrowException, OSError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{self.path} cannot be read ({reason}); expected a Parquet file with the columns {self.image!r} and "
                f"{self.label!r}: copy it again, or set image and label to columns that are there"
            ) from error
        files = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
        whole = [file for file in files if isinstance(file, bytes)]
        if len(whole) < len(files):
            raise DataError(
                f"{self.path}: {len(files) - len(whole):,} of {len(files):,} rows hold no bytes in the column "
                f"{self.image!r}; expected an image file in each"
            )
        return dataset_from_files(str(self.path), whole.__getitem__, list(map(str, labels)))


def dataset_from_arrays(
    name: str, images: npt.NDArray[Any], labels: npt.NDArray[Any], classes: npt.NDArray[Any] | None = None
) -> ImageDataset:
    """Build a dataset from arrays; images are named NAME#0, NAME#1 and so on. Raises DataError if they do not fit."""
    shape = images.shape
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or 0 in shape
        or (images.ndim == 4 and shape[3] not in (1, 3))
    ):
        raise DataError(
            f"{name}: the images are {images.dtype} of shape {shape}; expected uint8 (count, height, width) or "
            "(count, height, width, 3)"
        )
    if labels.shape != shape[:1] or labels.dtype.kind not in "iuU":
        raise DataError(
            f"{name}: the labels are {labels.dtype} of shape {labels.shape}; expected {shape[0]:,} whole numbers or "
            "strings, one for each image"
        )
    if classes is not None and labels.dtype.kind != "U":
        if labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(f"{name}: labels from {labels.min()} to {labels.max()} for {len(classes)} classes")
        labels = classes[labels]
    grey = images[..., 0] if images.ndim == 4 and shape[3] == 1 else images
    return ImageDataset(
        name, _numbered_names(name, len(labels)), list(map(str, labels.tolist())), lambda number: grey[number]
    )


def dataset_from_files(name: str, read_file: Callable[[int], bytes], labels: Sequence[str]) -> ImageDataset:
    """Build a dataset of image files in memory, named NAME#0, NAME#1 and so on; `read_file` returns one by its
    index."""
    names = _numbered_names(name, len(labels))
    return ImageDataset(name, names, labels, lambda number: _read_image(read_file(number), names[number]))


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of an .npz file. Raises DataError, with the file, for another file and for pickles."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; expected an .npz file: check the path") from error
    except Exception as error:  # a broken archive makes zipfile and NumPy raise almost anything
        raise DataError(
            f"{path} cannot be read ({error}); expected an .npz file of plain arrays (nothing is unpickled): save it "
            "again with numpy.savez"
        ) from error


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes (LeCun et al. 1998), also .gz. Raises DataError, with the file, for
    another."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}); expected an IDX file: check the path, copy it again"
        ) from error
    return parse_idx(raw, str(path))


def parse_idx(raw: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Parse the bytes of an IDX file: 0, 0, 8 for unsigned bytes, the number of axes, and their sizes."""
    sides = raw[3] if len(raw) > 3 else 0
    start = 4 + 4 * sides
    shape = tuple(int.from_bytes(raw[place : place + 4], "big") for place in range(4, start, 4))
    if raw[:3] != b"\0\0\x08" or not 1 <= sides <= 4 or len(raw) != start + math.prod(shape):
        raise DataError(f"{name} is truncated, or not an IDX file of unsigned bytes; copy it again")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


@lru_cache(maxsize=4)
def open_image_file(path: Path) -> Callable[[int], Pixels]:
    """Return a function that reads an image of a file of many by its index, as in NAME#NUMBER."""
    if path.suffix == ".parquet":
        return _checked_reader(Parquet(path).load_dataset())
    if path.suffix == ".npz":
        return _checked_reader(Npz(path).load_dataset())
    images = read_idx(path)
    return _checked_reader(dataset_from_arrays(str(path), images, np.zeros(len(images), dtype=np.uint8)))


def _checked_reader(dataset: ImageDataset) -> Callable[[int], Pixels]:
    def pixels(number: int) -> Pixels:
        if number >= len(dataset):
            raise DataError(f"{dataset.name}#{number} was requested; it has images 0 to {len(dataset) - 1}")
        return dataset.read_pixels(number)

    return pixels


def _numbered_names(name: str, count: int) -> list[str]:
    return [f"{name}#{number}" for number in range(count)]


def _read_image(file: Path | bytes, name: str | None = None) -> Pixels:
    from qkv.data.images import processing

    return processing.read_image(file, name)
