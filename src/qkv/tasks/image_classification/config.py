"""The recipe of image classification. This module needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qkv import spec
from qkv.data.corpora import Corpus
from qkv.data.images.augmentation import ImageAugmentation
from qkv.data.images.sources import Idx, ImageFolder, Npz, Parquet
from qkv.errors import ConfigError, SpecError
from qkv.tasks.config import Pretrained
from qkv.training.config import TrainingConfig

ImageSource: TypeAlias = Corpus | ImageFolder | Npz | Idx | Parquet
"""Sources of labelled images: a split of a named corpus, a folder for each class, or one or two files."""


@dataclass(frozen=True)
class ImageData:
    """The images for training and validation.

    valid: images that are never trained on; without it, the fraction `held_out` of those in `train`. test: images that
    the
    run must not train on; those of `train` that are among them are left out.
    size: the height and width to resize all images to; without it, they must have one size. grayscale: whether to read
    them
    without colour.
    batch: the number of images in a batch. valid_images: the number of images in each validation.
    augment: the augmentations of training images, in order. mixup: the alpha of the Beta distribution by which two
    images
    are blended (Zhang et al. 2018), null for none.
    """

    train: tuple[ImageSource, ...]
    valid: ImageSource | None = None
    held_out: float = 0.1
    test: tuple[ImageSource, ...] = ()
    size: tuple[int, int] | None = None
    grayscale: bool = False
    batch_size: int = 128
    valid_images: int = 5000
    augmentation: tuple[ImageAugmentation, ...] = ()
    mixup: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.train:
            problems.append("train=[]: expected at least one source of images to train on")
        if not 0 < self.held_out < 1:
            problems.append(f"held_out={self.held_out}: expected a share above 0 and below 1")
        for name in ("batch_size", "valid_images"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: expected at least 1")
        if self.size is not None and min(self.size) < 1:
            problems.append(f"size={list(self.size)}: expected a height and a width of at least 1, or null")
        if self.mixup is not None and self.mixup <= 0:
            problems.append(f"mixup={self.mixup}: expected a number above 0, or null for none")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class ViT:
    """An encoder that reads images in patches of `patch_size` x `patch_size` pixels: a ViT (Dosovitskiy et al. 2021).

    stem: convolutions before the patches, whose strides divide `patch_size` (Xiao et al. 2021); stem_norm and
    stem_residual as in `qkv.spec.Patches`. pool: what is classified, the vector of a learned class token ("class") or
    the mean of all patches. positions: learned for each patch of a square image, or sinusoids for images of any shape.
    """

    patch_size: int = 4
    stem: tuple[spec.Convolution, ...] = ()
    d_model: int = 128
    heads: int = 4
    layers: int = 6
    d_ff: int = 256
    pooling: Literal["mean", "class"] = "mean"
    positions: Literal["learned", "sinusoidal"] = "learned"
    norm: spec.Norm = spec.Norm()
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu"
    gated: bool = False
    qk_norm: spec.Norm | None = None
    stem_norm: Literal["none", "batch"] = "none"
    stem_residual: bool = False

    def __post_init__(self) -> None:
        self.spec(self.patch_size, self.patch_size, 1, 2)  # a contradictory shape is refused together with the recipe

    def spec(self, height: int, width: int, channels: int, classes: int) -> spec.Transformer:
        """Build the spec of this shape for images of a size and a number of classes. Raises SpecError if they do not
        fit."""
        if self.d_model % self.heads:
            raise SpecError(f"d_model={self.d_model} is not a multiple of heads={self.heads}")
        if height % self.patch_size or width % self.patch_size:
            raise SpecError(
                f"images of {width} x {height} pixels cannot be split into patches of patch_size={self.patch_size}; "
                "set model.patch_size, or data.size to multiples of it"
            )
        count = height // self.patch_size * (width // self.patch_size)
        if self.positions == "learned" and math.isqrt(count) ** 2 != count:
            raise SpecError(
                f"images of {width} x {height} pixels are not square; set model.positions=sinusoidal, or data.size"
            )
        leading = int(self.pooling == "class")
        attention = spec.Attention(self.heads, self.d_model // self.heads, qk_norm=self.qk_norm)
        forward = spec.FeedForward(self.d_ff, self.activation, self.gated)
        stack = spec.Stack(
            d_model=self.d_model,
            blocks=(spec.Block(attention, forward, norm=self.norm),) * self.layers,
            input=spec.Patches(
                self.patch_size,
                channels,
                leading,
                stem=self.stem,
                stem_norm=self.stem_norm,
                stem_residual=self.stem_residual,
            ),
            positions=spec.Learned(leading + count) if self.positions == "learned" else spec.Sinusoidal(),
            final_norm=self.norm,
        )
        return spec.Transformer(stack, None, spec.Classes(classes, "first" if leading else "mean"))


@dataclass(frozen=True)
class ImageClassificationConfig:
    """The recipe of an image classifier; it gives the same bytes each time, as `Text2TextConfig` does."""

    task: Literal["image-classification"]
    data: ImageData
    training: TrainingConfig
    model: ViT | Pretrained = field(default_factory=ViT)


OWN_DATA = "a folder with one folder for each class, an .npz or .parquet file, or two IDX files"
"""The files that `find_source` accepts."""


def find_source(files: Sequence[Path]) -> dict[str, Any] | None:
    """Return the data source that a user's files are, as a recipe writes it; None if they are none."""
    if len(files) == 2:
        return {"kind": "idx", "images": str(files[0]), "labels": str(files[1])}
    if len(files) == 1 and files[0].is_dir():
        return {"kind": "image_folder", "path": str(files[0])}
    if len(files) == 1 and files[0].suffix in (".npz", ".parquet"):
        return {"kind": files[0].suffix[1:], "path": str(files[0])}
    return None
