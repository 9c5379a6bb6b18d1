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
from qkv.training.reporters import NullReporter
from tests.tasks.test_image_classification import make_images
from tests.tasks.test_speech import RATE, TEXTS, synthesize, write_npz

SMALL = {"d_model": 16, "heads": 2, "d_ff": 16}
PAIR = {**SMALL, "kind": "transformer", "encoder_layers": 1, "decoder_layers": 1}
DECODER = {**SMALL, "kind": "decoder", "layers": 1}


class Case(NamedTuple):
    """A recipe but for its training, the task's score, what it is scored on and a line to ask."""

    recipe: dict[str, Any]
    score: str
    paths: tuple[str, ...]
    line: str


def make_pairs_case(task: str, score: str, model: dict[str, Any] = PAIR, **more: Any) -> Case:
    data = {"train": [{"kind": "tsv", "path": "pairs.tsv"}], "valid": {"kind": "tsv", "path": "pairs.tsv"}}
    text = {"source": {"kind": "character"}} | ({"target": {"kind": "word"}} if task == "pronunciation" else {})
    return Case(
        {"task": task, "data": data, "tokenizer": text, "model": {**model, **more}}, score, ("pairs.tsv",), "cat"
    )


def make_speech_case(model: dict[str, Any], score: str) -> Case:
    origin = {"kind": "recordings", "path": "said.npz"}
    features = {"mels": 8, "sample_rate": RATE, "n_fft": 128, "hop_length": 64}
    data = {"train": [origin], "valid": origin, "features": features, "batch_frames": 400}
    validation = {"metric": score, "mode": "max" if score == "accuracy" else "min"}
    recipe: dict[str, Any] = {"task": "audio-classification", "data": data, "model": model}
    if score == "wer":
        recipe |= {"task": "speech-recognition", "tokenizer": {"kind": "word"}}
    return Case({**recipe, "training": {"validation": validation}}, score, ("said.npz",), "low.wav")


CASES = {
    "pronunciation": make_pairs_case("pronunciation", "WER"),
    "translation": make_pairs_case("translation", "BLEU"),
    "translate, recurrent": make_pairs_case(
        "translation", "BLEU", {"kind": "recurrent", "d_model": 16, "attention": "additive"}
    ),
    "summarization": make_pairs_case("summarization", "rougeL", pointer_generator=True),
    "summarize, a decoder": make_pairs_case("summarization", "rougeL", DECODER),
    "write": Case(
        {
            "task": "language-modeling",
            "data": {"train": [{"kind": "text_files", "path": "texts"}], "context": 16, "batch_tokens": 64},
            "tokenizer": {"kind": "character"},
            "model": DECODER,
        },
        "bits_per_byte",
        ("texts",),
        "the c",
    ),
    "see": Case(
        {
            "task": "image-classification",
            "data": {
                "train": [{"kind": "npz", "path": "toy.npz"}],
                "held_out": 0.2,
                "grayscale": True,
                "batch_size": 16,
            },
            "model": {"kind": "vit", "patch_size": 4, "d_model": 16, "heads": 2, "layers": 1},
        },
        "accuracy",
        ("toy.npz",),
        "toy.npz#1",
    ),
    "hear": make_speech_case({**SMALL, "kind": "speech_transformer", "encoder_layers": 1, "decoder_layers": 1}, "wer"),
    "hear, naming": make_speech_case({**SMALL, "layers": 1}, "accuracy"),
    "act": Case(
        {
            "task": "decision-transformer",
            "data": {
                "train": [{"kind": "rollouts", "environment": "key-to-door", "episodes": 40, "policy": "random"}],
                "context": 33,
                "batch_steps": 264,
            },
            "model": {**SMALL, "layers": 1},
            "training": {"label_smoothing": 0.0},
        },
        "achieved",
        ("1", "--option", "episodes=2"),
        "1@3",
    ),
}


class InterruptingReporter(NullReporter):
    """Presses Ctrl-C on the way."""

    def on_step_end(self, step: int, progress: float) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with something to train on for each task."""
    soundfile = pytest.importorskip("soundfile")
    monkeypatch.chdir(tmp_path)
    words = ("cat", "K AE T"), ("act", "AE K T"), ("tact", "T AE K T"), ("tat", "T AE T")
    Path("pairs.tsv").write_text("".join(f"{word}\t{sounds}\n" for word, sounds in words) * 5)
    Path("texts").mkdir()
    for number, text in enumerate(["the cat sat on the mat. ", "the dog lay on the rug. ", "a bird sang. "]):
        Path("texts", f"{number}.txt").write_text(text * 8)
    images, labels = make_images()
    np.savez("toy.npz", images=images, labels=labels, classes=np.array(["above", "below"]))
    write_npz(Path("said.npz"), TEXTS, 2)
    soundfile.write("low.wav", synthesize("low", 9), RATE)
    return tmp_path


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", CASES)
def test_a_task_from_its_first_steps_to_its_page(name: str, place: Path) -> None:
    recipe, score, paths, line = CASES[name]
    training = {"max_steps": 4, "max_minutes": None, "optimizer": {"learning_rate": 0.01}, **recipe.get("training", {})}
    Path("recipe.yaml").write_text(json.dumps({**recipe, "training": training}))
    whole = tasks.read_recipe("recipe.yaml")
    stopped = tasks.train(whole, folder="run", reporter=InterruptingReporter()).result
    assert stopped.stop_reason == "interrupted" and 0 < stopped.step < 4
    learned = tasks.train(whole, folder="run", resume=True, reporter=NullReporter()).result
    assert (learned.stop_reason, learned.step) == ("finished", 4)
    assert score.lower() in invoke("evaluate", "run", *paths).lower()
    plain = invoke("run", "run", line.split("@")[0])
    assert plain.count("\n") == 1
    kept = {"bfloat16": torch.bfloat16, "int8": torch.int8}
    for numbers, dtype in kept.items():
        assert dtype in {one.dtype for one in tasks.load("run", dtype=numbers).module.state_dict().values()}
        assert invoke("run", "run", "--dtype", numbers, line.split("@")[0]).count("\n") == 1
    invoke("look", "run", line, "--html", "page.html")
    assert json.dumps(line)[1:-1] in Path("page.html").read_text()
