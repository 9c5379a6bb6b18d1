"""The commands and the Python of the README do what it says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from qkv import tasks
from qkv.cli import main

README = Path(__file__).parents[2] / "README.md"
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ qkv ")
]
SENTENCES = [
    ("a cat sleeps", "eine Katze schläft"),
    ("a dog runs", "ein Hund rennt"),
    ("a dog sleeps", "ein Hund schläft"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README speaks of."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "valid", "test"):
        for side, language in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in SENTENCES * 3)
            (tmp_path / f"{name}.{language}").write_text(text, encoding="utf-8")
    return tmp_path


def test_every_command_of_the_readme_works(place: Path) -> None:
    assert COMMANDS
    for command in COMMANDS:
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.output)
    page = (place / "look.html").read_text(encoding="utf-8")
    assert "knight" in page and not re.search(r"(src|href)=[\"']?https?:", page)


def test_the_answers_of_the_readme_are_right() -> None:
    text = README.read_text(encoding="utf-8")
    done = CliRunner().invoke(main, ["run", "pronunciation", "knight", "queue"])
    assert f"$ qkv run pronunciation knight queue\n{done.output}" in text


def test_two_files_make_a_model_as_the_documentation_says(place: Path) -> None:
    short = ["training.max_minutes=null", "training.max_steps=2", "tokenizer.source.vocab_size=300", "model.d_model=16"]
    run = ["train", "translation", "train.en", "train.de", "--valid", "valid.en", "valid.de", "--folder", "runs/mine"]
    done = CliRunner().invoke(main, [*run, *short])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["run", "runs/mine", "--input", "test.en", "--output", "test.out"])
    assert done.exit_code == 0 and (place / "test.out").read_text(encoding="utf-8").count("\n") == 9
    assert CliRunner().invoke(main, ["evaluate", "runs/mine", "test.en", "test.de"]).exit_code == 0
    assert "finished" in CliRunner().invoke(main, ["runs"]).output


def test_the_python_of_the_readme_works(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [program] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(program, names)
    weights = names["trace"]["decoder.2.cross_attention"].weights  # type: ignore[index]
    assert weights.shape[1] == 4 and weights.sum(-1).allclose(weights.new_ones(()))
    assert capsys.readouterr().out.startswith("N AY1 T")


@pytest.mark.parametrize("page", ["attribute-a-prediction", "bring-your-own-tensors"])
def test_the_python_of_a_guide_runs_from_top_to_bottom(
    page: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And prints what the guide says."""
    text = (README.parent / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for program in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(program, names)
    printed = "".join(re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL))
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("notebook", sorted(README.parent.glob("examples/*.ipynb")), ids=lambda path: path.stem)
def test_the_notebooks_run(notebook: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every code cell, in order, without Jupyter."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook.name, "exec"), names)


def test_the_shipped_translator_is_small_and_knows_the_texts_of_interfaces() -> None:
    runner = tasks.load("translation")
    folder = Path(tasks.__file__).parents[1] / "shipped" / "translation"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12 * 1024**2
    texts = {"Delete account": "Konto l\u00f6schen", "Settings saved": "Einstellungen gespeichert"}
    assert [one[0].text for one in runner.predict_ranked(texts)] == list(texts.values())
    assert "program interfaces" in runner.card.description


def test_the_shipped_pronouncer_is_small_and_right_about_words_it_knows() -> None:
    runner = tasks.load("pronunciation")
    folder = Path(tasks.__file__).parents[1] / "shipped" / "pronunciation"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * 1024**2
    words = {"attention": "AH0 T EH1 N SH AH0 N", "transformer": "T R AE0 N S F AO1 R M ER0", "key": "K IY1"}
    assert [one[0].text for one in runner.predict_ranked(words)] == list(words.values())


def test_links_and_pictures_of_the_documentation_are_there() -> None:
    root = README.parent
    for page in (README, *root.glob("docs/**/*.md")):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page, link)
    assert sum(path.stat().st_size for path in root.glob("docs/pictures/*.png")) < 2.2e6


def test_the_commands_of_the_documentation_have_the_options_they_name() -> None:
    """Of all pages but the README, whose commands run whole: each command, its options, and recipes by name."""
    pages = list(README.parent.glob("docs/**/*.md"))
    found = 0
    for page in pages:
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if not (command := re.search(r"(?:^|\s)qkv (\w+)(.*)", line.split(" # ")[0].split("    #")[0])):
                    continue
                words = shlex.split(command[2].split(" < ")[0].split(" > ")[0])
                assert command[1] in main.commands, line
                options = {flag for one in main.commands[command[1]].params for flag in one.opts}
                assert {word for word in words if word.startswith("--") and word != "--"} <= options, (page, line)
                if command[1] == "train" and not words[0].startswith("-"):
                    assert words[0] in tasks.list_recipes() or "/" in words[0], (page, line)
                found += 1
    assert found > 50
