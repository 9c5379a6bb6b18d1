"""Matrices in blocks: they multiply, are looked up and give gradients as the float32 matrices they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qkv.errors import CheckpointError
from qkv.pretrained import weights
from qkv.pretrained.quantized_tensor import QuantizedTensor

gguf = pytest.importorskip("gguf", reason="needs the extra qkv[gguf]")

KINDS = ["Q4_0", "Q4_1", "Q8_0"]


def write_gguf(path: Path, kind: str, rows: int, columns: int, seed: int = 0) -> tuple[Path, torch.Tensor]:
    """A GGUF file with one matrix, and what its blocks stand for by the package `gguf`."""
    numbers = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    quantised = gguf.GGMLQuantizationType[kind]
    blocks = gguf.quants.quantize(numbers, quantised)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("matrix", blocks, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, torch.from_numpy(gguf.quants.dequantize(blocks, quantised))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@settings(deadline=None, max_examples=12)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 70),
    blocks=st.integers(1, 5),
    lead=st.sampled_from([(), (1,), (3,), (2, 3)]),
    biased=st.booleans(),
    at_once=st.sampled_from([1, 500, 2**19]),
)
def test_a_matrix_in_blocks_multiplies_as_the_whole_one(
    kind: str, rows: int, blocks: int, lead: tuple[int, ...], biased: bool, at_once: int, folder: Path
) -> None:
    path, expected = write_gguf(folder / "a.gguf", kind, rows, 32 * blocks, seed=rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qkv.pretrained.quantized_tensor._UNPACK_CHUNK", 96)
        kept, whole = weights.read(path, keep_quantized=True)["matrix"], weights.read(path)["matrix"]
    assert type(whole) is torch.Tensor and torch.equal(whole, expected)
    assert isinstance(kept, QuantizedTensor) and kept.shape == expected.shape
    assert torch.equal(kept.dequantize(), expected)
    assert torch.equal(kept.contiguous(), expected)
    assert torch.equal(kept + 0, expected)  # whatever else is done with it is done with the whole
    bias = torch.randn(rows) if biased else None
    hidden = torch.randn(*lead, 32 * blocks, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qkv.pretrained.quantized_tensor._MATMUL_CHUNK", at_once)
        product = functional.linear(hidden, kept, bias)
    whole = functional.linear(hidden, expected, bias)
    torch.testing.assert_close(product, whole, rtol=1e-5, atol=1e-5)
    found, wanted = (torch.autograd.grad(one.square().sum(), hidden)[0] for one in (product, whole))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)
    chosen = torch.randint(rows, (2, 4))
    assert torch.equal(functional.embedding(chosen, kept), expected[chosen])
    order = torch.randperm(rows)
    chosen_rows = kept[order]
    assert isinstance(chosen_rows, QuantizedTensor) and torch.equal(chosen_rows.dequantize(), expected[order])


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4.5), ("Q4_1", 5), ("Q8_0", 8.5)])
def test_blocks_take_no_more_than_in_the_file(kind: str, bits: float, tmp_path: Path) -> None:
    kept = weights.read(write_gguf(tmp_path / "a.gguf", kind, 64, 96)[0], keep_quantized=True)["matrix"]
    assert isinstance(kept, QuantizedTensor)
    parts = [part for part in (kept.codes, kept.scale, kept.block_min) if part is not None]
    assert sum(part.untyped_storage().nbytes() for part in parts) * 8 == bits * kept.numel()


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", "Q4_1", 64, 96)[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="'matrix' lies at bytes"):
        weights.read(path, keep_quantized=True)
