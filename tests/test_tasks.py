"""Every task from a recipe to a model that answers: train, stop, resume, save, load, evaluate, look."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import qkv
from qkv import config, tasks
from qkv.errors import CheckpointError, ConfigError, DataError, QkvError, TrainingError, VocabularyError
from qkv.tasks.pairs import _spread
from qkv.tasks.runner import with_method
from qkv.training import Result
from qkv.training.progress import Silent

TRANSFORMER = {"kind": "transformer", "d_model": 16, "heads": 2, "d_ff": 16, "encoder_layers": 1, "decoder_layers": 1}
RECURRENT = {"kind": "recurrent", "d_model": 16, "attention": "additive"}
WORDS = {"cat": "K AE T", "act": "AE K T", "tact": "T AE K T", "tat": "T AE T", "at": "AE T", "cab": "K AE B"}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of pairs to learn, and one to check on beside it."""
    lines = [f"{word}\t{sounds}" for word, sounds in WORDS.items()]
    (tmp_path / "train.tsv").write_text("\n".join(lines * 5) + "\n")
    (tmp_path / "valid.tsv").write_text("tac\tT AE K\ntac\tT EY K\nbat\tB AE T\n")
    return tmp_path


def recipe(pairs: Path, task: str = "pronounce", model: dict[str, Any] = TRANSFORMER, **training: Any) -> tasks.Recipe:
    return config.read(
        tasks.Recipe,
        {
            "task": task,
            "data": {
                "train": [{"kind": "tsv", "path": str(pairs / "train.tsv")}],
                "valid": {"kind": "tsv", "path": str(pairs / "valid.tsv")},
                "batch_tokens": 60,
            },
            "text": {"source": {"kind": "character"}, "target": {"kind": "word"}},
            "model": model,
            "training": {"steps": 8, "validation": {"every": 4}, "saving": {"log_every": 2}, **training},
            "decoding": {"length": {"factor": 2.0, "constant": 2}},
        },
    )


def test_a_model_knows_what_stood_before_its_sources(pairs: Path) -> None:
    plain = recipe(pairs, model=RECURRENT)
    marked = replace(plain.data.train[0], before="<BT>")
    asked = replace(plain, data=replace(plain.data, train=(*plain.data.train, marked)))
    learned = tasks.train(asked, folder=pairs / "run", show=Silent())
    assert learned.runner.led_by == qkv.load(pairs / "run").led_by == ("", "<BT>")


@pytest.mark.parametrize("task", ["translate", "pronounce"])
@pytest.mark.parametrize("model", [TRANSFORMER, RECURRENT], ids=["transformer", "recurrent"])
def test_a_task_trains_answers_scores_and_shows(pairs: Path, task: str, model: dict[str, Any]) -> None:
    learned = tasks.train(recipe(pairs, task, model), folder=pairs / "run", show=Silent())
    assert learned.result.step == 8
    runner = qkv.load(pairs / "run")
    lines = ["cat", "", "tactact", "Cat "]
    answers = list(runner.run(lines))
    assert len(answers) == len(lines) and answers[1][0].text == ""
    assert [one[0].text for one in answers] == [one[0].text for one in learned.runner.run(lines)]
    if task == "pronounce":
        assert answers[3] == answers[0]
    origin = tasks.origin_of([pairs / "valid.tsv"])
    report = tasks.evaluate(runner, tasks.pairs_of([origin], runner.task))
    assert len(report.answers) == (2 if task == "pronounce" else 3)
    assert runner.task.metric in report.scores and str(report).count("\n") >= 2
    looked = runner.look("cat")
    assert looked.source_tokens == ["c", "a", "t", "</s>"]
    assert looked.target_tokens[0] == "<s>"
    assert all(differences.max() < 1e-5 for differences in looked.trace.certify().values())
    assert json.loads((pairs / "run" / "metrics.jsonl").read_text().splitlines()[0])


class Interrupting(Silent):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def tick(self, step: int, progress: float) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_was_stopped_ends_with_the_same_bytes(pairs: Path) -> None:
    whole = recipe(pairs, steps=11, dropout=0.3, ema=0.9)
    tasks.train(whole, folder=pairs / "whole", show=Silent())
    results: list[Result] = []
    for stop in (3, 7, None):
        show = Silent() if stop is None else Interrupting(stop)
        results.append(tasks.train(whole, folder=pairs / "parts", resume=True, show=show).result)
    assert [result.stopped for result in results] == ["interrupted", "interrupted", "finished"]
    names = ["model.safetensors", "source.tokenizer.json", "target.tokenizer.json", "spec.json"]
    for name in names:
        assert (pairs / "whole" / name).read_bytes() == (pairs / "parts" / name).read_bytes()


def test_data_that_is_streamed_teaches_what_a_list_does(pairs: Path) -> None:
    tree, task = recipe(pairs, steps=5), tasks.TASKS["pronounce"]
    read = tasks.gather(tree.data, task)
    assert not isinstance(read.train[0], list) and len(read.train[0]) == 30
    kept = tasks.Examples([list(part) for part in read.train], read.valid)
    for name, examples in (("read", read), ("kept", kept)):
        tasks.learn(tree, examples, pairs / name, show=Silent())
    for name in ("model.safetensors", "source.tokenizer.json", "target.tokenizer.json"):
        assert (pairs / "read" / name).read_bytes() == (pairs / "kept" / name).read_bytes()


def test_the_tokens_lie_on_the_disk_while_the_run_lasts(pairs: Path) -> None:
    tasks.train(recipe(pairs), folder=pairs / "run", show=Interrupting(3))
    [store] = (pairs / "run" / "tokens").iterdir()
    written = (store / "ids.npy").stat().st_mtime_ns
    tasks.train(recipe(pairs), folder=pairs / "run", resume=True, show=Interrupting(5))
    assert (store / "ids.npy").stat().st_mtime_ns == written
    tasks.train(recipe(pairs), folder=pairs / "run", resume=True, show=Silent())
    assert not (pairs / "run" / "tokens").exists()


def logits(runner: tasks.Runner) -> torch.Tensor:
    source, target = torch.tensor([[4, 5, 2]]), torch.tensor([[1, 4, 5]])
    with torch.no_grad():
        result: torch.Tensor = runner.model(source, target, torch.ones(1, 3, dtype=torch.bool))
    return result


@pytest.fixture
def base(pairs: Path) -> Path:
    """The folder of a model to go on from."""
    tasks.train(recipe(pairs), folder=pairs / "base", show=Silent())
    return pairs / "base"


def further(pairs: Path, base: Path, *changes: str, **training: Any) -> tasks.Recipe:
    """A recipe that goes on from a model."""
    tree = config.write(recipe(pairs, **training))
    return config.read(
        tasks.Recipe, config.override(tree, [f"model={{kind: from, folder: {base}}}", "text={}", *changes])
    )


def test_going_on_from_a_model_begins_with_all_it_knows(pairs: Path, base: Path) -> None:
    still = further(pairs, base, "training.optimizer.learning_rate=1e-30")
    learned = tasks.train(still, folder=pairs / "still", show=Silent())
    assert learned.result.step == 8
    before, after = tasks.load(base), tasks.load(pairs / "still")
    assert torch.equal(logits(before), logits(after))
    assert (before.source, before.target) == (after.source, after.target)
    moved = tasks.train(further(pairs, base), folder=pairs / "moved", show=Silent()).runner
    assert not torch.equal(logits(before), logits(moved))
    assert torch.equal(logits(tasks.load(base)), logits(before))


def test_going_on_from_a_model_resumes_exactly(pairs: Path, base: Path) -> None:
    tree = further(pairs, base, steps=9, dropout=0.3)
    tasks.train(tree, folder=pairs / "whole", show=Silent())
    tasks.train(tree, folder=pairs / "parts", show=Interrupting(4))
    tasks.train(tree, folder=pairs / "parts", resume=True, show=Silent())
    for name in ("model.safetensors", "source.tokenizer.json", "target.tokenizer.json", "spec.json"):
        assert (pairs / "whole" / name).read_bytes() == (pairs / "parts" / name).read_bytes()


def test_going_on_from_a_model_that_does_not_fit(pairs: Path, base: Path) -> None:
    with pytest.raises(ConfigError, match="text: given beside .*take text out"):
        further(pairs, base, "text.source.kind=byte")
    with pytest.raises(CheckpointError, match="no model folder"):
        tasks.train(further(pairs, pairs / "absent"), folder=pairs / "run", show=Silent())
    with (pairs / "train.tsv").open("a") as file:
        file.write("cot\tK OW T\n")
    with pytest.raises(VocabularyError, match=r"1 of 31 examples .* such as 'cot' with 'o'; expected at most 1.0%"):
        tasks.train(further(pairs, base), folder=pairs / "run", show=Silent())
    allowed = further(pairs, base, "data.cleaning.allow_dropped=0.05")
    assert tasks.train(allowed, folder=pairs / "run", show=Silent()).result.step == 8
    with pytest.raises(TrainingError, match="already holds a run"):
        tasks.train(further(pairs, base), folder=base, show=Silent())


def test_a_folder_in_use_is_left_alone(pairs: Path) -> None:
    tasks.train(recipe(pairs), folder=pairs / "run", show=Silent())
    before = {path.name: path.read_bytes() for path in (pairs / "run").iterdir() if path.is_file()}
    with pytest.raises(TrainingError, match="already holds a run"):
        tasks.train(recipe(pairs, steps=3), folder=pairs / "run", show=Silent())
    assert before == {path.name: path.read_bytes() for path in (pairs / "run").iterdir() if path.is_file()}


def test_several_origins_are_mixed_by_weight(pairs: Path) -> None:
    tree = config.write(recipe(pairs))
    tree["data"]["train"] *= 2
    tree["data"]["weights"] = [3.0, 1.0]
    learned = tasks.train(config.read(tasks.Recipe, tree), folder=pairs / "run", show=Silent())
    assert learned.result.step == 8


def test_held_out_sources_are_left_out_and_leaks_are_named(pairs: Path) -> None:
    (pairs / "test.tsv").write_text("cat\tK AE T\n")
    tree = config.write(recipe(pairs))
    held_out = [{"kind": "tsv", "path": str(pairs / "test.tsv")}]
    leaking = config.read(tasks.Recipe, config.override(tree, [f"data.test={json.dumps(held_out)}"]))
    task = tasks.TASKS["pronounce"]
    [note] = tasks.gather(leaking.data, task).notes
    assert "leakage: 1 of 1" in note and "cat" in note
    clean = config.read(tasks.Recipe, config.override(tree, [f"data.without={json.dumps(held_out)}"]))
    examples = tasks.gather(clean.data, task)
    assert "cat" not in {source for source, _ in examples.train[0]} and len(examples.train[0]) == 25


def test_too_much_that_cannot_be_used_stops_before_training(pairs: Path) -> None:
    with (pairs / "train.tsv").open("a") as file:
        file.write("a\t" + "K " * 100_000 + "\n")
    with pytest.raises(DataError, match=r"longer than|100,000"):
        tasks.train(recipe(pairs), folder=pairs / "run", show=Silent())
    assert not (pairs / "run" / "model.safetensors").exists()


def broken(folder: Path, what: str) -> None:
    model = folder / "model.safetensors"
    if what == "missing":
        model.unlink()
    elif what == "truncated":
        model.write_bytes(model.read_bytes()[:-7])
    elif what == "tampered":
        content = bytearray(model.read_bytes())
        content[-1] ^= 1
        model.write_bytes(bytes(content))
    elif what == "card":
        (folder / "card.json").write_text("{")
    elif what == "task":
        (folder / "card.json").write_text('{"task": "sing"}')
    elif what == "spec":
        text = (folder / "spec.json").read_text()
        (folder / "spec.json").write_text(text.replace('"d_ff": 16', '"d_ff": 32'))
    elif what == "vocabulary":
        shutil.copy(folder / "target.tokenizer.json", folder / "source.tokenizer.json")


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("missing", CheckpointError, "model.safetensors is missing"),
        ("truncated", CheckpointError, "cut short"),
        ("tampered", CheckpointError, "altered"),
        ("card", CheckpointError, "card.json is cut short"),
        ("task", CheckpointError, "task='sing'"),
        ("spec", CheckpointError, "not the spec the model was saved with"),
        ("vocabulary", VocabularyError, "not the one the model learned with"),
    ],
)
def test_a_damaged_model_folder_is_refused_by_name(pairs: Path, what: str, error: type[QkvError], words: str) -> None:
    tasks.train(recipe(pairs, steps=1), folder=pairs / "run", show=Silent())
    broken(pairs / "run", what)
    with pytest.raises(error) as raised:
        qkv.load(pairs / "run")
    assert words in str(raised.value)


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(CheckpointError, match="no model folder 'pronuonce'"):
        qkv.load("pronuonce")


def test_half_the_bytes_give_the_same_answers(pairs: Path) -> None:
    learned = tasks.train(recipe(pairs), folder=pairs / "run", show=Silent())
    learned.runner.save(pairs / "half", dtype=torch.float16)
    size = (pairs / "half" / "model.safetensors").stat().st_size
    assert size < 0.7 * (pairs / "run" / "model.safetensors").stat().st_size
    half = qkv.load(pairs / "half")
    assert [a[0].text for a in half.run(WORDS)] == [a[0].text for a in learned.runner.run(WORDS)]


def test_decoding_can_be_widened_and_narrowed(pairs: Path) -> None:
    runner = tasks.train(recipe(pairs), folder=pairs / "run", show=Silent()).runner
    [several] = runner.run(["cat"], with_method(runner.decoding, n_best=3))
    assert len(several) == 3 and several[0].score >= several[1].score >= several[2].score
    [[greedy]] = runner.run(["cat"], with_method(runner.decoding, beam=1))
    assert greedy.log_probability <= 0


def test_validation_takes_every_nth_source_with_all_its_answers() -> None:
    pairs = [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("c", "5"), ("d", "6")]
    assert _spread(pairs, 2) == [("a", "1"), ("a", "2"), ("c", "4"), ("c", "5")]
    assert _spread(pairs, 9) == pairs


def test_stress_counts_where_the_references_mark_it() -> None:
    score = tasks.TASKS["pronounce"].score
    marked = score(["K AE2 T", "AE1 T"], [["K AE1 T"], ["AE1 T"]])
    assert marked["wer"].value == 50 and marked["wer without stress"].value == 0
    plain = score(["K AE2 T", "AE1 D"], [["K AE T"], ["AE T", "AH T"]])
    assert set(plain) == {"wer", "per"} and plain["wer"].value == 50
    assert plain["wer"].signature.endswith("|stress:removed")


@pytest.mark.parametrize("name", sorted(tasks.named_recipes()))
def test_every_recipe_that_comes_along_can_be_read(name: str) -> None:
    assert tasks.read_recipe(name).task in tasks.RECIPES


def test_a_folder_may_be_called_like_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pronounce").mkdir()
    monkeypatch.chdir(tmp_path)
    assert tasks.read_recipe("pronounce").task == "pronounce"


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean pronounce"):
        tasks.read_recipe("pronouce")
