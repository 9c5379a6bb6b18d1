"""Tiny random models of transformers, written to disk, for the parity tests of published families."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

SMALL = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A family's tiny model: its configuration and class in transformers, and how that computes attention."""

    name: str
    config: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    kernel: str = "eager"

    def build(self) -> Any:
        torch.manual_seed(1)
        config = getattr(transformers, self.config)(**{**SMALL, **self.settings})
        config._attn_implementation = self.kernel
        model = getattr(transformers, self.model)(config).eval()
        for parameter in model.parameters():  # norms and biases too, so that none can be mistaken for another
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        return model


WriteModel = Callable[[Case], tuple[Any, Path]]


def make_writer(folders: pytest.TempPathFactory) -> WriteModel:
    """Write a case's model to disk once, and give it with its folder."""
    kept: dict[str, tuple[Any, Path]] = {}

    def give(case: Case) -> tuple[Any, Path]:
        if case.name not in kept:
            folder = folders.mktemp(case.name)
            model = case.build()
            model.save_pretrained(folder)
            kept[case.name] = model, folder
        return kept[case.name]

    return give


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    scale = theirs.abs().max().clamp(min=1e-6)
    assert float((ours - theirs).abs().max() / scale) < 1e-5


def make_tokens(rows: int = 2, length: int = 12) -> Tensor:
    return torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(5))


def make_mask(lengths: list[int], length: int) -> Tensor:
    return torch.arange(length)[None, :] < torch.tensor(lengths)[:, None]


def load_model(model: Any, folder: Path) -> Any:
    """The model of transformers that a folder holds, of the same class; nothing may be missing or left over."""
    again, report = type(model).from_pretrained(
        folder, output_loading_info=True, attn_implementation=model.config._attn_implementation
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return again.eval()


def generate(model: Any, given: dict[str, Tensor], beams: int, longest: int = 8, **options: Any) -> list[list[int]]:
    """What transformers generates, greedily (1 beam) or by beam search."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows: list[list[int]] = model.generate(
            **given, max_new_tokens=longest, num_beams=beams, do_sample=False, pad_token_id=0, **options
        ).tolist()
    return rows
