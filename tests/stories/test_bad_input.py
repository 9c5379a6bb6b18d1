"""A user's mistake gets one clear message and exit code 2, and what was there before stays as it was."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from qkv import tasks
from qkv.cli import main
from qkv.errors import StorageError

WORDS = {"cat": "K AE T", "act": "AE K T", "tact": "T AE K T", "tat": "T AE T", "at": "AE T", "cab": "K AE B"}
GOOD = "".join(f"{word}\t{sounds}\n" for word, sounds in WORDS.items()) * 25  # 150 lines: one of them is under 1%
RECIPE = """
task: pronunciation
data:
  train: [{{kind: tsv, path: {folder}/train.tsv}}]
  valid: {{kind: tsv, path: {folder}/valid.tsv}}
  batch_tokens: 600
tokenizer: {{source: {{kind: character}}, target: {{kind: word}}}}
model: {{kind: transformer, d_model: 8, heads: 2, d_ff: 8, encoder_layers: 1, decoder_layers: 1}}
training: {{max_steps: 2, precision: float32, validation: {{every: 2}}}}
decoding: {{length: {{factor: 0, constant: 3}}}}
"""


def invoke(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def invoke_refused(*arguments: str | Path, stdin: str | bytes | None = None) -> str:
    """The message about a mistake."""
    done = invoke(*arguments, stdin=stdin)
    assert done.exit_code == 2, (done.output, done.exception)
    assert "Error: " in done.stderr and "Traceback" not in done.stderr
    return done.stderr


def read_contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def place(folder: Path) -> Path:
    """A folder with a recipe and its data."""
    (folder / "train.tsv").write_text(GOOD)
    (folder / "valid.tsv").write_text("tac\tT AE K\nbat\tB AE T\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return place(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its data and a finished run, to be looked at only."""
    folder = place(tmp_path_factory.mktemp("trained"))
    done = invoke("train", folder / "recipe.yaml", "--folder", folder / "run")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run to do harm to."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


# -- text ---------------------------------------------------------------------------------------------------------


def test_unequal_line_counts(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("cat\nact\n")
    (tmp_path / "two").write_text("K AE T\n")
    for said in (
        invoke_refused("evaluate", trained / "run", tmp_path / "one", tmp_path / "two"),
        invoke_refused(
            "train",
            trained / "recipe.yaml",
            f"data.train=[{{kind: parallel_files, source: {tmp_path}/one, target: {tmp_path}/two}}]",
            "--folder",
            tmp_path / "run",
        ),
    ):
        assert "one has 2 lines" in said and "two has 1" in said and "expected as many in both" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"cat\tK\n\xff\tK\n", ["line 2, byte 1: 0xFF is not UTF-8", "save the file as UTF-8"]),
        (b"", ["train.tsv is empty; expected at least one line"]),
        (b"\x1f\x8b\x08\x00", ["damaged gzip file", "copy or download it again"]),
        (b"cat\tK\nact\n", ["line 2 has 1 columns, expected 2", "missing or additional tab"]),
        (b"cat\nact\n", ["has 1 column separated by tabs; expected columns 0 and 1", "columns that are there"]),
        (b"\tK\n" * 5, ["no text"]),
    ],
)
def test_a_file_that_cannot_be_learned_from(work: Path, content: bytes, expected: list[str]) -> None:
    (work / "train.tsv").write_bytes(content)
    said = invoke_refused("train", work / "recipe.yaml", "--folder", work / "run")
    assert all(words in said for words in expected), said


def test_broken_utf8_on_standard_input(trained: Path) -> None:
    said = invoke_refused("run", trained / "run", stdin=b"cat\nc\xe4t\n")
    assert "standard input, line 2, byte 2: 0xE4 is not UTF-8" in said and "save the file as UTF-8" in said
    invoke_refused("run", trained / "run", stdin=bytes(range(256)))


def test_empty_lines_are_answered_in_their_place(trained: Path) -> None:
    done = invoke("run", trained / "run", stdin="\ncat\n\n \nact")
    assert done.exit_code == 0
    lines = done.stdout.split("\n")
    assert len(lines) == 6 and lines[0] == lines[2] == lines[3] == ""
    assert invoke("run", trained / "run", stdin=b"").stdout == ""


@pytest.mark.parametrize("line", ["\tK AE T\n", "a" * 100_000 + "\tK\n", "cat\t" + "K " * 100_000 + "\n"])
def test_lines_that_cannot_be_learned_are_counted_and_stop_the_run_when_many(work: Path, line: str) -> None:
    (work / "train.tsv").write_text(GOOD + line)
    done = invoke("train", work / "recipe.yaml", "--folder", work / "run")
    assert done.exit_code == 0, done.output
    assert (
        "151 examples: 150 kept" in done.stderr and "1 dropped (0.66%)" in done.stderr and "example 151" in done.stderr
    )
    (work / "train.tsv").write_text(GOOD + 2 * line)
    said = invoke_refused("train", work / "recipe.yaml", "--folder", work / "other")
    assert "1.3% of the examples would be dropped, 1.0% may be" in said and "max_dropped_fraction=0.014" in said
    assert not (work / "other" / "model.safetensors").exists()


def test_a_line_that_is_too_long_to_answer_is_named(trained: Path, tmp_path: Path) -> None:
    said = invoke_refused("run", trained / "run", stdin="cat\n" * 600 + "a" * 100_000 + "\n")
    assert "line 601" in said and "100,001 tokens; expected at most 4,096" in said and "cut it into sentences" in said
    (tmp_path / "pairs.tsv").write_text("cat\tK AE T\n" + "a" * 100_000 + "\tK\n")
    assert "line 2" in invoke_refused("evaluate", trained / "run", tmp_path / "pairs.tsv")
    invoke_refused("look", trained / "run", "a" * 100_000, "--html", tmp_path / "look.html")
    assert not (tmp_path / "look.html").exists()


def test_a_line_that_is_too_long_to_validate_on_is_named_before_training(work: Path) -> None:
    (work / "valid.tsv").write_text("tac\tT AE K\n" + "a" * 100_000 + "\tK\n")
    said = invoke_refused(
        "train", work / "recipe.yaml", "data.cleaning.max_dropped_fraction=1", "--folder", work / "run"
    )
    assert "valid.tsv, question 2" in said and "100,000 tokens" in said and "take it out" in said


def test_unknown_characters_are_answered_and_mentioned(trained: Path) -> None:
    done = invoke("run", trained / "run", "cat", "кот", "c😀t")
    assert done.exit_code == 0 and done.stdout.count("\n") == 3
    assert done.stderr.count("does not know") == 1 and "'\\u043a'" in done.stderr and "U0001f600" in done.stderr
    assert invoke("run", trained / "run", "cat").stderr == ""


def test_looking_at_nothing_or_at_an_answer_that_cannot_be(trained: Path, tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    assert "expected some text" in invoke_refused("look", trained / "run", "  ", "--html", page)
    said = invoke_refused("look", trained / "run", "cat", "--answer", "K ER1 T", "--html", page)
    assert "holds ER1, which this model never gives" in said
    assert not page.exists()
    assert invoke("look", trained / "run", "кот", "--html", page).exit_code == 0


# -- model folders ------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


HARM: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda run: shutil.rmtree(run), "there is no model folder"),
    ("no weights", lambda run: (run / "model.safetensors").unlink(), "training has not ended"),
    ("truncated", lambda run: truncate(run / "model.safetensors"), "Copy it again"),
    ("tampered", lambda run: flip_bit(run / "model.safetensors"), "was altered after it was written"),
    ("pickle", lambda run: (run / "model.safetensors").write_bytes(b"\x80\x04\x95."), "not a checkpoint"),
    ("card", lambda run: truncate(run / "card.json"), "card.json is truncated"),
    ("spec", lambda run: truncate(run / "spec.json"), "spec.json: the spec is not JSON"),
    ("eps", lambda run: edit_text(run / "spec.json", '"heads": 2', '"heads": 4'), "spec.json"),
    (
        "heads",
        lambda run: edit_text(run / "spec.json", '"d_model": 8', '"d_model": -1'),
        "spec.json: Stack: d_model=-1 was given",
    ),
    ("tokenizer", lambda run: truncate(run / "source.tokenizer.json"), "is not a complete tokenizer.json"),
    (
        "mismatch",
        lambda run: shutil.copy(run / "target.tokenizer.json", run / "source.tokenizer.json"),
        "not the one that the model was trained with",
    ),
]


@pytest.mark.parametrize(("harm", "expected"), [entry[1:] for entry in HARM], ids=[entry[0] for entry in HARM])
def test_a_harmed_model_folder(run: Path, harm: Callable[[Path], object], expected: str) -> None:
    harm(run)
    before = read_contents(run) if run.exists() else {}
    said = invoke_refused("run", run, "cat")
    assert expected in said, said
    assert str(run) in said
    assert before == (read_contents(run) if run.exists() else {})


def test_a_changed_number_in_the_spec_that_fits_the_weights_is_noticed(run: Path) -> None:
    tree = json.loads((run / "spec.json").read_text())
    tree["encoder"]["final_norm"]["eps"] = 0.1
    (run / "spec.json").write_text(json.dumps(tree))
    said = invoke_refused("run", run, "cat")
    assert "not the spec the model was saved with" in said and "from the same run" in said


def test_a_misspelt_model_is_answered_with_the_nearest() -> None:
    assert "did you mean pronunciation?" in invoke_refused("run", "pronuncation", "cat")


# -- runs that go on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (truncate, "truncated"),
        (flip_bit, "was altered"),
        (lambda path: path.write_bytes(b""), "truncated"),
        (lambda path: shutil.copy(path.with_name("model.safetensors"), path), "no state of a training run"),
        (lambda path: path.unlink(), "holds a model, and no run to resume"),
    ],
    ids=["truncated", "tampered", "empty", "other", "missing"],
)
def test_a_harmed_checkpoint_is_not_resumed(
    trained: Path, run: Path, harm: Callable[[Path], object], expected: str
) -> None:
    harm(run / "checkpoint.safetensors")
    before = read_contents(run)
    said = invoke_refused("train", trained / "recipe.yaml", "training.max_steps=3", "--folder", run, "--resume")
    assert expected in said, said
    after = read_contents(run)
    assert {name: before[name] for name in before if name != "recipe.yaml"} == {
        name: after[name] for name in after if name != "recipe.yaml"
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], "already holds a run. Resume it (--resume)"),
        (["--resume", "training.seed=2"], "begun with training.seed=1 (given: 2)"),
        (
            ["--resume", "tokenizer.source.kind=byte", "model.d_ff=16"],
            "tokenizer.source.kind=character (given: byte), model.d_ff=8",
        ),
        (["--resume", "data.train.0.source=1"], "begun with data.train="),
    ],
)
def test_a_run_is_not_overwritten_or_gone_on_with_otherwise(
    trained: Path, run: Path, changes: list[str], expected: str
) -> None:
    before = read_contents(run)
    said = invoke_refused("train", trained / "recipe.yaml", *changes, "--folder", run)
    assert expected in said and "--folder" in said
    assert before == read_contents(run)


def test_other_data_under_the_same_name_are_noticed(work: Path) -> None:
    assert invoke("train", work / "recipe.yaml", "--folder", work / "run").exit_code == 0
    (work / "train.tsv").write_text(GOOD + "cat\tK AE T\n")
    said = invoke_refused("train", work / "recipe.yaml", "training.max_steps=3", "--folder", work / "run", "--resume")
    assert "examples was 150 and is 151" in said and "give the same data" in said


def test_a_run_that_was_stopped_by_ctrl_c_goes_on(work: Path) -> None:
    command = [sys.executable, "-c", "from qkv.cli import main; main()", "train", str(work / "recipe.yaml")]
    command += ["training.max_steps=1000000", "training.validation.every=1000000", "training.checkpointing.log_every=1"]
    command += ["--folder", str(work / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 130
    assert "Traceback" not in rest and "--resume" in rest and (work / "run" / "model.safetensors").exists()
    steps = json.loads((work / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    more: list[str | Path] = [
        "training.validation.every=1000000",
        "training.checkpointing.log_every=1",
        "--folder",
        work / "run",
        "--resume",
    ]
    done = invoke("train", work / "recipe.yaml", f"training.max_steps={steps + 2}", *more)
    assert done.exit_code == 0, done.output
    assert f"Resuming from step {steps:,}" in done.stderr


# -- recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["model.heads=3"], ["model: d_model=8 is not a multiple of heads=3"]),
        (["training.max_steps=many"], ["training.max_steps: given 'many', expected a whole number"]),
        (["data.batch_tokens=1.5"], ["data.batch_tokens: given 1.5, expected a whole number"]),
        (
            ["model.haeds=3", "data.valid.kind=tvs", "trainning.dropout=0.1", "training.max_steps=many"],
            ["4 problems", "did you mean 'heads'?", "did you mean 'tsv'?", "did you mean 'training'?", "'many'"],
        ),
        (["data.train=[{kind: corpus, name: cmudct, split: train}]"], ["no corpus 'cmudct', did you mean 'cmudict'?"]),
        (["data.train=[{kind: corpus, name: cmudict, split: trian}]"], ["no split 'trian', did you mean 'train'?"]),
        (["training.validation.metric=blue"], ["metric: given 'blue', expected one of loss, wer, per"]),
        (["training.validation={every: 1, metric: wer, mode: max}"], ["wer needs mode min"]),
        (["data.batch_tokens=5"], ["a batch may take 5", "data.batch_tokens"]),
        (["tokenizer.target={kind: bpe, vocab_size: 10}"], ["vocab=10 does not fit kind 'bpe': expected at least 260"]),
    ],
)
def test_a_recipe_that_cannot_be(work: Path, changes: list[str], expected: list[str]) -> None:
    said = invoke_refused("train", work / "recipe.yaml", *changes, "--folder", work / "run")
    assert all(words in said for words in expected), said
    assert not (work / "run" / "checkpoint.safetensors").exists()


def test_debug_shows_where(work: Path) -> None:
    done = invoke("--debug", "train", work / "recipe.yaml", "model.heads=3")
    assert done.exit_code == 2 and "Traceback" in done.stderr


def test_options_of_a_corpus_need_one(trained: Path) -> None:
    said = invoke_refused("evaluate", trained / "run", trained / "valid.tsv", "--option", "split=test")
    assert "split=test was given without a corpus" in said and "--corpus" in said


@pytest.mark.parametrize("package", ["sacrebleu", "tensorboard"])
def test_a_missing_extra_is_named_before_training(work: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package or "torch.utils.tensorboard" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    changes = ["task=translation"] if package == "sacrebleu" else ["training.checkpointing.tensorboard=true"]
    said = invoke_refused("train", work / "recipe.yaml", *changes, "--folder", work / "run")
    assert f"{package}" in said and "install" in said.lower() and "qkv[" in said
    assert not (work / "run" / "checkpoint.safetensors").exists()


# -- places -------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_saved_model_whole(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, before = tasks.load(run), read_contents(run)
    with torch.no_grad():
        next(runner.module.parameters()).add_(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(StorageError, match="free some space"):
            runner.save(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_contents(run) == before
    monkeypatch.setattr("secrets.token_hex", lambda count: "x")
    (run / ".target.tokenizer.json.x.part").mkdir()  # now all but the last file can be written
    with pytest.raises(StorageError, match="choose another"):
        runner.save(run)
    assert read_contents(run) == before
    assert invoke("run", run, "cat").exit_code == 0


def test_a_full_disk_while_training_is_named_and_keeps_what_was_there(trained: Path, run: Path) -> None:
    before = read_contents(run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        said = invoke_refused("train", trained / "recipe.yaml", "training.max_steps=3", "--folder", run, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "could not be written" in said and "free some space" in said
    after = read_contents(run)
    for name in ("checkpoint.safetensors", "model.safetensors", "spec.json", "card.json"):
        assert after[name] == before[name]
    done = invoke("train", trained / "recipe.yaml", "training.max_steps=3", "--folder", run, "--resume")
    assert done.exit_code == 0, done.output


def test_answers_that_cannot_be_written_still_leave_the_scores(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = invoke("evaluate", trained / "run", trained / "valid.tsv", "--answers", tmp_path / "file" / "answers")
    assert done.exit_code == 2 and "could not be written" in done.stderr and "wer" in done.stdout


def test_a_folder_that_is_a_file(work: Path) -> None:
    said = invoke_refused("train", work / "recipe.yaml", "--folder", work / "train.tsv")
    assert "train.tsv could not be created" in said and "choose a writable folder" in said
    assert (work / "train.tsv").read_text() == GOOD


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_others_may_read_a_saved_model(trained: Path) -> None:
    assert (trained / "run" / "model.safetensors").stat().st_mode & 0o044 == 0o044
