"""What people read in a terminal: the help of every command, and what it says to common mistakes.

After a wanted change, write the snapshots anew and read the difference:
QKV_UPDATE_SNAPSHOTS=1 pytest tests/stories/test_snapshots.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import qkv
from qkv.cli import main

FOLDER = Path(__file__).parent / "snapshots"

MISTAKES = (
    "run pronuncation knight",
    "run nowhere/model knight",
    "run pronunciation --input missing.txt",
    "run pronunciation knight --input pairs.tsv",
    "run pronunciation knight --beam 0",
    "run pronunciation knight --tags --glossary missing.tsv",
    "run pairs.tsv knight",
    "evaluate pronunciation missing.tsv",
    "evaluate pronunciation pairs.tsv --baselines",
    "evaluate pronunciation pairs.tsv --option split=test",
    "evaluate pronunciation pairs.tsv --plot-returns out.svg",
    "evaluate pronunciation --corpus cmudct",
    "evaluate pronunciation",
    "look pronunciation knight",
    "look pronunciation",
    "look pronunciation knight --html a.html --serve",
    "look pronunciation knight --capture a.txt",
    "look pronunciation knight --plot-words a.svg --html a.html",
    "train",
    "train transltion",
    "train translation missing.en missing.de",
    "train translation one.txt",
    "train translation pairs.tsv pairs.tsv pairs.tsv",
    "train language-modeling pairs.tsv pairs.tsv",
    "train image-classification pairs.tsv",
    "train translation pairs.tsv training.max_step=3",
    "train translation pairs.tsv training.dropout=2",
    "train translation pairs.tsv training.optimizer.learning_rate=fast",
    "train translation pairs.tsv model.kind=transfomer",
    "train translation pairs.tsv --dtype float8",
    "train translation pairs.tsv --workers 0",
    "train translation pairs.tsv --from nowhere/model",
    "train --resume",
    "describe transformer-bse",
    "convert pronunciation out --to pdf",
    "convert pronunciation out",
    "data report transltion",
    "data lst",
    "demo --minutes 0",
    "rn pronunciation knight",
)


def list_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for name, command in main.commands.items():
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.commands]
    return found


def check(name: str, text: str) -> None:
    path = FOLDER / f"{name}.txt"
    if os.environ.get("QKV_UPDATE_SNAPSHOTS"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; if that is wanted, set QKV_UPDATE_SNAPSHOTS=1"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("pairs.tsv").write_text("cat\tK AE T\nact\tAE K T\ntact\tT AE K T\n" * 3, encoding="utf-8")
    Path("one.txt").write_text("a line\n", encoding="utf-8")


def test_help() -> None:
    texts = []
    for words in list_commands():
        done = CliRunner().invoke(main, [*words, "--help"], prog_name="qkv", terminal_width=100)
        assert done.exit_code == 0
        texts.append(f"$ qkv {' '.join([*words, '--help'])}\n{done.output}")
    check("help", "\n".join(texts))


def test_messages() -> None:
    texts = []
    for command in MISTAKES:
        done = CliRunner().invoke(main, command.split(), prog_name="qkv")
        assert done.exit_code == 2, (command, done.output)
        assert "Traceback" not in done.output
        said = done.stderr.replace(str(Path(qkv.__file__).parent), "qkv")
        said = re.sub(r"(from the Hugging Face Hub):[^\n]*", r"\1: ...", said)  # what the library says changes
        texts.append(f"$ qkv {command}\n{said}")
    check("messages", "\n".join(texts))
