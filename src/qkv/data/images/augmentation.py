"""Image augmentations, drawn for each batch in training and never applied at inference.

Each node is called with a batch of pixels (batch, channels, height, width) float from 0 to 255 and returns another.
Random numbers come from torch's generator, whose state a run saves, so that a resumed run draws the same ones. The
configuration needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from qkv.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def _check_ranges(node: object, *rules: tuple[str, bool, str]) -> None:
    problems = [f"{field}={getattr(node, field)}: expected {rule}" for field, kept, rule in rules if not kept]
    if problems:
        raise ConfigError(problems)


@dataclass(frozen=True)
class RandomCrop:
    """Random crops: each image is padded with `padding` black pixels and cropped at random (He et al. 2016, 4.2)."""

    padding: int = 4

    def __post_init__(self) -> None:
        _check_ranges(self, ("padding", self.padding >= 1, "at least 1 pixel"))

    def __call__(self, images: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        batch, _, height, width = images.shape
        padded = functional.pad(images, (self.padding,) * 4)
        top, left = torch.randint(2 * self.padding + 1, (2, batch, 1))
        rows, columns = top + torch.arange(height), left + torch.arange(width)
        every = torch.arange(batch)[:, None, None]
        return padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Random horizontal flips of half of the images."""

    def __call__(self, images: Tensor) -> Tensor:
        import torch

        return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)


@dataclass(frozen=True)
class RandomAffine:
    """Random affine maps: rotation by up to `degrees`, translation by up to `translate` of the size, scaling by up to
    `scale`
    and shear by up to `shear`, in both directions; the outside is black.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0

    def __post_init__(self) -> None:
        _check_ranges(
            self,
            ("degrees", 0 <= self.degrees <= 180, "0 to 180"),
            ("translate", 0 <= self.translate < 1, "a share of the image, at least 0 and below 1"),
            ("scale", 0 <= self.scale < 1, "a share of the image, at least 0 and below 1"),
            ("shear", 0 <= self.shear < 1, "at least 0 and below 1"),
        )

    def __call__(self, images: Tensor) -> Tensor:
        import torch
        from torch.nn import functional

        turn, right, down, grow, lean = torch.rand(5, len(images)) * 2 - 1
        angle, size = turn * math.radians(self.degrees), 1 + grow * self.scale
        sine, cosine = angle.sin() * size, angle.cos() * size
        first = torch.stack((cosine, lean * self.shear * cosine - sine, 2 * self.translate * right), dim=1)
        second = torch.stack((sine, lean * self.shear * sine + cosine, 2 * self.translate * down), dim=1)
        grid = functional.affine_grid(torch.stack((first, second), dim=1), list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)


@dataclass(frozen=True)
class ColorJitter:
    """Random changes of brightness, contrast and saturation: factors within these distances of 1."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        _check_ranges(
            self,
            *((name, 0 <= getattr(self, name) <= 1, "0 to 1") for name in ("brightness", "contrast", "saturation")),
        )

    def __call__(self, images: Tensor) -> Tensor:
        import torch

        random_numbers = torch.rand(3, len(images), 1, 1, 1) * 2 - 1
        images = images * (1 + random_numbers[0] * self.brightness)
        for share, mean in (
            (random_numbers[1] * self.contrast, (1, 2, 3)),
            (random_numbers[2] * self.saturation, (1,)),
        ):
            grey = images.mean(mean, keepdim=True)
            images = grey + (images - grey) * (1 + share)
        return images.clamp(0, 255)


@dataclass(frozen=True)
class Cutout:
    """A grey square with `size` of each image's width and height, centred anywhere in the image (DeVries and Taylor
    2017).
    """

    size: float = 0.5

    def __post_init__(self) -> None:
        _check_ranges(self, ("size", 0 < self.size <= 1, "a share of the image, above 0 and at most 1"))

    def __call__(self, images: Tensor) -> Tensor:
        import torch

        inside = []
        for length in images.shape[2:]:
            middle = torch.rand(len(images), 1) * length
            inside.append((torch.arange(length) + 0.5 - middle).abs() <= self.size * length / 2)
        rows, columns = inside
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 127.5)


ImageAugmentation: TypeAlias = RandomCrop | RandomHorizontalFlip | RandomAffine | ColorJitter | Cutout


def mixup(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Blend each image and its class with another image of the batch: shares (batch, classes).

    One share for the whole batch, drawn from a Beta distribution of (alpha, alpha) (Zhang et al. 2018, section 2).
    """
    import torch

    first, second = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64)).tolist()
    share = first / max(first + second, 1e-300)
    order = torch.randperm(len(images))
    return share * images + (1 - share) * images[order], share * targets + (1 - share) * targets[order]
