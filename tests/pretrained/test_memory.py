"""What stays in memory of a file of weights: the pages that parameters lie in, and no others."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qkv import pretrained
from qkv.models import build
from qkv.pretrained import int8, weights
from qkv.pretrained.families import get_family
from qkv.pretrained.weights.cursor import release_memory

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="needs Linux")

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "hidden_act": "silu",
    "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-6,
}  # fmt: skip


def count_resident_bytes(path: Path) -> int:
    """How many bytes of a mapped file are in this process's memory."""
    gc.collect()
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first = line.split(" ", 1)[0]
        if "-" in first and not first.endswith(":"):
            counts = line.endswith(str(path))
        elif counts and first == "Rss:":
            found += 1024 * int(line.split()[1])
    return found


def test_memory_of_a_file_is_given_back_where_another_tensor_was_made_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.randn(1000, 1024), "b": torch.randn(10)}, path)
    stored = weights.read(path)
    made = stored["a"].bfloat16()
    assert count_resident_bytes(path) >= 4_000_000
    release_memory(stored["a"])
    assert count_resident_bytes(path) < 200_000
    assert torch.equal(stored["a"].bfloat16(), made)  # it is read again
    elsewhere = torch.ones(10_000)
    release_memory(elsewhere)
    assert bool((elsewhere == 1).all())


@torch.no_grad()
def test_a_model_in_other_numbers_leaves_its_file(tmp_path: Path) -> None:
    family = get_family(LLAMA)
    pretrained.save(pretrained.PretrainedModel(family, LLAMA, build(family.build_spec(LLAMA))), tmp_path)
    path, given = tmp_path / "model.safetensors", torch.arange(20)[None]
    whole = pretrained.load(tmp_path).model
    expected = whole(target=given)
    assert count_resident_bytes(path) > path.stat().st_size // 2  # parameters lie in the file
    del whole
    smaller = pretrained.load(tmp_path, dtype=torch.bfloat16).model
    torch.testing.assert_close(smaller(target=given).float(), expected, rtol=0.1, atol=0.1)
    assert count_resident_bytes(path) < path.stat().st_size // 10
    del smaller
    model = pretrained.load(tmp_path, dtype=None).model
    int8.quantize(model)
    torch.testing.assert_close(model(target=given), expected, rtol=0.1, atol=0.1)
    kept = 2 * 4 * LLAMA["vocab_size"] * LLAMA["hidden_size"]  # embeddings stay where they are
    assert count_resident_bytes(path) < kept
