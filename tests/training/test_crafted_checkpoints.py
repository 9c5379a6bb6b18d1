"""No checkpoint, however it was made, harms the process: what does not fit the run is refused by name.

The checksum of a crafted file is right, because it has no key.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qkv.errors import QkvError
from qkv.training import checkpoints
from tests.training_runs import OPTIONS, build_trainer

EMA_OPTIONS = replace(OPTIONS, max_steps=4, ema_decay=0.9)
LONGER = replace(EMA_OPTIONS, max_steps=6)

Tensors = dict[str, Tensor]
State = dict[str, Any]
Craft = Callable[[Tensors, State], Any]

RESUME = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from qkv.errors import QkvError
from tests.training.test_crafted_checkpoints import CRAFTS, LONGER, craft_and_resume
for name in CRAFTS:
    print(name, craft_and_resume(Path(sys.argv[2]), CRAFTS[name]), sep=": ", flush=True)
"""


def find(tensors: Tensors, start: str, end: str = "") -> str:
    return max((n for n in tensors if n.startswith(start) and n.endswith(end)), key=lambda n: tensors[n].numel())


def change(start: str, end: str, make: Callable[[Tensor], Tensor]) -> Craft:
    def craft(tensors: Tensors, state: State) -> None:
        name = find(tensors, start, end)
        tensors[name] = make(tensors[name])

    return craft


def put(part: str, **values: Any) -> Craft:
    return lambda tensors, state: state[part].update(values)


def set_twister(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed[8:12] = torch.tensor([112, 2, 0, 0], dtype=torch.uint8)  # 624 numbers left
    changed[16:24] = torch.tensor([112, 2, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)  # the next one is the 624th
    return changed


HARMS: dict[str, Callable[[Tensor], Tensor]] = {
    "shortened": lambda t: t.flatten()[:1].clone(),
    "empty": lambda t: t.flatten()[:0].clone(),
    "longer": lambda t: torch.cat([t.flatten(), t.flatten()]),
    "transposed": lambda t: t.flatten().unsqueeze(0).clone(),
    "double": lambda t: t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "int64": lambda t: t.long(),
    "nan": lambda t: torch.full_like(t, math.nan),
    "infinite": lambda t: torch.full_like(t, math.inf),
}

PLACES = {
    "exp_avg": ("optimizer.", ".exp_avg"),
    "exp_avg_sq": ("optimizer.", ".exp_avg_sq"),
    "step": ("optimizer.", ".step"),
    "model": ("model.", ""),
    "ema": ("ema.", ""),
}

CRAFTS: dict[str, Craft] = {
    f"{place} {harm}": change(*PLACES[place], make) for place in PLACES for harm, make in HARMS.items()
}
CRAFTS |= {
    "negative step": change("optimizer.", ".step", lambda t: -t),
    "negative squares": change("optimizer.", ".exp_avg_sq", lambda t: -t - 1),
    "missing exp_avg": lambda tensors, state: tensors.pop(find(tensors, "optimizer.", ".exp_avg")),
    "missing step": lambda tensors, state: tensors.pop(find(tensors, "optimizer.", ".step")),
    "missing model": lambda tensors, state: tensors.pop(find(tensors, "model.")),
    "missing ema": lambda tensors, state: tensors.pop(find(tensors, "ema.")),
    "extra tensor": lambda tensors, state: tensors.update({"model.more": torch.ones(1)}),
    "extra state": lambda tensors, state: tensors.update({"optimizer.embedding.weight.momentum": torch.ones(1)}),
    "random state empty": change("rng_state", "", lambda t: t[:0].clone()),
    "random state shortened": change("rng_state", "", lambda t: t[:100].clone()),
    "random state of another dtype": change("rng_state", "", lambda t: t.float()),
    "random state of zeros": change("rng_state", "", torch.zeros_like),
    "random state of ones": change("rng_state", "", lambda t: torch.full_like(t, 255)),
    "random state beyond its block": change("rng_state", "", set_twister),
    "step below 0": put("train_state", step=-1),
    "step as a text": put("train_state", step="../../../etc/x"),
    "step beyond all": put("train_state", step=10**30),
    "step true": put("train_state", step=True),
    "examples as a list": put("train_state", examples=[]),
    "seconds NaN": put("train_state", seconds=math.nan),
    "seconds below 0": put("train_state", seconds=-1.0),
    "last as a text": put("train_state", last_checkpoints="abc"),
    "last of texts": put("train_state", last_checkpoints=["../x"]),
    "best of numbers": put("train_state", best_checkpoints=[1]),
    "best of texts": put("train_state", best_checkpoints=[["a", "b"]]),
    "metrics as a list": put("train_state", metrics=[]),
    "metrics of texts": put("train_state", metrics={"loss": "x"}),
    "unknown name": put("train_state", more=1),
    "window unknown": put("metrics_window", more=1),
    "window text": put("metrics_window", steps="x"),
    "window below 0": put("metrics_window", positions=-5),
    "position beyond": put("sampler", position=10**6),
    "position below 0": put("sampler", position=-1),
    "position as a text": put("sampler", position="1"),
    "epoch beyond all": put("sampler", epoch=10**30),
    "epoch null": put("sampler", epoch=None),
    "sampler empty": lambda tensors, state: state.update(sampler={}),
    "config as a list": lambda tensors, state: state.update(config=[]),
    "train_state null": lambda tensors, state: state.update(train_state=None),
    "sampler missing": lambda tensors, state: state.pop("sampler"),
}


def craft_and_resume(sound: Path, craft: Craft) -> str:
    """Resume a run whose checkpoint was changed; return how it ended."""
    folder = sound.with_name("crafted")
    folder.mkdir(exist_ok=True)
    tensors, state = checkpoints.load_checkpoint(sound)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    craft(tensors, state)
    checkpoints.save_checkpoint(folder / "checkpoint.safetensors", tensors, state)
    trainer = build_trainer(folder, LONGER)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    try:
        trainer.train(resume=True)
    except QkvError as error:
        unchanged = all(map(torch.equal, before, trainer.model.parameters()))
        return f"refused: {error}" if unchanged else f"refused with a changed model: {error}"
    return "accepted"


def test_every_crafted_checkpoint_is_refused_and_none_ends_the_process(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path / "sound", EMA_OPTIONS)
    trainer.train()
    assert craft_and_resume(trainer.checkpoint_path, lambda *_: None) == "accepted"
    command = [sys.executable, "-c", RESUME, str(Path(__file__).parents[2]), str(trainer.checkpoint_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    ends = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert ends.keys() == CRAFTS.keys()
    assert not {name: end for name, end in ends.items() if not end.startswith("refused:")}


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, "[]", '"x"', '{"config": "\\ud800"}'])
def test_a_state_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    header = {"sha256": "0" * 64, "state": text}
    save_file({"a": torch.ones(1)}, tmp_path / "file", metadata={"qkv": json.dumps(header)})
    with pytest.raises(QkvError, match="file"):
        checkpoints.load_checkpoint(tmp_path / "file")
