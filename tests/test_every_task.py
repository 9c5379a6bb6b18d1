"""Every task, all the way: a few steps, stopped, gone on, scored, asked, asked with fewer bits, looked into."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from qkv import tasks
from qkv.cli import main
from qkv.training.progress import Silent
from test_hear import RATE, TEXTS, packed, said
from test_see import toy

SMALL = {"d_model": 16, "heads": 2, "d_ff": 16}
PAIR = {**SMALL, "kind": "transformer", "encoder_layers": 1, "decoder_layers": 1}
DECODER = {**SMALL, "kind": "decoder", "layers": 1}


class Case(NamedTuple):
    """A recipe but for its training, the task's score, what it is scored on and a line to ask."""

    recipe: dict[str, Any]
    score: str
    paths: tuple[str, ...]
    line: str


def pairs(task: str, score: str, model: dict[str, Any] = PAIR, **more: Any) -> Case:
    data = {"train": [{"kind": "tsv", "path": "pairs.tsv"}], "valid": {"kind": "tsv", "path": "pairs.tsv"}}
    text = {"source": {"kind": "character"}} | ({"target": {"kind": "word"}} if task == "pronounce" else {})
    return Case({"task": task, "data": data, "text": text, "model": {**model, **more}}, score, ("pairs.tsv",), "cat")


def hearing(model: dict[str, Any], score: str) -> Case:
    origin = {"kind": "recordings", "path": "said.npz"}
    features = {"mels": 8, "rate": RATE, "window": 128, "hop": 64}
    data = {"train": [origin], "valid": origin, "features": features, "batch_frames": 400}
    validation = {"metric": score, "better": "higher" if score == "accuracy" else "lower"}
    recipe = {"task": "hear", "data": data, "text": {"kind": "word"}, "model": model}
    return Case({**recipe, "training": {"validation": validation}}, score, ("said.npz",), "low.wav")


CASES = {
    "pronounce": pairs("pronounce", "WER"),
    "translate": pairs("translate", "BLEU"),
    "translate, recurrent": pairs("translate", "BLEU", {"kind": "recurrent", "d_model": 16, "attention": "additive"}),
    "summarize": pairs("summarize", "rougeL", copies=True),
    "summarize, a decoder": pairs("summarize", "rougeL", DECODER),
    "write": Case(
        {
            "task": "write",
            "data": {"train": [{"kind": "files", "path": "texts"}], "context": 16, "batch_tokens": 64},
            "text": {"kind": "character"},
            "model": DECODER,
        },
        "bits per byte",
        ("texts",),
        "the c",
    ),
    "see": Case(
        {
            "task": "see",
            "data": {"train": [{"kind": "npz", "path": "toy.npz"}], "held_out": 0.2, "grayscale": True, "batch": 16},
            "model": {"kind": "vision", "patch": 4, "d_model": 16, "heads": 2, "layers": 1},
        },
        "accuracy",
        ("toy.npz",),
        "toy.npz#1",
    ),
    "hear": hearing({**SMALL, "kind": "listener", "encoder_layers": 1, "decoder_layers": 1}, "wer"),
    "hear, naming": hearing({**SMALL, "kind": "classifier", "layers": 1}, "accuracy"),
    "act": Case(
        {
            "task": "act",
            "data": {
                "train": [{"kind": "played", "environment": "key-to-door", "episodes": 40, "behaviour": "random"}],
                "context": 33,
                "batch_steps": 264,
            },
            "model": {**SMALL, "layers": 1},
            "training": {"label_smoothing": 0.0},
        },
        "achieved",
        ("1", "--with", "episodes=2"),
        "1@3",
    ),
}


class Interrupting(Silent):
    """Presses Ctrl-C on the way."""

    def tick(self, step: int, progress: float) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with something to learn from for each task."""
    soundfile = pytest.importorskip("soundfile")
    monkeypatch.chdir(tmp_path)
    words = ("cat", "K AE T"), ("act", "AE K T"), ("tact", "T AE K T"), ("tat", "T AE T")
    Path("pairs.tsv").write_text("".join(f"{word}\t{sounds}\n" for word, sounds in words) * 5)
    Path("texts").mkdir()
    for number, text in enumerate(["the cat sat on the mat. ", "the dog lay on the rug. ", "a bird sang. "]):
        Path("texts", f"{number}.txt").write_text(text * 8)
    images, labels = toy()
    np.savez("toy.npz", images=images, labels=labels, classes=np.array(["above", "below"]))
    packed(Path("said.npz"), TEXTS, 2)
    soundfile.write("low.wav", said("low", 9), RATE)
    return tmp_path


def asked(*arguments: object) -> str:
    done = CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", CASES)
def test_a_task_from_its_first_steps_to_its_page(name: str, place: Path) -> None:
    recipe, score, paths, line = CASES[name]
    training = {"steps": 4, "minutes": None, "optimizer": {"learning_rate": 0.01}, **recipe.get("training", {})}
    Path("recipe.yaml").write_text(json.dumps({**recipe, "training": training}))
    whole = tasks.read_recipe("recipe.yaml")
    stopped = tasks.train(whole, folder="run", show=Interrupting()).result
    assert stopped.stopped == "interrupted" and 0 < stopped.step < 4
    learned = tasks.train(whole, folder="run", resume=True, show=Silent()).result
    assert (learned.stopped, learned.step) == ("finished", 4)
    assert score.lower() in asked("evaluate", "run", *paths).lower()
    plain = asked("run", "run", line.split("@")[0])
    assert plain.count("\n") == 1
    kept = {"bfloat16": torch.bfloat16, "int8": torch.int8}
    for numbers, dtype in kept.items():
        assert dtype in {one.dtype for one in tasks.load("run", numbers=numbers).model.state_dict().values()}
        assert asked("run", "run", "--numbers", numbers, line.split("@")[0]).count("\n") == 1
    asked("look", "run", line, "--html", "page.html")
    assert json.dumps(line)[1:-1] in Path("page.html").read_text()
