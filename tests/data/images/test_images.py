"""Images: what is read from files, and the tensors that published vision models expect, as transformers makes them."""

from __future__ import annotations

import importlib
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.data.images import processing
from qkv.data.images.processing import ImageProcessor, image_processor_from_config
from qkv.errors import ConfigError, DataError, MissingExtraError

pil = pytest.importorskip("PIL.Image", reason="needs Pillow")

# (our configuration, the module and class of transformers that work with Pillow, their settings)
REFERENCES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("vit", "ViTImageProcessorPil", {}),
    "vit-bicubic": ("vit", "ViTImageProcessorPil", {"size": {"height": 37, "width": 53}, "resample": 3}),
    "vit-lanczos": ("vit", "ViTImageProcessorPil", {"size": 48, "resample": 1}),
    "vit-unscaled": ("vit", "ViTImageProcessorPil", {"do_rescale": False, "do_normalize": False}),
    "deit": ("deit", "DeiTImageProcessorPil", {}),
    "deit-odd": ("deit", "DeiTImageProcessorPil", {"size": 40, "crop_size": {"height": 33, "width": 51}}),
    "dinov2": (
        "bit",
        "BitImageProcessorPil",
        {"size": {"shortest_edge": 256}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    ),
    "clip": ("clip", "CLIPImageProcessorPil", {}),
    "clip-one-number": ("clip", "CLIPImageProcessorPil", {"size": 50, "crop_size": 71}),
    "clip-unresized": ("clip", "CLIPImageProcessorPil", {"do_resize": False, "crop_size": 32}),
}


def generated(height: int, width: int, mode: str = "RGB") -> Any:
    """An image of slopes and noise."""
    random = np.random.default_rng(height * 1000 + width)
    slope = np.linspace(0, 200, height)[:, None, None] * np.linspace(0.2, 1, width)[:, None]
    pixels = (slope + random.uniform(0, 55, (height, width, 4))).astype(np.uint8)
    return pil.fromarray(pixels, "RGBA" if pixels.shape[-1] == 4 else "RGB").convert(mode)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("size", [(61, 97), (301, 223), (224, 224), (17, 19)], ids=str)
def test_preparation_equals_the_reference(name: str, size: tuple[int, int]) -> None:
    family, kind, settings = REFERENCES[name]
    module = importlib.import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    processor = getattr(module, kind)(**settings)
    image = generated(*size)
    expected = torch.as_tensor(processor(image, return_tensors="np")["pixel_values"][0])

    saved = image_processor_from_config(processor.to_dict()).preprocess(image)
    assert (saved.shape, saved.dtype) == (expected.shape, torch.float32)
    scale = float(expected.abs().max().clamp(min=1))
    assert float((saved - expected).abs().max()) / scale < 1e-6
    # What a file leaves out is the processor's default.
    told = image_processor_from_config({"image_processor_type": kind.removesuffix("Pil"), **settings}).preprocess(
        np.asarray(image)
    )
    assert torch.equal(told, saved)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_every_mode_is_prepared_as_the_reference_does(mode: str) -> None:
    module = importlib.import_module("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(size=30, crop_size=28)
    image = generated(45, 67).convert(mode) if mode == "P" else generated(45, 67, mode)
    expected = torch.as_tensor(processor(image, return_tensors="np")["pixel_values"][0])
    assert float((image_processor_from_config(processor.to_dict()).preprocess(image) - expected).abs().max()) < 1e-5


def test_the_image_part_of_a_processor_is_found() -> None:
    part = {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 336}, "crop_size": 336}
    assert image_processor_from_config(
        {"processor_class": "CLIPProcessor", "image_processor": part}
    ) == image_processor_from_config(part)
    assert image_processor_from_config(part).crop == (336, 336)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_any_image_comes_out_at_the_size_asked_for(
    height: int, width: int, rows: int, columns: int, grayscale: bool
) -> None:
    one = (0.0,) if grayscale else (0.0, 0.0, 0.0)
    deviation = tuple(number + 1 for number in one)
    exact = ImageProcessor((rows, columns), mean=one, std=deviation, grayscale=grayscale)
    cropped = ImageProcessor(rows, (rows, columns), "bicubic", mean=one, std=deviation, grayscale=grayscale)
    image = np.full((height, width, 3), 51, dtype=np.uint8)
    for preparation in (exact, cropped):
        prepared = preparation.preprocess(image)
        assert prepared.shape == (len(one), rows, columns)
        # One colour stays that colour; what a crop adds is black.
        assert set(prepared.mul(255).round().int().flatten().tolist()) <= {0, 51}
    assert 0 not in exact.preprocess(image)


def test_gray_is_luma_and_stays_gray() -> None:
    preparation = ImageProcessor(None, rescale_factor=1.0, mean=(0.0,), std=(1.0,), grayscale=True)
    red = np.zeros((2, 3, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert preparation.preprocess(red).tolist() == [[[76.0] * 3] * 2]  # 0.299 * 255
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert preparation.preprocess(gray).tolist() == [gray.tolist()]


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "webp", "tiff", "ppm"])
def test_a_file_gives_its_pixels(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"image.{ending}"
    generated(23, 31).save(path)
    read = processing.read_image(path)
    with pil.open(path) as image:
        assert np.array_equal(read, np.asarray(image.convert("RGB")))
    assert read.shape == (23, 31, 3)
    assert read.dtype == np.uint8
    assert read.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "photo.png"
    image = generated(20, 30)
    exif = pil.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    stored = np.asarray(image)
    mirrored = {2: stored[:, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1), 7: stored[::-1, ::-1].swapaxes(0, 1)}
    turned = {1: stored, 3: np.rot90(stored, 2), 6: np.rot90(stored, -1), 8: np.rot90(stored)}
    assert np.array_equal(processing.read_image(path), {**mirrored, **turned}[orientation])


def test_transparency_palettes_and_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pixels = np.array([[[200, 100, 50, 0], [1, 2, 3, 255]]], dtype=np.uint8)
    pil.fromarray(pixels).save(path)
    assert processing.read_image(path).tolist() == [[[255, 255, 255], [1, 2, 3]]]

    palette = pil.fromarray(np.array([[0, 1]], dtype=np.uint8), "L").convert("P")
    palette.putpalette([9, 8, 7, 6, 5, 4])
    palette.save(path, transparency=bytes([0, 255]))  # which Pillow warns of
    assert processing.read_image(path).tolist() == [[[255, 255, 255], [6, 5, 4]]]

    gray = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    pil.fromarray(gray).save(path)
    assert processing.read_image(path)[..., 0].tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_known_range_are_refused(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "image.tiff"
    pil.fromarray(np.array([[-1, 70000]], dtype=dtype)).save(path)
    with pytest.raises(DataError, match=r"image\.tiff.*grey values.*convert"):
        processing.read_image(path)


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with pytest.raises(DataError, match=r"image\.png does not exist"):
        processing.read_image(path)
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"image\.png is not a supported image"):
            processing.read_image(path)
    with pytest.raises(DataError, match="cannot be read as an image"):
        processing.read_image(tmp_path)


def test_too_many_pixels_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    monkeypatch.setattr(pil.Image, "load", lambda image: pytest.fail("unpacked"))
    for side in (8200, 12000, 20000):  # above our limit, above the one Pillow warns at, above the one it refuses at
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
        packed = [
            struct.pack(">I", len(body)) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body in chunks
        ]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
        with pytest.raises(DataError, match=r"bomb\.png has .*; expected at most 67,108,864"):
            processing.read_image(path)


@given(st.data())
def test_damaged_files_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    generated(9, 11).save(path, data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert processing.read_image(path).shape[2] == 3
    except DataError as error:
        assert "damaged" in str(error)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    for ending in ("png", "jpg", "webp", "bmp"):
        path = tmp_path / f"short.{ending}"
        generated(64, 64).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=f"short.{ending} "):
            processing.read_image(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"resize": 0},
        {"resize": (224, -1)},
        {"resize": 100_000},
        {"crop": (10, 2.5)},
        {"interpolation": "nearest"},
        {"rescale_factor": float("nan")},
        {"mean": (0.5,)},
        {"grayscale": True},
        {"std": (1.0, 0.0, 1.0)},
    ],
    ids=str,
)
def test_impossible_preparations_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"(?s){next(iter(settings)) if 'grayscale' not in settings else 'mean'}="):
        ImageProcessor(**settings)


def test_pictures_of_other_kinds_are_refused() -> None:
    preparation = ImageProcessor()
    for image in (np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), "image.png"):
        with pytest.raises(DataError, match="expected uint8 pixels"):
            preparation.preprocess(image)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="after resizing its shortest side"):
        ImageProcessor(224).preprocess(np.zeros((1, 4000), dtype=np.uint8))


def test_configurations_that_ask_for_more_are_refused_with_all_reasons() -> None:
    with pytest.raises(ConfigError, match="image_processor_type is DonutImageProcessor; expected one of ViT"):
        image_processor_from_config({"image_processor_type": "DonutImageProcessor"})
    with pytest.raises(ConfigError) as caught:
        image_processor_from_config(
            {
                "image_processor_type": "ViTImageProcessor",
                "do_pad": True,
                "do_reduce_labels": False,
                "resample": 0,
                "size": {"longest_edge": 5},
                "image_mean": "half",
            }
        )
    assert [problem.split("=")[0] for problem in caught.value.problems] == ["do_pad", "resample", "image_mean", "size"]


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qkv\[images\]'"):
        processing.read_image(tmp_path / "image.png")
