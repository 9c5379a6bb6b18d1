"""Image preprocessing: from files to the tensors that published vision models expect.

`read_image` reads a file into pixels, an `ImageProcessor` turns pixels into a tensor, and `image_processor_from_config`
reads the processor of a published model from its `preprocessor_config.json`. Needs the extra `images` (Pillow).
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qkv.errors import ConfigError, DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]

_MAX_PIXELS = 2**26
"""An image of more pixels (67 million, 201 MB as RGB) is refused by its header, before it is decoded."""

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""The supported formats: others of Pillow's start programs (EPS) or rarely contain photographs."""


def read_image(file: str | os.PathLike[str] | bytes, name: str | None = None) -> Pixels:
    """Read an image file, or its bytes: (height, width, 3) uint8, upright according to its EXIF orientation.

    Grey, palette and CMYK images become RGB, 16-bit ones are rounded to 8, transparency is replaced by white (as in
    transformers 5), and an animation is represented by its first frame.
    Raises DataError, with the name (by default the path), for a file that is missing, broken, of another format or of
    more
    than 2^26 pixels, and MissingExtraError without Pillow.
    """
    image_module = _import_pillow()
    from PIL import ImageOps

    name = name or ("the image" if isinstance(file, bytes) else os.fspath(file))
    try:
        with warnings.catch_warnings():  # Pillow only warns of an image that is a little too large
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            with image_module.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise DataError(_too_large_message(name, f"{image.width} x {image.height} pixels"))
                image.load()
                return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except DataError as error:
        raise DataError(str(error) if name in str(error) else f"{name}: {error}") from error
    except (image_module.DecompressionBombWarning, image_module.DecompressionBombError) as error:
        raise DataError(_too_large_message(name, "even more")) from error
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist; expected an image file: check the path") from error
    except image_module.UnidentifiedImageError as error:
        raise DataError(f"{name} is not a supported image; expected one of {', '.join(_FORMATS)}") from error
    except Exception as error:  # a broken file makes Pillow raise almost anything: OSError, SyntaxError, struct.error
        raise DataError(f"{name} cannot be read as an image ({error}): copy it again, or convert it to PNG") from error


@dataclass(frozen=True)
class ImageProcessor:
    """The preprocessing of an image: resize, crop, scale, subtract the mean, divide by the standard deviation.

    resize is (height, width), or the length of the shortest side, or None to keep the size
    crop is the (height, width) to cut from the centre, or None; missing pixels are black
    interpolation is Pillow's, which averages over all the pixels that fall into one
    rescale is the factor of the pixel values 0..255, before mean and standard deviation (one number per channel)
    grayscale gives one channel, the luma of ITU-R BT.601, instead of red, green and blue
    Raises ConfigError for values that no image can be preprocessed with.
    """

    resize: tuple[int, int] | int | None = (224, 224)
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    rescale_factor: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    grayscale: bool = False

    def __post_init__(self) -> None:
        channels = 1 if self.grayscale else 3
        problems = [
            f"{field}={given!r}: expected positive whole numbers, at most {_MAX_PIXELS:,} pixels in all"
            for field, given in (("resize", self.resize), ("crop", self.crop))
            if given is not None and not _is_valid_size(given)
        ]
        if self.interpolation not in get_args(Interpolation):
            expected = ", ".join(get_args(Interpolation))
            problems.append(f"interpolation={self.interpolation!r}: expected one of {expected}")
        if not (math.isfinite(self.rescale_factor) and self.rescale_factor > 0):
            problems.append(f"rescale_factor={self.rescale_factor!r}: expected a positive number")
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels or not all(map(math.isfinite, values)):
                problems.append(f"{field}={values!r}: expected {channels} numbers, one per channel")
        if 0 in self.std:
            problems.append(f"std={self.std!r}: expected no zero, because pixels are divided by it")
        if problems:
            raise ConfigError(problems)

    def preprocess(self, image: Pixels | Image.Image) -> Tensor:
        """Convert an image to a tensor (channels, height, width) float32.

        image: uint8 pixels (height, width) or (height, width, 3), or a Pillow image of any mode.
        Raises DataError for other arrays and for an image so narrow that resizing it would take 2^26 pixels.
        """
        pixels = torch.from_numpy(self.resize_and_crop(image)).permute(2, 0, 1)
        return self.normalize(pixels).contiguous()

    def resize_and_crop(self, image: Pixels | Image.Image) -> Pixels:
        """Resize and crop an image to its final size, (height, width, channels) uint8. Raises DataError as
        `preprocess`."""
        picture = _to_pillow(image).convert("L" if self.grayscale else "RGB")
        if self.resize is not None:
            height, width = self._target_size(picture.height, picture.width)
            if (height, width) != (picture.height, picture.width):
                picture = picture.resize((width, height), _resampling_filter(self.interpolation))
        pixels = np.array(picture).reshape(picture.height, picture.width, -1)
        return pixels if self.crop is None else _center_crop(pixels, *self.crop)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Scale pixels 0..255 (..., channels, height, width), subtract the mean, divide by the standard deviation:
        float32."""
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() * self.rescale_factor - mean) / deviation

    def denormalize(self, image: Tensor) -> Tensor:
        """Convert a preprocessed image (channels, height, width) back to pixels (height, width, 3) uint8."""
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        pixels = (image * deviation + mean) / self.rescale_factor
        return pixels.round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).contiguous()

    def _target_size(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        assert self.resize is not None
        shortest = min(height, width)
        height, width = (self.resize * side // shortest for side in (height, width))
        if height * width > _MAX_PIXELS:
            raise DataError(
                _too_large_message("the image", f"{width} x {height} pixels after resizing its shortest side")
            )
        return height, width


def image_processor_from_config(config: Mapping[str, Any]) -> ImageProcessor:
    """Build the processor of a `preprocessor_config.json` (or the image part of a `processor_config.json`).

    Supports the processors of ViT, DeiT, BiT (which DINOv2 uses) and CLIP, with their defaults for missing keys.
    Raises ConfigError, with all the problems, for other processors and for unsupported steps.
    """
    nested = config.get("image_processor")
    config = nested if isinstance(nested, Mapping) else config
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "none")
    base = kind
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        base = base.removesuffix(ending)
    if base not in _DEFAULTS:
        expected = ", ".join(f"{name}ImageProcessor" for name in _DEFAULTS)
        raise ConfigError([f"image_processor_type is {kind}; expected one of {expected}"])
    given = {key: value for key, value in config.items() if value is not None}
    problems = [
        f"{key}={value!r} is not known to the {kind} read here; remove it, or prepare the images yourself"
        for key, value in given.items()
        if key not in _DEFAULTS[base] and key not in _IGNORED_KEYS and value is not False
    ]
    settings = {**_DEFAULTS[base], **given}
    interpolation = _INTERPOLATIONS.get(str(settings["resample"]))
    if interpolation is None:
        problems.append(f"resample={settings['resample']!r}; expected one of {_INTERPOLATIONS}")
    numbers = {
        key: _parse_numbers(settings[key], key, problems) for key in ("image_mean", "image_std", "rescale_factor")
    }
    resize = (
        _parse_size(settings["size"], "size", base in _SHORTEST_EDGE_PROCESSORS, problems)
        if settings["do_resize"]
        else None
    )
    crop = _parse_size(settings["crop_size"], "crop_size", False, problems) if settings["do_center_crop"] else None
    if isinstance(crop, int):
        problems.append(f"crop_size={settings['crop_size']!r}; expected height and width")
    if problems or isinstance(crop, int) or interpolation is None:
        raise ConfigError(problems)
    normalise = settings["do_normalize"]
    return ImageProcessor(
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        rescale_factor=numbers["rescale_factor"][0] if settings["do_rescale"] else 1.0,
        mean=numbers["image_mean"] if normalise else (0.0, 0.0, 0.0),
        std=numbers["image_std"] if normalise else (1.0, 1.0, 1.0),
    )


_INTERPOLATIONS: Mapping[str, Interpolation] = {"1": "lanczos", "2": "bilinear", "3": "bicubic"}
"""Pillow's constants, which the configuration files use."""

_VIT: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_center_crop": False,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_CLIP: Mapping[str, Any] = {
    **_VIT,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViT": _VIT,
    "DeiT": {**_VIT, "size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True},
    "Bit": _CLIP,
    "CLIP": _CLIP,
}
_SHORTEST_EDGE_PROCESSORS = frozenset({"Bit", "CLIP"})
"""The processors for which a single size means the shortest side; for the others it means a square."""

_IGNORED_KEYS = frozenset(
    "auto_map data_format default_to_square device disable_grouping do_convert_rgb feature_extractor_type "
    "image_processor_type input_data_format processor_class return_tensors _processor_class "
    "_valid_processor_keys".split()
)
"""Keys that change no pixel here: images always become RGB with the channels first."""


def _parse_size(given: Any, key: str, shortest: bool, problems: list[str]) -> tuple[int, int] | int | None:
    if isinstance(given, int):
        return given if shortest else (given, given)
    if isinstance(given, Mapping):
        sides = {side: value for side, value in given.items() if value is not None}
        if set(sides) == {"height", "width"}:
            return sides["height"], sides["width"]
        if set(sides) == {"shortest_edge"} and isinstance(sides["shortest_edge"], int):
            return int(sides["shortest_edge"])
    problems.append(f"{key}={given!r}; expected height and width, or shortest_edge")
    return None


def _parse_numbers(given: Any, key: str, problems: list[str]) -> tuple[float, ...]:
    values = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if all(isinstance(value, int | float) for value in values):
        return tuple(float(value) for value in values)
    problems.append(f"{key}={given!r}; expected numbers")
    return (1.0,)


def _is_valid_size(given: Any) -> bool:
    sides = given if isinstance(given, tuple) else (given, given)
    return len(sides) == 2 and all(type(side) is int and side > 0 for side in sides) and math.prod(sides) <= _MAX_PIXELS


def _to_pillow(image: Pixels | Image.Image) -> Image.Image:
    image_module = _import_pillow()
    if isinstance(image, image_module.Image):
        return _to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.size and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            picture: Image.Image = image_module.fromarray(np.ascontiguousarray(image))
            return picture
        shape = f"{image.dtype} of shape {image.shape}"
    else:
        shape = type(image).__name__
    raise DataError(f"the image is {shape}; expected uint8 pixels (height, width) or (height, width, 3), none empty")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB on white, without clipping more than 8 bits."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not (0 <= values.min() and values.max() < 2**16):
            raise DataError("its grey values are not within 0..65535; expected 8 or 16 bits: convert it first")
        grey = (values * 255 + 2**15 - 1) // (2**16 - 1)
        image = _import_pillow().fromarray(grey.astype(np.uint8))
    if image.mode == "F":
        raise DataError("its grey values are fractions of an unknown range; expected 8 or 16 bits: convert it first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = _import_pillow().alpha_composite(_import_pillow().new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _center_crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """Crop from the centre, or pad what is too small; an odd remainder goes above and to the left."""
    missing = [max(0, size - had) for size, had in zip((height, width), pixels.shape, strict=False)]
    if any(missing):
        pixels = np.pad(pixels, [((lack + 1) // 2, lack // 2) for lack in missing] + [(0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _resampling_filter(interpolation: Interpolation) -> Image.Resampling:
    resampling: Image.Resampling = getattr(_import_pillow().Resampling, interpolation.upper())
    return resampling


def _too_large_message(name: str, given: str) -> str:
    return f"{name} has {given}; expected at most {_MAX_PIXELS:,}, to keep the memory: make it smaller first"


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            "images need Pillow, which is not installed; install it with: pip install 'qkv[images]'"
        ) from error
    return Image
