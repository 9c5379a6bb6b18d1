"""Every task from a recipe to a model that answers: train, stop, resume, save, load, evaluate, look."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qkv
from qkv import config, tasks
from qkv.errors import CheckpointError, ConfigError, DataError, QkvError, TrainingError, VocabularyError
from qkv.files import lock_folder, replace_nonfinite
from qkv.tasks.loader import check_finite
from qkv.tasks.model_folder import Card, TrainingSummary
from qkv.tasks.text2text.data import PreparedPairs
from qkv.tasks.text2text.training import _sample_evenly
from qkv.tasks.text_generator import override_method
from qkv.training import TrainResult
from qkv.training.reporters import NullReporter

TRANSFORMER = {"kind": "transformer", "d_model": 16, "heads": 2, "d_ff": 16, "encoder_layers": 1, "decoder_layers": 1}
RECURRENT = {"kind": "recurrent", "d_model": 16, "attention": "additive"}
WORDS = {"cat": "K AE T", "act": "AE K T", "tact": "T AE K T", "tat": "T AE T", "at": "AE T", "cab": "K AE B"}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of pairs to learn, and one to validate on beside it."""
    lines = [f"{word}\t{sounds}" for word, sounds in WORDS.items()]
    (tmp_path / "train.tsv").write_text("\n".join(lines * 5) + "\n")
    (tmp_path / "valid.tsv").write_text("tac\tT AE K\ntac\tT EY K\nbat\tB AE T\n")
    return tmp_path


def build_recipe(
    pairs: Path, task: str = "pronunciation", model: dict[str, Any] = TRANSFORMER, **training: Any
) -> tasks.Text2TextConfig:
    return config.from_dict(
        tasks.Text2TextConfig,
        {
            "task": task,
            "data": {
                "train": [{"kind": "tsv", "path": str(pairs / "train.tsv")}],
                "valid": {"kind": "tsv", "path": str(pairs / "valid.tsv")},
                "batch_tokens": 60,
            },
            "tokenizer": {"source": {"kind": "character"}, "target": {"kind": "word"}},
            "model": model,
            "training": {"max_steps": 8, "validation": {"every": 4}, "checkpointing": {"log_every": 2}, **training},
            "decoding": {"length": {"factor": 2.0, "constant": 2}},
        },
    )


def test_a_model_knows_what_stood_before_its_sources(pairs: Path) -> None:
    plain = build_recipe(pairs, model=RECURRENT)
    marked = replace(plain.data.train[0], prefix="<BT>")
    asked = replace(plain, data=replace(plain.data, train=(*plain.data.train, marked)))
    learned = tasks.train(asked, folder=pairs / "run", reporter=NullReporter())
    assert learned.model.prefixes == qkv.load(pairs / "run").prefixes == ("", "<BT>")


@pytest.mark.parametrize("task", ["translation", "pronunciation"])
@pytest.mark.parametrize("model", [TRANSFORMER, RECURRENT], ids=["transformer", "recurrent"])
def test_a_task_trains_answers_scores_and_shows(pairs: Path, task: str, model: dict[str, Any]) -> None:
    learned = tasks.train(build_recipe(pairs, task, model), folder=pairs / "run", reporter=NullReporter())
    assert learned.result.step == 8
    runner = qkv.load(pairs / "run")
    lines = ["cat", "", "tactact", "Cat "]
    answers = list(runner.predict_ranked(lines))
    assert len(answers) == len(lines) and answers[1][0].text == ""
    assert [one[0].text for one in answers] == [one[0].text for one in learned.model.predict_ranked(lines)]
    if task == "pronunciation":
        assert answers[3] == answers[0]
    origin = tasks.parse_data_source([pairs / "valid.tsv"])
    report = tasks.evaluate(runner, tasks.prepare_pairs([origin], runner.task))
    assert len(report.answers) == (2 if task == "pronunciation" else 3)
    assert runner.task.metric in report.scores and str(report).count("\n") >= 2
    looked = runner.look("cat")
    assert looked.source_tokens == ["c", "a", "t", "</s>"]
    assert looked.target_tokens[0] == "<s>"
    assert all(differences.max() < 1e-5 for differences in looked.certify().values())
    assert json.loads((pairs / "run" / "metrics.jsonl").read_text().splitlines()[0])


class InterruptingReporter(NullReporter):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step: int, progress: float) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_was_stopped_ends_with_the_same_bytes(pairs: Path) -> None:
    whole = build_recipe(pairs, max_steps=11, dropout=0.3, ema_decay=0.9)
    tasks.train(whole, folder=pairs / "whole", reporter=NullReporter())
    results: list[TrainResult] = []
    for stop in (3, 7, None):
        show = NullReporter() if stop is None else InterruptingReporter(stop)
        results.append(tasks.train(whole, folder=pairs / "parts", resume=True, reporter=show).result)
    assert [result.stop_reason for result in results] == ["interrupted", "interrupted", "finished"]
    names = ["model.safetensors", "source.tokenizer.json", "target.tokenizer.json", "spec.json"]
    for name in names:
        assert (pairs / "whole" / name).read_bytes() == (pairs / "parts" / name).read_bytes()


def test_data_that_is_streamed_teaches_what_a_list_does(pairs: Path) -> None:
    tree, task = build_recipe(pairs, max_steps=5), tasks.TASKS["pronunciation"]
    read = tasks.load_pair_splits(tree.data, task)
    assert not isinstance(read.train[0], list) and len(read.train[0]) == 30
    kept = tasks.PairSplits([list(part) for part in read.train], read.valid)
    for name, examples in (("read", read), ("kept", kept)):
        tasks.fit(tree, examples, pairs / name, reporter=NullReporter())
    for name in ("model.safetensors", "source.tokenizer.json", "target.tokenizer.json"):
        assert (pairs / "read" / name).read_bytes() == (pairs / "kept" / name).read_bytes()


def test_the_tokens_lie_on_the_disk_while_the_run_lasts(pairs: Path) -> None:
    tasks.train(build_recipe(pairs), folder=pairs / "run", reporter=InterruptingReporter(3))
    [store] = (pairs / "run" / "tokens").iterdir()
    written = (store / "ids.npy").stat().st_mtime_ns
    tasks.train(build_recipe(pairs), folder=pairs / "run", resume=True, reporter=InterruptingReporter(5))
    assert (store / "ids.npy").stat().st_mtime_ns == written
    tasks.train(build_recipe(pairs), folder=pairs / "run", resume=True, reporter=NullReporter())
    assert not (pairs / "run" / "tokens").exists()


def compute_logits(runner: tasks.TextGenerator) -> torch.Tensor:
    source, target = torch.tensor([[4, 5, 2]]), torch.tensor([[1, 4, 5]])
    with torch.no_grad():
        result: torch.Tensor = runner.module(source, target, torch.ones(1, 3, dtype=torch.bool))
    return result


@pytest.fixture
def base(pairs: Path) -> Path:
    """The folder of a model to go on from."""
    tasks.train(build_recipe(pairs), folder=pairs / "base", reporter=NullReporter())
    return pairs / "base"


def build_fine_tuning_recipe(pairs: Path, base: Path, *changes: str, **training: Any) -> tasks.Text2TextConfig:
    """A recipe that continues from a model."""
    tree = config.to_dict(build_recipe(pairs, **training))
    return config.from_dict(
        tasks.Text2TextConfig,
        config.apply_overrides(tree, [f"model={{kind: pretrained, path: {base}}}", "tokenizer={}", *changes]),
    )


def test_going_on_from_a_model_begins_with_all_it_knows(pairs: Path, base: Path) -> None:
    still = build_fine_tuning_recipe(pairs, base, "training.optimizer.learning_rate=1e-30")
    learned = tasks.train(still, folder=pairs / "still", reporter=NullReporter())
    assert learned.result.step == 8
    before, after = tasks.load(base), tasks.load(pairs / "still")
    assert torch.equal(compute_logits(before), compute_logits(after))
    assert (before.source_tokenizer, before.target_tokenizer) == (after.source_tokenizer, after.target_tokenizer)
    moved = tasks.train(build_fine_tuning_recipe(pairs, base), folder=pairs / "moved", reporter=NullReporter()).model
    assert not torch.equal(compute_logits(before), compute_logits(moved))
    assert torch.equal(compute_logits(tasks.load(base)), compute_logits(before))


def test_going_on_from_a_model_resumes_exactly(pairs: Path, base: Path) -> None:
    tree = build_fine_tuning_recipe(pairs, base, max_steps=9, dropout=0.3)
    tasks.train(tree, folder=pairs / "whole", reporter=NullReporter())
    tasks.train(tree, folder=pairs / "parts", reporter=InterruptingReporter(4))
    tasks.train(tree, folder=pairs / "parts", resume=True, reporter=NullReporter())
    for name in ("model.safetensors", "source.tokenizer.json", "target.tokenizer.json", "spec.json"):
        assert (pairs / "whole" / name).read_bytes() == (pairs / "parts" / name).read_bytes()


def test_going_on_from_a_model_that_does_not_fit(pairs: Path, base: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer: given with .*take tokenizer out"):
        build_fine_tuning_recipe(pairs, base, "tokenizer.source.kind=byte")
    with pytest.raises(CheckpointError, match="no model folder"):
        tasks.train(build_fine_tuning_recipe(pairs, pairs / "absent"), folder=pairs / "run", reporter=NullReporter())
    with (pairs / "train.tsv").open("a") as file:
        file.write("cot\tK OW T\n")
    with pytest.raises(VocabularyError, match=r"1 of 31 examples .* such as 'cot' with 'o'; expected at most 1.0%"):
        tasks.train(build_fine_tuning_recipe(pairs, base), folder=pairs / "run", reporter=NullReporter())
    allowed = build_fine_tuning_recipe(pairs, base, "data.cleaning.max_dropped_fraction=0.05")
    assert tasks.train(allowed, folder=pairs / "run", reporter=NullReporter()).result.step == 8
    with pytest.raises(TrainingError, match="already holds a run"):
        tasks.train(build_fine_tuning_recipe(pairs, base), folder=base, reporter=NullReporter())


def test_a_folder_in_use_is_left_alone(pairs: Path) -> None:
    tasks.train(build_recipe(pairs), folder=pairs / "run", reporter=NullReporter())
    before = {path.name: path.read_bytes() for path in (pairs / "run").iterdir() if path.is_file()}
    with pytest.raises(TrainingError, match="already holds a run"):
        tasks.train(build_recipe(pairs, max_steps=3), folder=pairs / "run", reporter=NullReporter())
    assert before == {path.name: path.read_bytes() for path in (pairs / "run").iterdir() if path.is_file()}


def test_several_origins_are_mixed_by_weight(pairs: Path) -> None:
    tree = config.to_dict(build_recipe(pairs))
    tree["data"]["train"] *= 2
    tree["data"]["sampling_weights"] = [3.0, 1.0]
    learned = tasks.train(config.from_dict(tasks.Text2TextConfig, tree), folder=pairs / "run", reporter=NullReporter())
    assert learned.result.step == 8


def test_held_out_sources_are_left_out_and_leaks_are_named(pairs: Path) -> None:
    (pairs / "test.tsv").write_text("cat\tK AE T\n")
    tree = config.to_dict(build_recipe(pairs))
    held_out = [{"kind": "tsv", "path": str(pairs / "test.tsv")}]
    leaking = config.from_dict(
        tasks.Text2TextConfig, config.apply_overrides(tree, [f"data.test={json.dumps(held_out)}"])
    )
    task = tasks.TASKS["pronunciation"]
    [note] = tasks.load_pair_splits(leaking.data, task).notes
    assert "leakage: 1 of 1" in note and "cat" in note
    clean = config.from_dict(
        tasks.Text2TextConfig, config.apply_overrides(tree, [f"data.exclude={json.dumps(held_out)}"])
    )
    examples = tasks.load_pair_splits(clean.data, task)
    assert "cat" not in {source for source, _ in examples.train[0]} and len(examples.train[0]) == 25


def test_too_much_that_cannot_be_used_stops_before_training(pairs: Path) -> None:
    with (pairs / "train.tsv").open("a") as file:
        file.write("a\t" + "K " * 100_000 + "\n")
    with pytest.raises(DataError, match=r"longer than|100,000"):
        tasks.train(build_recipe(pairs), folder=pairs / "run", reporter=NullReporter())
    assert not (pairs / "run" / "model.safetensors").exists()


def break_folder(folder: Path, what: str) -> None:
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
        ("truncated", CheckpointError, "truncated"),
        ("tampered", CheckpointError, "altered"),
        ("card", CheckpointError, "card.json is truncated"),
        ("task", CheckpointError, "task='sing'"),
        ("spec", CheckpointError, "not the spec the model was saved with"),
        ("vocabulary", VocabularyError, "not the one that the model was trained with"),
    ],
)
def test_a_damaged_model_folder_is_refused_by_name(pairs: Path, what: str, error: type[QkvError], words: str) -> None:
    tasks.train(build_recipe(pairs, max_steps=1), folder=pairs / "run", reporter=NullReporter())
    break_folder(pairs / "run", what)
    with pytest.raises(error) as raised:
        qkv.load(pairs / "run")
    assert words in str(raised.value)


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(CheckpointError, match="no model folder 'pronuncation'"):
        qkv.load("pronuncation")


def test_half_the_bytes_give_the_same_answers(pairs: Path) -> None:
    learned = tasks.train(build_recipe(pairs), folder=pairs / "run", reporter=NullReporter())
    learned.model.save(pairs / "half", dtype=torch.float16)
    size = (pairs / "half" / "model.safetensors").stat().st_size
    assert size < 0.7 * (pairs / "run" / "model.safetensors").stat().st_size
    half = qkv.load(pairs / "half")
    assert [a[0].text for a in half.predict_ranked(WORDS)] == [a[0].text for a in learned.model.predict_ranked(WORDS)]


def test_decoding_can_be_widened_and_narrowed(pairs: Path) -> None:
    runner = tasks.train(build_recipe(pairs), folder=pairs / "run", reporter=NullReporter()).model
    [several] = runner.predict_ranked(["cat"], override_method(runner.decoding, n_best=3))
    assert len(several) == 3 and several[0].score >= several[1].score >= several[2].score
    [[greedy]] = runner.predict_ranked(["cat"], override_method(runner.decoding, beam=1))
    assert greedy.log_probability <= 0


def test_validation_takes_every_nth_source_with_all_its_answers() -> None:
    pairs = [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("c", "5"), ("d", "6")]
    assert _sample_evenly(pairs, 2) == [("a", "1"), ("a", "2"), ("c", "4"), ("c", "5")]
    assert _sample_evenly(pairs, 9) == pairs


def test_stress_counts_where_the_references_mark_it() -> None:
    score = tasks.TASKS["pronunciation"].score
    marked = score(["K AE2 T", "AE1 T"], [["K AE1 T"], ["AE1 T"]])
    assert marked["wer"].value == 50 and marked["wer_without_stress"].value == 0
    plain = score(["K AE2 T", "AE1 D"], [["K AE T"], ["AE T", "AH T"]])
    assert set(plain) == {"wer", "per"} and plain["wer"].value == 50
    assert plain["wer"].signature.endswith("|stress:removed")


@pytest.mark.parametrize("name", sorted(tasks.list_recipes()))
def test_every_recipe_that_comes_along_can_be_read(name: str) -> None:
    assert tasks.read_recipe(name).task in tasks.TRAINABLE_TASKS


def test_a_folder_may_be_called_like_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pronunciation").mkdir()
    monkeypatch.chdir(tmp_path)
    assert tasks.read_recipe("pronunciation").task == "pronunciation"


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean pronunciation"):
        tasks.read_recipe("pronunciaton")


def test_the_card_is_read_and_written_strictly() -> None:
    card = Card("dogs to cats", {"valid_bleu": 1.5}, TrainingSummary(3, 0.1, "step 3", 9, None), 8, ("", "<2de>"))
    assert Card.from_json(json.loads(json.dumps(card.to_json())), "card.json") == card
    assert Card().to_json() == {} and Card.from_json({}, "card.json") == Card()
    for values, message in (
        ({"context": "long"}, "card.json: context"),
        ({"scores": {"bleu": "good"}}, "card.json: scores"),
        ({"training": {"steps": 1, "minuts": 2.0}}, "training.minutes"),
    ):
        with pytest.raises(ConfigError, match=message):
            Card.from_json(values, "card.json")


def test_an_unknown_key_of_a_card_is_refused_with_the_nearest_one(
    tmp_path: Path,
) -> None:
    tasks.load("pronunciation").save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "decodings": card["decoding"]}))
    with pytest.raises(ConfigError, match="card.json: decodings.*did you mean 'decoding'"):
        tasks.load(tmp_path)


def test_a_reference_that_cannot_be_scored_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tasks.load("pronunciation")

    def refuse(*_: Any) -> Any:
        raise DataError("this reference cannot be scored")

    unscored = replace(model, task=replace(model.task, score=refuse))  # type: ignore[type-var]
    monkeypatch.setattr(type(model), "predict_ranked", lambda *_: pytest.fail("decoded first"))
    with pytest.raises(DataError, match="cannot be scored"):
        unscored.evaluate([("cat", "K AE T")])


def test_tokenizers_without_a_checkpoint_are_made_anew(pairs: Path) -> None:
    whole = build_recipe(pairs, max_steps=2)
    tasks.train(whole, folder=pairs / "whole", reporter=NullReporter())
    parts = pairs / "parts"
    parts.mkdir()
    # a run that was killed between its two tokenizers, begun by another recipe
    (parts / "source.tokenizer.json").write_bytes((pairs / "whole" / "target.tokenizer.json").read_bytes())
    (parts / "recipe.yaml").write_text("task: pronunciation\n")
    tasks.train(whole, folder=parts, resume=True, reporter=NullReporter())
    for name in ("model.safetensors", "source.tokenizer.json", "target.tokenizer.json"):
        assert (pairs / "whole" / name).read_bytes() == (parts / name).read_bytes()


def test_a_tokenizer_that_a_checkpoint_needs_is_missed(pairs: Path) -> None:
    whole = build_recipe(pairs, max_steps=6)
    tasks.train(whole, folder=pairs / "run", reporter=InterruptingReporter(2))
    (pairs / "run" / "target.tokenizer.json").unlink()
    with pytest.raises(VocabularyError, match=r"target\.tokenizer\.json"):
        tasks.train(whole, folder=pairs / "run", resume=True, reporter=NullReporter())


def test_a_second_run_in_a_folder_is_refused(pairs: Path) -> None:
    with lock_folder(pairs / "run"), pytest.raises(TrainingError, match="in use by another training run"):
        tasks.train(build_recipe(pairs, max_steps=2), folder=pairs / "run", reporter=NullReporter())


@dataclass(frozen=True)
class CountedSource:
    """A source of pairs that counts how often it is read."""

    pairs: tuple[tuple[str, str], ...]
    reads: list[int]
    path: str = "counted"
    prefix: str = ""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.reads.append(1)
        yield from self.pairs


def test_a_corpus_is_read_once_and_iterations_do_not_disturb_each_other() -> None:
    source = CountedSource(tuple((f"s{number}\t\n", f"t{number}") for number in range(10_000)), [])
    pairs = PreparedPairs(source, tasks.TASKS["translation"])  # type: ignore[arg-type]
    assert next(iter(pairs)) == ("s0", "t0") and len(source.reads) == 1  # left before its end, so nothing is kept
    whole = list(pairs)
    assert whole[-1] == ("s9999", "t9999") and len(pairs) == 10_000
    left, right = iter(pairs), iter(pairs)
    assert [pair for both in zip(left, right, strict=True) for pair in both] == [one for one in whole for _ in range(2)]
    fewer = pairs.exclude(["s1", "s9999"])
    assert list(fewer) == [pair for pair in whole if pair[0] not in ("s1", "s9999")] and len(fewer) == 9_998
    assert len(source.reads) == 2


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_model_with_numbers_that_are_not_finite_is_refused(number: float) -> None:
    model = tasks.load("pronunciation").module
    with torch.no_grad():
        model.decoder.blocks[0].self_attention.key.weight[0, 0] = number
    with pytest.raises(CheckpointError, match=r"decoder.blocks.0.self_attention.key.weight holds numbers that are not"):
        check_finite(model, Path("somewhere"))


JSON_VALUES = st.recursive(
    st.none() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner),
)


@given(JSON_VALUES)
def test_json_has_null_for_what_is_not_finite(value: Any) -> None:
    text = json.dumps(replace_nonfinite({"value": value}), allow_nan=False)
    assert json.loads(text) == replace_nonfinite({"value": value})
