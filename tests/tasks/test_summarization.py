"""Summaries: their scores, their corpora, and the task from recipe to page."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner

from qkv import config, evaluation, tasks
from qkv.cli import main
from qkv.data import Corpus, collate_decoder_only, corpora
from qkv.data.batch import IGNORE_INDEX
from qkv.data.corpora import summarization
from qkv.data.corpora.info import CorpusFile
from qkv.decoding import DecodingConfig, Greedy, LengthLimit, score
from qkv.errors import ConfigError, CorpusError, DataError, MissingExtraError
from qkv.models import build
from qkv.tasks.text2text.training import answer_cross_entropy
from qkv.text import train as train_tokenizer
from qkv.training.loss import smoothed_and_plain_cross_entropy
from qkv.training.reporters import NullReporter


class Tokens(NamedTuple):
    pad: int
    bos: int
    eos: int


# -- scores -------------------------------------------------------------------------------------------------------


def test_rouge_is_the_mean_f1_by_the_best_reference() -> None:
    found = evaluation.rouge(["the cats sat down", "no"], [["A cat sat up.", "on the mat"], ["yes"]])
    # by stems and without case: cat, sat of 4 and 4 words; no pair of words; the longest common part is cat sat
    assert found["rouge1"].value == pytest.approx(100 * (2 * 0.5 * 0.5 / 1.0) / 2)
    assert found["rouge2"].value == pytest.approx(100 * (1 / 3) / 2)
    assert found["rougeL"].value == pytest.approx(100 * 0.5 / 2)
    assert found["rougeL"].signature == (
        "f1|mean:summaries|refs:best-rouge1|tok:unicode-words|case:lc|stem:porter-ascii|rouge-score:0.1.2"
    )


def test_the_reference_with_the_best_rouge_1_counts_in_all() -> None:
    one, other = "a b c d", "b a x y"  # the second has more words in common, the first more pairs
    found = evaluation.rouge(["b a c d"], [[one, other + " c d"]])
    assert found["rouge2"].value == pytest.approx(evaluation.rouge(["b a c d"], [[one]])["rouge2"].value)


def test_rouge_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="references of summary 2 are"):
        evaluation.rouge(["a", "b"], [["a"], []])
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer", raising=False)
    with pytest.raises(MissingExtraError, match=r"needs rouge_score.*qkv\[evaluate\]"):
        evaluation.rouge(["a"], [["a"]])


def test_a_decoder_that_scores_only_its_answers_learns_as_one_that_scores_all() -> None:
    torch.manual_seed(0)
    model = build(tasks.Decoder(d_model=8, heads=2, layers=1, d_ff=8).spec(30))
    batch = collate_decoder_only([([5, 6, 7], [8, 9]), ([4], [11, 12, 13])], Tokens(0, 1, 2))
    found = []
    for loss in (
        answer_cross_entropy(model, batch, 0.1),
        smoothed_and_plain_cross_entropy(model(target=batch.target), batch.labels, 0.1),
    ):
        model.zero_grad()
        loss[0].backward()
        found.append((loss[0].detach(), loss[1].detach(), [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def test_chrf_takes_several_references_each() -> None:
    assert evaluation.chrf(["a cat", "a dog"], [["a dog", "a cat"], ["a dog"]]).value == pytest.approx(100)
    assert evaluation.chrf(["a cat"], ["a cat"]).value == pytest.approx(100)


def test_the_sentences_of_a_text() -> None:
    text = 'It is 3.5 times as fast, i.e. fast. "Is it?" (Yes.) It is!\nAnd so on'
    assert evaluation.split_sentences(text) == [
        "It is 3.5 times as fast, i.e. fast.",
        '"Is it?"',
        "(Yes.)",
        "It is!",
        "And so on",
    ]
    assert evaluation.split_sentences(" ") == [] and evaluation.lead_baseline(["One. Two.", ""]) == ["One.", ""]
    assert evaluation.oracle_baseline(["One two. Three four. Five."], [["three", "four three"]]) == ["Three four."]


# -- corpora ------------------------------------------------------------------------------------------------------

LONG = "It walks over everything that there is to walk over, again and again, until nobody can tell where it had begun."
MODULE = f'''"""Not prose.

{LONG[:40]}
"""
raise SystemExit("this module was imported")

class A:
    """Walk over
    everything.

    {LONG}

    >>> an_example()

        an indented one

    Parameters
    ----------
    x : {LONG}
    """

    async def b(self):
        """Walk again and again.

        {LONG}

        Args:
            x: {LONG}

        {LONG}
        """
'''


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages on a disk of their own, and an empty cache."""
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        summarization, "PACKAGES", {"train": ("qkv_one",), "valid": ("qkv_two",), "test": ("qkv_three",)}
    )
    for name in ("qkv_one", "qkv_two", "qkv_three"):
        folder = tmp_path / "site" / name
        (folder / "tests").mkdir(parents=True)
        (folder / "__init__.py").write_text(
            MODULE.replace("Walk", f"Walk {name}").replace("It walks", f"It {name} walks")
        )
        (folder / "later.py").write_text('"""Written for another Python.\n\nmatch = = ="""\nthis is no Python')
        (folder / "tests" / "test_it.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path


def test_docstrings_are_read_and_nothing_is_imported(packages: Path) -> None:
    pairs = list(Corpus("docstrings", "train"))
    body = LONG.replace("It", "It qkv_one")
    assert pairs == [(body, "Walk qkv_one over everything."), (body, "Walk qkv_one again and again.")]
    assert not {"qkv_one", "qkv_two", "qkv_three"} & {*sys.modules}
    (packages / "site" / "qkv_one" / "__init__.py").unlink()
    (packages / "site" / "qkv_one" / "__init__.py").write_text("")
    assert list(Corpus("docstrings", "train")) == pairs, "read once, then from the cache"


def test_functions_lose_their_docstrings(packages: Path) -> None:
    function = '''
def c(x, y=1):
    """Count %s again, twice.

    And more.
    """
    if x:  # a remark
        return [one for one in x if one > y]
    return f"{x} %s"

def short():
    """Count %s too briefly."""
'''
    for name in ("qkv_one", "qkv_two", "qkv_three"):
        (packages / "site" / name / "c.py").write_text(function % (name, name, name) + f"    return '{name}'\n")
    assert list(Corpus("docstrings-code", "train")) == [
        (
            "def c(x, y=1): if x: return [one for one in x if one > y] return f'{x} qkv_one'",
            "Count qkv_one again, twice.",
        )
    ]


def test_docstrings_that_are_held_out_are_not_learned(packages: Path) -> None:
    shared = (packages / "site" / "qkv_one" / "__init__.py").read_text()
    (packages / "site" / "qkv_three" / "__init__.py").write_text(shared.replace("again and again.", "once."))
    assert list(Corpus("docstrings", "train")) == []
    assert len(list(Corpus("docstrings", "test"))) == 2


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QKV_CACHE", str(tmp_path))
    monkeypatch.setattr(summarization, "PACKAGES", {"valid": ("no_such_package",)})
    with pytest.raises(CorpusError, match="needs the package no_such_package.*pip install"):
        list(Corpus("docstrings", "valid"))


def test_abstracts_come_with_every_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"source": ["One.", "Two."], "target": ["1, 2", "12"]}).encode() + b"\n"
    (tmp_path / "scitldr-a").mkdir()
    (tmp_path / "scitldr-a" / "dev.jsonl.gz").write_bytes(gzip.compress(text))
    monkeypatch.setenv("QKV_DATA", str(tmp_path))
    recorded = (CorpusFile("scitldr-a/dev.jsonl.gz", len(text), hashlib.sha256(text).hexdigest()),)
    entry = replace(corpora.find_corpus("scitldr-a"), files=recorded)
    monkeypatch.setattr(corpora, "CORPORA", (entry,))
    assert list(Corpus("scitldr-a", "valid")) == [("One. Two.", "1, 2"), ("One. Two.", "12")]


@pytest.mark.skipif(not os.environ.get("QKV_DATA"), reason="needs QKV_DATA, a folder with the corpora")
def test_the_first_sentence_of_the_real_abstracts() -> None:
    questions = tasks.TASKS["summarization"].group_references(list(Corpus("scitldr-a", "test"))[:60])
    sources, references = [one for one, _ in questions], [own for _, own in questions]
    first = evaluation.rouge(evaluation.lead_baseline(sources), references)["rouge1"].value
    best = evaluation.rouge(evaluation.oracle_baseline(sources, references), references)["rouge1"].value
    assert 15 < first < best - 10 < 50


# -- the task -----------------------------------------------------------------------------------------------------

TEXTS = {
    "The cat sat on the mat. It then slept for a very long time indeed.": "A cat sat and slept.",
    "The dog ran over the hill. It then came back to us with a stick.": "A dog ran and came back.",
    "The bird flew over the sea. It then sang to us of a very long way.": "A bird flew and sang.",
}
MODELS: dict[str, dict[str, Any]] = {
    "copies": {"kind": "transformer", "d_model": 16, "heads": 2, "d_ff": 16, "encoder_layers": 1, "decoder_layers": 1,
               "pointer_generator": True},
    "decoder": {"kind": "decoder", "d_model": 16, "heads": 2, "d_ff": 16, "layers": 1},
}  # fmt: skip


def build_recipe(folder: Path, model: str = "copies", **changes: Any) -> tasks.Text2TextConfig:
    lines = [json.dumps({"source": text, "target": summary}) for text, summary in TEXTS.items()]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    origin = {"kind": "jsonl", "path": str(folder / "pairs.jsonl")}
    tree = {
        "task": "summarization",
        "data": {"train": [origin], "valid": origin, "batch_tokens": 300,
                 "cleaning": {"max_length": 40, "overflow": "truncate"}},
        "tokenizer": {"source": {"kind": "character"}},
        "model": MODELS[model],
        "training": {"max_steps": 6, "validation": {"every": 3, "metric": "rougeL", "mode": "max"},
                     "checkpointing": {"log_every": 2}},
        "decoding": {"method": {"kind": "beam", "size": 2}, "length": {"factor": 0.0, "constant": 12}},
    }  # fmt: skip
    return config.from_dict(tasks.Text2TextConfig, {**tree, **changes})


class RecordingReporter(NullReporter):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)


@pytest.mark.parametrize("model", MODELS)
def test_a_summarizer_trains_answers_scores_and_shows(tmp_path: Path, model: str) -> None:
    show = RecordingReporter()
    learned = tasks.train(build_recipe(tmp_path, model), folder=tmp_path / "run", reporter=show)
    assert any("3 of them truncated" in note for note in show.told), "sources are not cut in silence"
    assert {"rouge1", "rouge2", "rougeL", "chrf", "loss"} <= set(learned.result.metrics)
    runner = tasks.load(tmp_path / "run")
    assert isinstance(runner, tasks.TextGenerator) and runner.max_source_length == 40
    lines = [*TEXTS, ""]
    answers = [one[0].text for one in runner.predict_ranked(lines)]
    assert answers == [one[0].text for one in learned.model.predict_ranked(lines)] and answers[-1] == ""
    assert all(len(answer) <= 12 + (model == "decoder") * 41 for answer in answers)
    assert runner.n_truncated(lines[0]) == len(lines[0]) - 40 and runner.n_truncated("short") == 0
    same = lines[0][:40] + "something else at the end"
    assert [one[0].text for one in runner.predict_ranked([same])] == answers[:1], "what was cut is not read"
    report = tasks.evaluate(runner, list(TEXTS.items()), baselines=True)
    assert report.n_truncated == 3 and "3 of them are longer" in str(report)
    first, best = (scores["rouge1"].value for scores in report.baselines.values())
    assert 0 < first <= best and "for comparison, the best sentence (oracle): rouge1" in str(report)
    looked = runner.look("short", "A cat")
    assert all(differences.max() < 1e-5 for differences in looked.certify().values())
    assert not runner.look("short", "").copy_report, "of an empty answer nothing is told"
    if model == "copies":
        assert "head.cross_attention" in looked.attentions and "tokens came more out of" in looked.copy_report[0]
    else:
        assert looked.target_tokens[:8] == ["<s>", "s", "h", "o", "r", "t", "<s>", "A"] and not looked.copy_report


def test_a_source_and_its_answer_stand_in_one_row_for_a_decoder_alone() -> None:
    tokenizer = train_tokenizer(["abc"], "character")
    batch = collate_decoder_only([([7, 8], [9]), ([7], [8])], tokenizer)
    assert batch.source is None and batch.target is not None
    assert batch.target.tolist() == [[1, 7, 8, 1, 9], [1, 7, 1, 8, 0]]
    assert batch.labels.tolist() == [[IGNORE_INDEX] * 3 + [9, 2], [IGNORE_INDEX] * 2 + [8, 2, IGNORE_INDEX]]


def test_a_decoder_alone_goes_on_from_where_it_was_taught(tmp_path: Path) -> None:
    runner = tasks.train(build_recipe(tmp_path, "decoder"), folder=tmp_path / "run", reporter=NullReporter()).model
    assert isinstance(runner, tasks.TextGenerator)
    [ids] = runner.validate_inputs(["ab"])
    assert ids[-1] == runner.source_tokenizer.bos and ids[:-1] == runner.source_tokenizer.encode("ab")
    [[answer]] = runner.predict_ranked(["ab"], DecodingConfig(Greedy(), LengthLimit(0.0, 5)))
    assert list(answer.tokens[: len(ids)]) == ids
    [scores] = score(runner.module, [answer.tokens], bos=runner.target_tokenizer.bos)
    assert sum(scores[len(ids) :]) == pytest.approx(answer.log_probability, abs=1e-4)
    assert answer.text == runner.target_tokenizer.decode(answer.tokens[len(ids) :])


def test_wrong_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a model that copies has one vocabulary"):
        build_recipe(tmp_path, tokenizer={"source": {"kind": "bpe"}, "target": {"kind": "bpe"}})
    with pytest.raises(ConfigError, match="a decoder alone has one vocabulary"):
        build_recipe(tmp_path, "decoder", tokenizer={"source": {"kind": "bpe"}, "target": {"kind": "bpe"}})
    wrong = build_recipe(tmp_path)
    wrong = replace(
        wrong, training=replace(wrong.training, validation=replace(wrong.training.validation, metric="bleu"))
    )
    with pytest.raises(ConfigError, match="given 'bleu', expected one of loss, rouge1, rouge2, rougeL, chrf"):
        tasks.train(wrong, folder=tmp_path / "run", reporter=NullReporter())


def test_the_command_tells_of_cuts_copies_and_baselines(tmp_path: Path) -> None:
    tasks.train(build_recipe(tmp_path), folder=tmp_path / "run", reporter=NullReporter())
    place = str(tmp_path / "run")

    def qkv(*words: str, text: str | None = None) -> Any:
        done = CliRunner().invoke(main, [*words], input=text)
        assert done.exit_code == 0, done.output
        return done

    done = qkv("run", place, *TEXTS)
    assert done.stdout.count("\n") == 3 and "3 of the lines are longer than the model reads; 76 tokens" in done.stderr
    done = qkv("evaluate", place, str(tmp_path / "pairs.jsonl"), "--baselines")
    assert "rougeL" in done.output and "the first sentence: rouge1" in done.output
    text, summary = next(iter(TEXTS.items()))
    done = qkv("look", place, text, "--answer", summary, "--html", str(tmp_path / "page.html"))
    assert f"of {len(summary)} tokens came more out of the source" in done.output
    assert "which is 26 tokens too long" in done.output
    assert "head.cross_attention" in (tmp_path / "page.html").read_text(encoding="utf-8")
    done = qkv("describe", place)
    assert "PointerGenerator(d_key=16)" in done.output
    assert "docstrings" in qkv("data", "list").output
    failed = CliRunner().invoke(main, ["evaluate", "pronunciation", str(tmp_path / "pairs.jsonl"), "--baselines"])
    assert failed.exit_code == 2 and "expected one that does summarization" in failed.output


def test_the_recipe_that_comes_along_is_whole() -> None:
    tree = tasks.read_recipe("summarization")
    assert (
        isinstance(tree, tasks.Text2TextConfig)
        and isinstance(tree.model, tasks.Transformer)
        and tree.model.pointer_generator
    )
    assert isinstance(tasks.read_recipe("summarization", ["model={kind: decoder}"]), tasks.Text2TextConfig)
