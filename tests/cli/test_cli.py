"""The command: quick to answer, short about mistakes, one line out for each line in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import qkv
from qkv import spec
from qkv.cli import main
from qkv.errors import DataError, QkvError, SpecError

LINES = ["cat", "", "queue", "a cat"]


def invoke(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that has learned nothing."""
    import torch

    from qkv import tasks, text
    from qkv.decoding import DecodingConfig, Greedy, LengthLimit
    from qkv.models import build

    torch.manual_seed(0)
    tokenizer = text.train(["the quick cat", "a queue"], "character")
    shape = tasks.Transformer(d_model=8, heads=2, d_ff=8, encoder_layers=1, decoder_layers=1)
    built = build(shape.spec(tokenizer.size, tokenizer.size, True)).eval()
    decoding = DecodingConfig(Greedy(), LengthLimit(0, 5))
    folder = tmp_path_factory.mktemp("model")
    tasks.TextGenerator(built, tokenizer, tokenizer, tasks.TASKS["pronunciation"], decoding).save(folder)
    return folder


def test_help_names_every_command_and_imports_no_torch() -> None:
    program = (
        "import sys\nfrom qkv.cli import main\ntry:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print('HEAVY', sorted({'torch', 'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    for command in ("train", "run", "evaluate", "look", "data", "describe", "--version", "--debug"):
        assert command in done.stdout


def test_python_runs_the_package_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "qkv", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == invoke("--version").stdout


def test_lines_before_one_that_cannot_be_answered_are_answered(model: Path) -> None:
    from qkv import tasks

    answers = tasks.load(model).predict_ranked(["ab", "", "a" * 200_000, "ba"])
    assert len(next(answers)) == 1 and next(answers)[0].text == ""
    with pytest.raises(DataError, match="line 3 .* has"):
        next(answers)


@pytest.mark.parametrize(
    "command", ["train", "run", "evaluate", "look", "data", "data list", "data report", "describe"]
)
def test_every_command_explains_itself(command: str) -> None:
    done = invoke(*command.split(), "--help")
    assert done.exit_code == 0
    assert done.output.startswith("Usage: ")


def test_versions() -> None:
    assert qkv.__version__ in invoke("--version").output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["describe", "transformer-bse"], "did you mean transformer-base?"),
        (["describe", "."], "no such spec.json, model folder or preset"),
        (["run", "absent", "text"], "absent"),
        (["look", "absent", "text", "--html", "look.html"], "absent"),
        (["train", "absent.yaml"], "absent.yaml"),
        (["data", "report", "absent.yaml"], "absent.yaml"),
        (["evaluate", "absent", "--corpus", "a", "b.tsv"], "1 files and the corpus a were given"),
        (["run"], "Missing argument 'MODEL'"),
        (["run", "absent", "--beam", "0"], "--beam"),
        (["rum"], "No such command 'rum'"),
    ],
)
def test_a_users_mistake_gives_one_message_and_exit_code_2(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_every_problem_of_a_recipe_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("task: translat\ntrainning: {}\n")
    done = invoke("train", path, "data.valid.split=1")
    assert done.exit_code == 2
    assert "problems\n  " in done.stderr
    for expected in (
        "task: given 'translat'",
        "did you mean 'translation'?",
        "did you mean 'training'?",
        "data.valid.kind",
    ):
        assert expected in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (SpecError("heads=5"), 2, "Error: heads=5\n"),
        (QkvError("given this"), 2, "Error: given this\n"),
        (OSError(28, "No space left on device", "run/spec.json"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(error: BaseException, code: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise error

    monkeypatch.setitem(main.commands, "broken", broken)
    done = invoke("broken")
    assert done.exit_code == code
    assert shown in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_where_an_error_arose() -> None:
    done = invoke("--debug", "describe", "absent")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("Error: absent: there is no such spec.json")


def test_a_mistake_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(main.commands, "broken", broken)
    assert isinstance(invoke("broken").exception, ZeroDivisionError)


def test_describe_shows_the_tree_and_the_published_size() -> None:
    done = invoke("describe", "transformer-base")
    assert done.exit_code == 0
    assert "self_attention: Attention(heads=8, d_key=64, causal=True)" in done.stdout
    assert "blocks.0-5: Block(norm_at=post)" in done.stdout
    import torch

    from qkv import models, presets

    with torch.device("meta"):
        built = models.build(presets.PRESETS["transformer-base"]())
    total = sum(parameter.numel() for parameter in built.parameters())
    assert f"{total:,}" in done.stdout


def test_describe_reads_a_spec_and_a_folder(tmp_path: Path) -> None:
    choice = spec.Recurrent("gru", 8, 1, spec.Tokens(10), spec.Tokens(12), "additive")
    (tmp_path / "spec.json").write_text(spec.to_json(choice))
    one, other = invoke("describe", tmp_path), invoke("describe", tmp_path / "spec.json")
    assert one.exit_code == 0
    assert one.stdout == other.stdout
    assert one.stdout.startswith(
        "Recurrent(cell=gru, d_model=8, layers=1, attention=additive)\n  source: Tokens(vocab=10)"
    )
    (tmp_path / "spec.json").write_bytes(b"\xff")
    assert invoke("describe", tmp_path).exit_code == 2


def test_describe_says_what_a_model_is_for(tmp_path: Path) -> None:
    for name, words in (
        ("translation", "English to German, for the texts of program interfaces"),
        ("pronunciation", "CMU"),
    ):
        said, empty, tree, *_ = invoke("describe", name).stdout.splitlines()
        assert words in said and empty == "" and tree.startswith("Transformer(")
    (tmp_path / "spec.json").write_text(spec.to_json(spec.Recurrent("gru", 8, 1, spec.Tokens(10), spec.Tokens(12))))
    (tmp_path / "card.json").write_text('{"task": "translation", "description": "dogs to cats"}')
    assert invoke("describe", tmp_path).stdout.startswith("dogs to cats\n\nRecurrent(")
    assert invoke("describe", tmp_path, tmp_path).stdout.startswith(f"{tmp_path} -> {tmp_path}: no change")
    (tmp_path / "card.json").write_text('{"task"')
    done = invoke("describe", tmp_path)
    assert done.exit_code == 2 and "card.json is truncated or altered" in done.output


def test_run_answers_each_line_with_a_line(model: Path) -> None:
    done = invoke("run", model, stdin="\n".join(LINES) + "\n")
    assert done.exit_code == 0, done.output
    answers = done.stdout.split("\n")
    assert len(answers) == len(LINES) + 1 and answers[1] == "" and answers[-1] == ""
    assert invoke("run", model, *LINES).stdout == done.stdout


def test_run_gives_the_best_answers_of_a_line_in_one_line(model: Path) -> None:
    plain = invoke("run", model, "cat", "queue", "--n-best", "3", "--beam", "4")
    assert [line.count("\t") for line in plain.stdout.splitlines()] == [2, 2]
    done = invoke("run", model, "cat", "queue", "--n-best", "3", "--beam", "4", "--json")
    for line, texts in zip(done.stdout.splitlines(), plain.stdout.splitlines(), strict=True):
        answers = json.loads(line)
        assert [answer["text"] for answer in answers] == texts.split("\t")
        assert [answer["score"] for answer in answers] == sorted((a["score"] for a in answers), reverse=True)


@pytest.mark.parametrize(
    ("line", "expected"), [(b"\xff", "standard input, line 3"), (b"a" * 100_000, "line 3 ('aaa")], ids=["bytes", "long"]
)
def test_run_answers_what_comes_before_a_line_that_it_cannot_answer(model: Path, line: bytes, expected: str) -> None:
    done = invoke("run", model, stdin=b"cat\nqueue\n" + line + b"\ncat\n")
    assert done.exit_code == 2
    assert expected in done.stderr
    assert done.stdout == invoke("run", model, "cat", "queue").stdout


def test_a_reader_who_leaves_early_is_no_error(model: Path) -> None:
    command = [sys.executable, "-c", "from qkv.cli import main; main()", "run", str(model)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write(b"cat\n" * 20)
    process.stdin.close()
    complaint = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert complaint == b""


def test_look_writes_a_page(model: Path, tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    done = invoke("look", model, "cat", "--html", page)
    assert done.exit_code == 0, done.output
    assert str(page) in done.stdout
    assert "<html" in page.read_text(encoding="utf-8")


def test_evaluate_scores_files_and_says_how(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("cat\tK AE T\nqueue\tK Y UW\n")
    done = invoke("evaluate", model, path)
    assert done.exit_code == 0, done.output
    assert "wer" in done.stdout and "2 lines" in done.stdout


def test_data_list_says_whence_and_on_what_terms() -> None:
    done = invoke("data", "list")
    assert done.exit_code == 0
    for expected in ("cmudict\n", "multi30k\n", "licence: ", "sha256 ", "train 29,000"):
        assert expected in done.stdout


def test_data_report_counts_what_is_left_out_and_what_leaks(tmp_path: Path) -> None:
    for name, words in (("train", "abcdef"), ("valid", "axy"), ("hidden", "bc")):
        (tmp_path / f"{name}.tsv").write_text("".join(f"{word}\tK {word}\n" for word in words))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "task: pronunciation\n"
        "training: {max_steps: 10}\n"
        f"data:\n  train: [{{kind: tsv, path: {tmp_path}/train.tsv}}]\n"
        f"  valid: {{kind: tsv, path: {tmp_path}/valid.tsv}}\n"
        f"  exclude: [{{kind: tsv, path: {tmp_path}/hidden.tsv}}]\n"
    )
    done = invoke("data", "report", path)
    assert done.exit_code == 0, done.output
    assert "train.tsv: 4 examples to train on" in done.stdout
    assert "2 of 6 left out" in done.stdout
    assert "leakage: 1 of 3" in done.stdout
