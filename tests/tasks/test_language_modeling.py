"""The task write from texts to a model that goes on with them: train, stop, resume, run, evaluate, look."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from qkv import config, lens, tasks, view
from qkv.cli import main
from qkv.errors import ConfigError, DataError, VocabularyError
from qkv.evaluation.sliding_window import SlidingWindow
from qkv.mask import Mask
from qkv.models import build
from qkv.tasks.language_modeling.training import load_data
from qkv.training.reporters import NullReporter
from qkv.view import builder, overview

TEXTS = ["the cat sat on the mat. ", "the dog lay on the rug. ", "a bird sang in the tree. "]
MODEL = {"kind": "decoder", "d_model": 16, "heads": 2, "layers": 1, "d_ff": 16}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of texts, and one to validate on beside it."""
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{number}.txt").write_text(text * (6 + number))
    (tmp_path / "valid.txt").write_text("the cat lay on the rug. ")
    return tmp_path


def build_recipe(folder: Path, *changes: str, **training: Any) -> tasks.LanguageModelingConfig:
    tree = {
        "task": "language-modeling",
        "data": {
            "train": [{"kind": "text_files", "path": str(folder / "texts")}],
            "valid": {"kind": "text_files", "path": str(folder / "valid.txt")},
            "context": 16,
            "batch_tokens": 64,
        },
        "tokenizer": {"kind": "character"},
        "model": MODEL,
        "training": {"max_steps": 8, "label_smoothing": 0.0, "validation": {"every": 4}, **training},
        "decoding": {"method": {"kind": "greedy"}, "length": {"factor": 0.0, "constant": 8}},
    }
    return config.from_dict(tasks.LanguageModelingConfig, config.apply_overrides(tree, changes))


def test_a_language_model_learns_goes_on_is_scored_and_shows(folder: Path) -> None:
    rate = {"learning_rate": 0.02}
    learned = tasks.train(
        build_recipe(folder, max_steps=40, optimizer=rate), folder=folder / "run", reporter=NullReporter()
    )
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "validation"]
    assert losses[-1] < 0.75 * math.log(30) and losses[-1] < losses[0]
    assert lines[-1]["samples"][0].startswith("the cat lay") and not (folder / "run" / "tokens").exists()
    runner = tasks.load(folder / "run")
    assert isinstance(runner, tasks.TextGenerator) and runner.task.name == "text-generation"
    [[answer], [empty]] = runner.predict_ranked(["the c", ""])
    assert empty.text == "" and 0 < len(answer.text) <= 8
    assert answer.text == next(learned.model.predict_ranked(["the c"]))[0].text
    reading = tasks.evaluate_perplexity(runner, ["the cat lay on the rug. "], SlidingWindow(16, 16))
    assert reading.scores["loss"].value == pytest.approx(losses[-1], rel=1e-5)
    assert "context:16|stride:16|begin:scored|end:scored" in reading.scores["perplexity"].signature
    assert reading.scores["bits_per_byte"].value == pytest.approx(losses[-1] * 25 / 24 / math.log(2), rel=1e-5)
    looked = runner.look("the c")
    assert looked.source_tokens == [] and looked.target_tokens[:4] == ["<s>", "t", "h", "e"]
    assert all(differences.max() < 1e-5 for differences in looked.certify().values())


class InterruptingReporter(NullReporter):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step: int, progress: float) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_long_text_is_read_and_shown_from_afar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.train(build_recipe(folder), folder=folder / "run", reporter=NullReporter())
    text, counted = "the cat sat on the dog. the cat sat on the dog.", []
    runner = tasks.load(folder / "run")
    assert isinstance(runner, tasks.TextGenerator) and view.encode_long_text(runner, text) is None
    monkeypatch.setattr(builder, "MAX_INPUT_TOKENS", 20)
    monkeypatch.setattr(builder, "_CHUNK_SIZE", 7)
    monkeypatch.setattr(overview, "_MAX_MATRIX_SIZE", 100)
    monkeypatch.setattr(sys.modules["qkv.cli.look"], "_SLOW_TOKENS", 20)
    measure = lens.compute_statistics
    monkeypatch.setattr(
        lens, "compute_statistics", lambda one, **more: (counted.append(more["heads"]), measure(one, **more))[1]
    )
    ids = view.encode_long_text(runner, text)
    assert ids is not None and len(ids) == len(text)
    session = view.Session([("mine", runner)], text)
    [run] = session.runs
    whole = runner.module(None, torch.tensor([ids]))[0].softmax(-1)
    chances = whole[torch.arange(len(text) - 1), torch.tensor(ids[1:])]
    assert run.target_probabilities is not None
    torch.testing.assert_close(run.target_probabilities, chances, rtol=1e-4, atol=1e-6)
    attention = run.trace["decoder.0.self_attention"]
    # a rule for each piece that was read, not a matrix: what is kept grows as the text does
    assert len(attention.calls) == 7 and all(isinstance(one.score_terms.mask, Mask) for one in attention.calls)
    [described] = session.build_document().data["runs"][0]["attentions"]
    assert described["rule"] == {"causal": True, "window": None, "past": 0} and counted == [[0, 1]]
    where = {"place": attention.place, "head": 1, "rows": [30, 40], "columns": [8, 24]}
    reply, blocks = session.ask({"ask": "tile", **where, "size": 8})
    tile = torch.frombuffer(bytearray(blocks), dtype=torch.float32, count=5 * 8, offset=reply["tile"]["offset"])
    wanted = attention.compute_weights(1)[0, 30:40, 8:24].reshape(5, 2, 8, 2).amax((1, 3))
    torch.testing.assert_close(tile.view(5, 8), wanted, rtol=1e-4, atol=1e-6)
    assert counted == [[0, 1]], "what the document counted is not counted again"
    found = CliRunner().invoke(main, ["look", str(folder / "run"), text, "--html", str(folder / "long.html")])
    assert "reads 47 tokens, and 2,209 weights of a head are gone through" in found.stderr and not found.exit_code


@pytest.mark.parametrize("muon", [None, {"learning_rate": 0.02}])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(folder: Path, muon: dict[str, float] | None) -> None:
    whole = build_recipe(folder, max_steps=20, dropout=0.3, optimizer={"muon": muon})  # an epoch is 7 steps
    tasks.train(whole, folder=folder / "whole", reporter=NullReporter())
    stopped = []
    for stop in (3, 13, None):
        show = NullReporter() if stop is None else InterruptingReporter(stop)
        stopped.append(tasks.train(whole, folder=folder / "parts", resume=True, reporter=show).result.stop_reason)
    assert stopped == ["interrupted", "interrupted", "finished"]
    for name in ("model.safetensors", "source.tokenizer.json", "spec.json"):
        assert (folder / "whole" / name).read_bytes() == (folder / "parts" / name).read_bytes()


def test_what_is_checked_on_is_never_learned_from(folder: Path) -> None:
    (folder / "texts" / "copy.txt").write_text("the cat lay on the rug. ")
    texts = load_data(build_recipe(folder))
    assert len(texts.train) == 3 and texts.valid[0] not in list(texts.train)
    assert any("1 documents left out: they are in" in note for note in texts.notes)
    held = load_data(build_recipe(folder, "data.valid=null", "data.held_out=0.3"))
    assert len(held.train) == 3 and len(held.valid) == 1 and not set(held.train) & set(held.valid)
    assert list(held.train) == list(load_data(build_recipe(folder, "data.valid=null", "data.held_out=0.3")).train)
    one = [{"kind": "text_files", "path": str(folder / "valid.txt")}]
    end = load_data(build_recipe(folder, f"data.train={json.dumps(one)}", "data.valid=null", "data.held_out=0.25"))
    assert (list(end.train), end.valid) == (["the cat lay on the"], [" rug. "])


def test_going_on_from_a_model(folder: Path) -> None:
    tasks.train(build_recipe(folder), folder=folder / "base", reporter=NullReporter())
    changes = (f"model={{kind: pretrained, path: {folder / 'base'}}}", "tokenizer={}")
    tree = config.apply_overrides(config.to_dict(build_recipe(folder)), changes)
    again = config.from_dict(tasks.LanguageModelingConfig, tree)
    assert tasks.train(again, folder=folder / "more", reporter=NullReporter()).result.step == 8
    (folder / "valid.txt").write_text("ÄÖÜ of another kind")
    with pytest.raises(VocabularyError, match="3 of 19 characters are unknown|unknown to the model"):
        tasks.train(again, folder=folder / "other", reporter=NullReporter())
    with pytest.raises(ConfigError, match="tokenizer: given with model.path"):
        config.from_dict(tasks.LanguageModelingConfig, config.apply_overrides(tree, ["tokenizer.kind=byte"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.context=1", "context=1: expected at least 2"),
        ("data.batch_tokens=8", "batch_tokens=8: expected at least context=16"),
        ("data.held_out=1.0", "held_out=1.0: expected a share"),
        ("data.stride=17", "stride=17: expected 1 to context=16"),
        ("data.train=[]", "train=.*at least one source"),
        ("model.heads=3", "d_model=16 is not a multiple of heads=3"),
        ("data.cleaning={}", "data.cleaning: no such option"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(folder: Path, change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_recipe(folder, change)


def test_a_metric_that_is_not_there_stops_before_training(folder: Path) -> None:
    for change, said in (("metric=bleu", "expected one of loss, perplexity"), ("mode=max", "needs mode min")):
        with pytest.raises(ConfigError, match=said):
            tasks.train(
                build_recipe(folder, f"training.validation.{change}"), folder=folder / "run", reporter=NullReporter()
            )


def test_the_command_tells_the_whole_story(folder: Path) -> None:
    def ask(*arguments: object) -> str:
        done = CliRunner().invoke(main, [str(one) for one in arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    path, run = folder / "recipe.yaml", folder / "run"
    path.write_text(config.dump_yaml(config.to_dict(build_recipe(folder))))
    assert "3 documents to train on" in ask("data", "report", path)
    ask("train", path, "training.max_steps=2", "--folder", run)
    assert ask("run", run, "the cat").strip()
    told = ask("evaluate", run, folder / "valid.txt")
    assert "bits_per_byte" in told and "context:16|stride:8" in told and "1 texts" in told
    assert "3 texts" in ask("evaluate", run, folder / "texts")
    (folder / "posts.jsonl").write_text('{"text": "the cat sat. "}\n{"text": "a dog lay. "}\n')
    (folder / "pairs.jsonl").write_text('{"source": "the cat", "target": " sat."}\n')
    assert "2 texts" in ask("evaluate", run, folder / "posts.jsonl")
    assert "accuracy" in ask("evaluate", run, folder / "pairs.jsonl")
    ask("look", run, "the cat", "--html", folder / "page.html")
    assert (folder / "page.html").stat().st_size > 1000
    (folder / "empty.txt").write_text("")
    for bad, said in (("empty.txt", "no text"), ("absent", "does not exist")):
        done = CliRunner().invoke(main, ["evaluate", str(run), str(folder / bad)])
        assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_translator_reads_no_text() -> None:
    with pytest.raises(DataError, match="expected a language model"):
        tasks.evaluate_perplexity(tasks.load("pronunciation"), ["a text"])


@pytest.mark.skipif("QKV_DATA" not in os.environ, reason="needs QKV_DATA, a folder with the corpora")
def test_the_shakespeare_recipe_is_no_larger_than_nanogpts_setting() -> None:
    tree = tasks.read_recipe("tiny-shakespeare")
    assert isinstance(tree, tasks.LanguageModelingConfig)
    texts = load_data(tree)
    [text] = texts.train
    assert len(text) == 1_003_854 and sum(map(len, texts.valid)) == 111_540
    assert isinstance(tree.model, tasks.Decoder)
    torch.manual_seed(0)
    parameters = sum(one.numel() for one in build(tree.model.spec(69)).parameters())
    assert 500_000 < parameters < 804_096
