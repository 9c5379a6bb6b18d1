"""The commands train and runs: own files, held-out parts, resuming, and mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qkv import config
from qkv.cli import main

TINY = [
    "model={kind: transformer, d_model: 8, heads: 2, d_ff: 8, encoder_layers: 1, decoder_layers: 1}",
    "tokenizer.source={kind: character}",
    "training.max_steps=3",
    "training.validation.every=3",
    "training.checkpointing.log_every=1",
    "training.validation.metric=loss",
    "training.validation.mode=min",
]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two files of lines, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    for part, count in (("train", 60), ("valid", 6)):
        for language in ("en", "de"):
            lines = "".join(f"{language} {part} {'ab' * (n % 5 + 1)} {n}\n" for n in range(count))
            (tmp_path / f"{part}.{language}").write_text(lines, encoding="utf-8")
    return tmp_path


def show(*arguments: str) -> dict[str, object]:
    done = invoke("train", *arguments, "--show")
    assert done.exit_code == 0, done.output
    Path("shown.yaml").write_text(done.stdout, encoding="utf-8")
    return dict(config.load_yaml("shown.yaml")["data"])


def test_own_files_replace_the_data_of_the_recipe(files: Path) -> None:
    data = show("translation", "train.en", "train.de")
    assert data["train"] == [{"kind": "parallel_files", "source": "train.en", "target": "train.de", "prefix": ""}]
    assert data["valid"] is None and data["test"] == [] and data["exclude"] == []


def test_valid_takes_files_up_to_the_next_option_or_assignment(files: Path) -> None:
    data = show("translation", "train.en", "train.de", "--valid", "valid.en", "valid.de", "data.batch_tokens=99")
    assert data["valid"] == {"kind": "parallel_files", "source": "valid.en", "target": "valid.de", "prefix": ""}
    assert data["batch_tokens"] == 99
    data = show("translation", "--valid", "valid.en", "valid.de", "--test", "valid.de", "valid.en", "--seed", "3")
    assert data["valid"] != data["test"] and len(data["test"]) == 1  # type: ignore[arg-type]


def test_options_change_the_recipe(files: Path) -> None:
    done = invoke(
        "train", "pronunciation", "--seed", "7", "--dtype", "float32", "--wandb", "--max-minutes", "2", "--show"
    )
    Path("shown.yaml").write_text(done.stdout, encoding="utf-8")
    training = config.load_yaml("shown.yaml")["training"]
    assert (training["seed"], training["precision"], training["max_minutes"]) == (7, "float32", 2.0)
    assert training["checkpointing"]["wandb"] is True and training["checkpointing"]["tensorboard"] is False


def test_help_of_a_recipe_lists_its_options() -> None:
    done = invoke("train", "translation", "--help")
    assert done.exit_code == 0
    for expected in ("training.optimizer.learning_rate=0.0015", "data.batch_tokens=3000", "RECIPE is a task"):
        assert expected in done.stdout
    assert "data.batch_tokens" not in invoke("train", "--help").stdout


def test_a_run_is_trained_listed_and_resumed(files: Path) -> None:
    done = invoke("train", "translation", "train.en", "train.de", *TINY)
    assert done.exit_code == 0, done.output
    assert "qkv run runs/translation" in done.stderr
    assert invoke("train", "translation", "train.en", "train.de", *TINY).exit_code == 2
    [heading, line] = invoke("runs").stdout.splitlines()
    assert heading.split() == ["run", "task", "state", "steps", "minutes", "best", "date"]
    assert line.split()[:4] == ["runs/translation", "translation", "finished", "3"] and " loss " in line
    resumed = invoke("train", "--resume", "runs/translation", "training.max_steps=5")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(Path("runs/translation/metrics.jsonl").read_text().splitlines()[-1])["step"] == 5


def test_an_interrupted_run_is_continued_by_the_command_that_it_prints(files: Path) -> None:
    words = [
        "translation",
        "train.en",
        "train.de",
        *TINY,
        "training.max_steps=100000",
        "training.validation.every=100000",
    ]
    command = [sys.executable, "-m", "qkv", "train", *words, "--folder", "runs/a b"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        said += process.stderr.readlines()
        assert process.wait(timeout=60) == 130, said
    assert said[-1].endswith("qkv train --resume 'runs/a b'\n")
    assert invoke("runs").stdout.splitlines()[1].split("  ")[2].strip() == "stopped"
    steps = json.loads(Path("runs/a b/metrics.jsonl").read_text().splitlines()[-1])["step"]
    done = invoke("train", "--resume", "runs/a b", f"training.max_steps={steps + 2}")
    assert done.exit_code == 0 and f"Resuming from step {steps:,}." in done.stderr, done.output


def test_a_dry_run_trains_nothing(files: Path) -> None:
    done = invoke("train", "translation", "train.en", "train.de", *TINY, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "parameters" in done.stdout and "a step" in done.stdout and not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["translation", "absent.en", "train.de"], "absent.en does not exist"),
        (["translation", "train.en", "train.de", "valid.en"], "expected two files of lines"),
        (["translation", "train.en", "train.de", "training.max_step=3"], "did you mean 'max_steps'"),
        (["translatoin", "train.en", "train.de"], "did you mean translation?"),
        ([], "Missing argument 'RECIPE'"),
        (["--resume"], "Missing argument 'RECIPE'"),
    ],
)
def test_a_mistake_gives_one_message(files: Path, arguments: list[str], expected: str) -> None:
    done = invoke("train", *arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert expected in done.stderr and "Traceback" not in done.stderr


def test_runs_of_an_empty_folder(files: Path) -> None:
    done = invoke("runs", "nowhere")
    assert done.exit_code == 0 and done.stdout == "" and "no runs in nowhere" in done.stderr
