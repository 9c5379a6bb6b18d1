"""Published models on the command line: tiny random checkpoints that transformers wrote, with tokenizers.

What is checked of each kind (continue, translate, fill, classify, label, embed, see): that `qkv run` answers as
transformers does, on lines, empty lines and arguments; evaluate, look and describe; every way to keep numbers; names on
the hub, without a network; and that a folder with a part missing, damaged or unknown is refused by name.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor

import qkv
from qkv import lens, pretrained, tasks
from qkv.cli import main
from qkv.decoding import DecodingConfig, Greedy, LengthLimit
from qkv.errors import CheckpointError, DownloadError
from qkv.models import build, build_on_meta
from qkv.pretrained import hub, int8
from tests.parity.test_encoder_decoders import CASES as ENCODER_DECODERS
from tests.published import Case, assert_close
from tests.view.test_document import Parts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
WORDS = (*SPECIALS, *"the a cat dog mat tree sat slept ran on under by red old and then it was tired happy".split())
LINES = ["the cat sat on the mat", "a tired dog ran"]
LABELS = {0: "calm", 1: "glad", 2: "cross"}
NAMED = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
LARGE = {"initializer_range": 0.5}  # so that answers differ from line to line


def make_case(name: str, **settings: Any) -> Case:
    case = next(case for case in ENCODER_DECODERS if case.name == name)
    return replace(case, settings={**case.settings, **settings}, rules={})  # type: ignore[call-arg]


ONE = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": len(WORDS)}
KINDS = {
    "continue": Case("GPT2", "GPT2Config", "GPT2LMHeadModel", {**ONE, **LARGE, "max_position_embeddings": 99}),
    "translate": make_case("BART", **ONE, decoder_start_token_id=2, forced_bos_token_id=None),
    "translate-t5": make_case("T5", **ONE),
    "translate-marian": make_case("Marian", **ONE),
    "fill": Case("Fill", "BertConfig", "BertForMaskedLM", {**ONE, **LARGE}),
    "classify": Case("Classify", "BertConfig", "BertForSequenceClassification", {**ONE, **LARGE, **NAMED}),
    "label": Case("Label", "DistilBertConfig", "DistilBertForTokenClassification", {**ONE, **NAMED, "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48}),  # noqa: E501
    "embed": Case("Embed", "BertConfig", "BertModel", {**ONE, **LARGE}),
    "see": Case("See", "ViTConfig", "ViTForImageClassification", {"image_size": 8, "patch_size": 4, **NAMED}),
}  # fmt: skip
TEXTS = [kind for kind in KINDS if kind != "see"]


def build_tokenizer(kind: str) -> Any:
    """A tokenizer of whole words, with what the kind of model puts around a text."""
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    begin, end = ("<s>", 1), ("</s>", 2)
    if kind.startswith("translate"):
        inner.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
    elif kind != "continue":
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[begin, end]
        )
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        mask_token="<mask>", cls_token="<s>", sep_token="</s>",
    )  # fmt: skip


class PublishedModels:
    """Checkpoints, each written once: the model of transformers, its tokenizer and the folder."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._kept: dict[str, tuple[Any, Any, Path]] = {}

    def __call__(self, kind: str) -> tuple[Any, Any, Path]:
        if kind not in self._kept:
            folder, model, tokenizer = self._folders.mktemp(kind), KINDS[kind].build(), None
            model.save_pretrained(folder)
            if kind == "see":
                says = {"do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2, "do_rescale": True}
                norm = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
                (folder / "preprocessor_config.json").write_text(json.dumps({**says, **norm}))
            else:
                tokenizer = build_tokenizer(kind)
                tokenizer.save_pretrained(folder)
            if kind == "embed":
                names = ("Transformer", "Pooling", "Normalize")
                modules = [{"idx": n, "path": f"{n}_{name}", "type": f"a.{name}"} for n, name in enumerate(names)]
                (folder / "modules.json").write_text(json.dumps(modules))
                (folder / "1_Pooling").mkdir()
                (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
            self._kept[kind] = model, tokenizer, folder
        return self._kept[kind]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> PublishedModels:
    return PublishedModels(tmp_path_factory)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of 9 x 12 pixels."""
    image = pytest.importorskip("PIL.Image")
    path = tmp_path_factory.mktemp("images") / "a.png"
    pixels = torch.randint(256, (9, 12, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    image.fromarray(pixels.numpy()).save(path)
    return Path(path)


def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def invoke_successfully(*arguments: str | Path, stdin: str | None = None) -> str:
    done = invoke(*arguments, stdin=stdin)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def invoke_refused(*arguments: str | Path) -> str:
    done = invoke(*arguments)
    assert done.exit_code == 2, (done.output, done.exception)
    assert "Error: " in done.stderr and "Traceback" not in done.stderr
    return done.stderr


# -- answers ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict_theirs(kind: str, line: str, kept: PublishedModels) -> str:
    """What transformers answers."""
    model, tokenizer, _ = kept(kind)
    first, _, second = line.partition("\t")
    segments = {"return_token_type_ids": True} if kind in ("fill", "classify", "embed") else {}
    given = tokenizer(first, second or None, return_tensors="pt", **segments)
    if kind == "continue":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = model.generate(**given, max_new_tokens=64, do_sample=False)
        return str(tokenizer.decode(whole[0, given["input_ids"].shape[1] :], skip_special_tokens=True))
    if kind.startswith("translate"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = model.generate(**given, max_new_tokens=8, num_beams=1, do_sample=False)
        return str(tokenizer.decode(whole[0], skip_special_tokens=True))
    output = model(**given)
    if kind == "fill":
        ids = given["input_ids"][0]
        ids = torch.where(ids == 4, output.logits[0].argmax(-1), ids)
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    if kind == "classify":
        return LABELS[int(output.logits[0].argmax())]
    if kind == "label":
        names = tokenizer.convert_ids_to_tokens(given["input_ids"][0])
        best = output.logits[0].argmax(-1).tolist()
        return " ".join(f"{name}/{LABELS[one]}" for name, one in zip(names, best, strict=True))
    return " ".join(f"{one:.6g}" for one in torch.nn.functional.normalize(output.last_hidden_state[0].mean(0), dim=0))


def make_lines(kind: str) -> list[str]:
    if kind == "fill":
        return ["the cat sat on the <mask>", "<mask> dog ran <mask> the tree"]
    return [*LINES, *(["the cat sat\tthe cat slept"] if kind in ("classify", "embed") else [])]


def test_a_decoder_goes_on_learning_and_one_with_an_encoder_does_not(kept: PublishedModels, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number}.txt").write_text(
            " ".join(["the old dog slept under a red tree"] * (3 + number))
        )

    def learn(kind: str) -> Result:
        return invoke(
            "train", "language-modeling", f"model={{kind: pretrained, path: {kept(kind)[2]}}}", "tokenizer={}",
            "data.context=16",
            f"data.train=[{{kind: text_files, path: {tmp_path / 'texts'}}}]", "data.batch_tokens=128", "data.stride=8",
            "training.max_minutes=null", "training.max_steps=30", "training.optimizer.learning_rate=0.01",
            "training.validation.every=30", "decoding.length={factor: 0.0, constant: 20}", "--folder", tmp_path / kind,
        )  # fmt: skip

    before = (kept("continue")[2] / "model.safetensors").read_bytes()
    done = learn("continue")
    assert done.exit_code == 0, done.output
    assert (kept("continue")[2] / "model.safetensors").read_bytes() == before
    again = tasks.load(tmp_path / "continue")
    assert isinstance(again, tasks.TextGenerator) and again.generation is not None
    greedy = DecodingConfig(Greedy(), LengthLimit(0.0, 5))
    assert next(again.predict_ranked(["a red tree the old"], greedy))[0].text.split()[:3] == ["dog", "slept", "under"]
    assert invoke_successfully("evaluate", tmp_path / "continue", tmp_path / "texts").startswith("loss")
    wrong = learn("translate")
    assert wrong.exit_code != 0 and "a published checkpoint with an encoder" in wrong.output


@pytest.mark.parametrize("tokens", [{"pad_token": "</s>"}, {"bos_token": None, "cls_token": None}])
def test_a_decoder_learns_to_sum_up_whatever_tokens_it_has(tokens: dict[str, Any], tmp_path: Path) -> None:
    """Ends with what it pads with, one has no token to begin with, both with room for more tokens than there are."""
    folder = tmp_path / "published"
    roomy = {**KINDS["continue"].settings, "vocab_size": len(WORDS) + 9}
    replace(KINDS["continue"], settings=roomy).build().save_pretrained(folder)
    build_tokenizer("continue").save_pretrained(folder)
    says = {**json.loads((folder / "tokenizer_config.json").read_text()), **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps({name: one for name, one in says.items() if one}))
    pairs = {"the old dog slept under a red tree": "dog slept", "a tired cat sat on the mat": "cat sat"}
    lines = [json.dumps({"source": source, "target": target}) for source, target in pairs.items()]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    origin = f"{{kind: jsonl, path: {tmp_path / 'pairs.jsonl'}}}"

    def learn(start: Path, steps: int, run: Path) -> tasks.TextGenerator:
        done = invoke(
            "train", "summarization", f"model={{kind: pretrained, path: {start}}}", "tokenizer={}",
            f"data.train=[{origin}]",
            f"data.valid={origin}", "data.test=[]", "training.max_minutes=null", f"training.max_steps={steps}",
            "training.dropout=0", "training.optimizer.learning_rate=0.01", "training.validation.every=40",
            "--folder", run,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        again = tasks.load(run)
        assert isinstance(again, tasks.TextGenerator) and again.generation is not None
        return again

    runs = [learn(folder, 40, tmp_path / "run"), learn(tmp_path / "run", 5, tmp_path / "longer")]
    for again in runs:
        assert again.generation.bos == (2 if "bos_token" in tokens else 1)
        assert [found[0].text for found in again.predict_ranked(pairs)] == list(pairs.values())
        seen = again.look(next(iter(pairs)))
        assert seen.answer.text == "dog slept" and seen.target_tokens[seen.answer_start :] == ["dog", "slept"]


TASK_NAMES = {
    "continue": "text-generation",
    "translate": "translation",
    "fill": "fill-mask",
    "classify": "classification",
    "label": "token-classification",
    "embed": "feature-extraction",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_run_answers_as_transformers_does(kind: str, kept: PublishedModels) -> None:
    folder, lines = kept(kind)[2], make_lines(kind)
    options = ["--beam", "1"] if kind.startswith("translate") else []
    expected = [predict_theirs(kind, line, kept) for line in lines]
    shown = invoke_successfully("run", folder, *options, stdin="\n".join([lines[0], "", *lines[1:]])).split("\n")
    assert shown.pop() == "" and shown.pop(1) == ""
    if kind == "embed":
        for ours, other in zip(shown, expected, strict=True):
            assert_close(
                torch.tensor([float(one) for one in ours.split()]), torch.tensor([float(o) for o in other.split()])
            )
    elif kind.startswith("translate"):  # the length is bounded otherwise
        assert all(one.startswith(begin) for one, begin in zip(shown, expected, strict=True)), (shown, expected)
        assert any(expected) or kind == "translate"  # the small BART ends at once
    else:
        assert [one.strip() for one in shown] == expected  # a space may stand before what a text goes on with
        assert len(set(expected)) > 1 or kind == "classify"
    assert invoke_successfully("run", folder, *options, lines[0]) == f"{shown[0]}\n"
    assert tasks.load(folder).task.name == TASK_NAMES[kind.partition("-")[0]]


def test_several_answers_come_best_first(kept: PublishedModels) -> None:
    model, tokenizer, folder = kept("fill")
    with torch.no_grad():
        logits = model(**tokenizer("the <mask> sat", return_tensors="pt")).logits[0, 2].log_softmax(-1)
    values, best = logits.topk(3)
    found = json.loads(invoke_successfully("run", folder, "--n-best", "3", "--json", "the <mask> sat"))
    assert [one["tokens"] for one in found] == [[number] for number in best.tolist()]
    assert [one["score"] for one in found] == pytest.approx(values.tolist(), abs=1e-4)
    ranked = json.loads(invoke_successfully("run", kept("classify")[2], "--n-best", "9", "--json", "the cat sat"))
    assert sorted(one["text"] for one in ranked) == sorted(LABELS.values())
    assert ranked[0]["score"] >= ranked[1]["score"] >= ranked[2]["score"]


def test_an_image_gets_the_class_that_transformers_sees(kept: PublishedModels, picture: Path) -> None:
    model, _, folder = kept("see")
    ours = tasks.load(folder)
    assert isinstance(ours, tasks.EncoderModel)
    given = ours.prepare(str(picture)).source
    with torch.no_grad():
        expected = LABELS[int(model(given).logits[0].argmax())]
    for numbers in ("float32", "bfloat16", "int8"):
        assert invoke_successfully("run", folder, picture, "--dtype", numbers) == f"{expected}\n"
    assert "absent.png does not exist" in invoke_refused("run", folder, "absent.png")


# -- scores, pages, trees -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*TEXTS, "see"])
def test_evaluate(kind: str, kept: PublishedModels, picture: Path, tmp_path: Path) -> None:
    folder = kept(kind)[2]
    lines = [str(picture)] if kind == "see" else make_lines(kind)[:2]
    options = ["--beam", "1"] if kind.startswith("translate") else []
    answers = invoke_successfully("run", folder, *options, stdin="\n".join(lines)).splitlines()
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(
        "".join(f"{line}\t{answer}\n" for line, answer in zip(lines, [*answers[:-1], "never"], strict=True))
    )
    if kind == "embed":
        assert "vectors, which have no right or wrong" in invoke_refused("evaluate", folder, pairs)
        return
    shown = invoke_successfully("evaluate", folder, pairs, *options, "--answers", tmp_path / "answers")
    assert (tmp_path / "answers").read_text().splitlines() == answers
    metric = "bleu" if kind.startswith("translate") else "accuracy"
    assert metric in shown and f"{len(lines)} lines" in shown
    if metric == "accuracy":
        assert float(shown.split()[1]) == pytest.approx(100 * (len(lines) - 1) / len(lines), abs=0.01)


@pytest.mark.parametrize("kind", [*TEXTS, "see"])
def test_look_writes_a_page_of_every_attention(kind: str, kept: PublishedModels, picture: Path, tmp_path: Path) -> None:
    folder = kept(kind)[2]
    line = str(picture) if kind == "see" else make_lines(kind)[0]
    said = invoke_successfully("look", folder, line, "--html", tmp_path / "look.html").splitlines()[0]
    answer = invoke_successfully("run", folder, line).splitlines()[0]
    assert said == (f"a vector of 32 numbers: {' '.join(answer.split()[:4])} ..." if kind == "embed" else answer)
    [run] = json.loads(Parts((tmp_path / "look.html").read_text("utf-8")).parts["document"])["runs"]
    places = [one["place"] for one in run["attentions"]]
    assert places and all(place.startswith(("encoder.", "decoder.")) for place in places)
    model = tasks.load(folder).module
    assert len(places) == len([one for one, _ in model.named_modules() if one.endswith("attention")])
    if kind == "embed":
        assert not run["answers"]  # a vector is no choice
    if kind in ("fill", "classify", "see"):
        assert run["axes"]["source"]["tokens"] and "target" not in run["axes"]
    if kind == "see":
        assert run["axes"]["source"]["kind"] == "image" and run["axes"]["source"]["image"]["pixels"]["shape"][2] == 3
    if kind == "continue":
        assert "source" not in run["axes"]
        assert run["axes"]["target"]["tokens"][: len(line.split())] == line.split()


def test_a_given_answer_can_be_looked_at_where_there_are_answers(kept: PublishedModels, tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    invoke_successfully("look", kept("continue")[2], "the cat", "--answer", "sat on", "--html", page)
    [run] = json.loads(Parts(page.read_text("utf-8")).parts["document"])["runs"]
    assert run["axes"]["target"]["tokens"] == ["the", "cat", "sat", "on"]
    assert "reads no answers: leave it out" in invoke_refused(
        "look", kept("fill")[2], "a", "--answer", "b", "--html", page
    )
    assert "expected some text" in invoke_refused("look", kept("fill")[2], " ", "--html", page)


@pytest.mark.parametrize("kind", [*TEXTS, "see"])
def test_describe(kind: str, kept: PublishedModels) -> None:
    model, _, folder = kept(kind)
    shown = invoke_successfully("describe", folder)
    assert "Transformer(" in shown and "parameters" in shown
    assert "no change" in invoke_successfully("describe", folder, folder)
    if kind != "embed":  # whose pooler answers nothing here
        assert f"{sum(one.numel() for one in tasks.load(folder).module.parameters()):,}" in shown


def test_lines_without_a_place_to_fill_are_named(kept: PublishedModels) -> None:
    done = invoke("run", kept("fill")[2], "the <mask> sat", "the cat")
    assert done.exit_code == 2 and done.stdout.count("\n") == 1 and "expected '<mask>' where a word" in done.stderr


# -- numbers ------------------------------------------------------------------------------------------------------


def parameters(model: Any) -> int:
    """The bytes that a model keeps."""
    return sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("kind", ["continue", "translate", "classify"])
@torch.no_grad()
def test_numbers_may_be_kept_smaller(kind: str, kept: PublishedModels) -> None:
    folder = kept(kind)[2]
    whole = tasks.load(folder)
    given = torch.randint(5, len(WORDS), (2, 7), generator=torch.Generator().manual_seed(0))
    source, target = (None, given) if kind == "continue" else (given, given if kind == "translate" else None)
    expected = whole.module(source, target)
    for numbers in ("float32", "bfloat16", "int8", "stored"):
        model = tasks.load(folder, dtype=numbers).module
        found = model(source, target).float()
        allowed = {"float32": 0.0, "stored": 0.0, "bfloat16": 0.1, "int8": 0.1}[numbers]
        assert float((found - expected).norm() / expected.norm()) <= allowed
        assert numbers in ("float32", "stored") or not torch.equal(found, expected)
        invoke_successfully("run", folder, "the cat", "--dtype", numbers)
    matrices = sum(one.weight.numel() * 4 for one in whole.module.modules() if isinstance(one, torch.nn.Linear))
    small = tasks.load(folder, dtype="int8").module
    quantised = [one for one in small.modules() if isinstance(one, int8.Int8Linear)]
    assert quantised and not any(isinstance(one, torch.nn.Linear) for one in small.modules())
    assert sum(one.int8_weight.numel() for one in quantised) * 4 == matrices
    half = tasks.load(folder, dtype="bfloat16").module
    assert parameters(half) * 2 == parameters(whole.module)


@torch.no_grad()
def test_eight_bits_are_within_half_a_step_and_can_be_looked_at(kept: PublishedModels) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 4)
    linear.weight[1] = 0
    small = int8.Int8Linear(linear)
    steps = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((small.weight - linear.weight).abs() <= steps * 0.501).all()
    assert torch.equal(small.weight[1], torch.zeros(16))
    hidden = torch.randn(3, 16)
    torch.testing.assert_close(small(hidden), hidden @ small.weight.T + linear.bias)
    model = tasks.load(kept("continue")[2], dtype="int8").module
    trace = lens.look(model, None, [5, 6, 7])
    attention = trace["decoder.0.self_attention"]
    layer: Any = model.get_submodule("decoder.blocks.0.self_attention.output")
    added = sum(attention.output(head) for head in range(4))
    torch.testing.assert_close(added, attention.context.transpose(1, 2).flatten(2) @ layer.weight.T)


def test_blocks_and_pickles_are_of_published_checkpoints_alone() -> None:
    for options in (("--dtype", "blocks"), ("--dtype", "stored"), ("--allow-pickle",)):
        assert "expected float32, bfloat16 or int8 for a model" in invoke_refused(
            "run", "pronunciation", "cat", *options
        )


# -- names on the hub ---------------------------------------------------------------------------------------------


def test_a_name_is_looked_up_on_the_hub_and_a_path_is_not(
    kept: PublishedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    folder, asked = kept("classify")[2], []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    expected = invoke_successfully("run", folder, LINES[0])
    monkeypatch.chdir(folder.parent)
    for path in (folder / "absent", "absent", "../absent/model", "absent/model/deeper", "runs/a", f"{folder.name}/a"):
        assert "there is no model folder" in invoke_refused("run", path, LINES[0])
    assert asked == []
    assert invoke_successfully("run", "someone/a-model", LINES[0]) == expected
    assert invoke_successfully("run", "hf:someone/a-model", LINES[0]) == expected
    assert [name for name, _ in asked] == ["someone/a-model"] * 2
    name, patterns = asked[0]
    assert name == "someone/a-model" and "*.safetensors" in patterns
    assert not any(Path("pytorch_model.bin").match(pattern) for pattern in patterns)


def test_a_name_without_a_network(kept: PublishedModels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    said = invoke_refused("run", "someone/a-model", "text")
    assert "'someone/a-model'" in said and "check its spelling and the network" in said
    with pytest.raises(DownloadError):
        hub.download("someone/a-model")
    commit, place = "0" * 40, tmp_path / "models--someone--a-model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(kept("classify")[2], place / "snapshots" / commit)
    assert invoke_successfully("run", "someone/a-model", LINES[0]) == invoke_successfully(
        "run", kept("classify")[2], LINES[0]
    )


# -- what is refused ----------------------------------------------------------------------------------------------


def pickle_weights(folder: Path) -> None:
    """The weights as a file of torch.save."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def remove_files(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def change_config(**more: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))

    return write


def write_file(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


@pytest.mark.parametrize(
    ("kind", "harm", "expected"),
    [
        ("continue", remove_files("config.json"), "is not a complete model folder: it has neither"),
        ("continue", remove_files("model.safetensors"), "holds no weights"),
        ("continue", remove_files("tokenizer.json", "tokenizer_config.json"), "contains no tokenizer"),
        ("continue", write_file("tokenizer.json", "{"), "is not a complete tokenizer.json"),
        ("continue", write_file("config.json", "{"), "config.json cannot be read"),
        ("continue", change_config(model_type="gpt-9"), "model_type='gpt-9'; expected one of llama"),
        ("continue", change_config(n_embd=16), "do not fit the GPT-2 model that config.json describes"),
        ("continue", change_config(n_head=None), "a value of a wrong kind for the GPT-2 family"),
        ("continue", truncate_weights, "model.safetensors"),
        ("continue", pickle_weights, "--allow-pickle"),
        ("fill", change_config(vocab_size=7), "config.json makes it"),
        ("see", remove_files("preprocessor_config.json"), "preprocessor_config.json"),
        ("see", write_file("preprocessor_config.json", "[]"), "preprocessor_config.json"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    kind: str, harm: Callable[[Path], None], expected: str, kept: PublishedModels, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(kept(kind)[2], tmp_path / "model"))
    harm(folder)
    said = invoke_refused("run", folder, "the cat")
    assert expected in said and str(folder) in said, said


def test_pickles_are_opened_on_request_and_run_nothing(kept: PublishedModels, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kept("classify")[2], tmp_path / "model"))
    pickle_weights(folder)
    assert invoke_successfully("run", "--allow-pickle", folder, LINES[0]) == invoke_successfully(
        "run", kept("classify")[2], LINES[0]
    )

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    with open(folder / "pytorch_model.bin", "wb") as file:
        pickle.dump({"weight": Evil()}, file)
    invoke_refused("run", "--allow-pickle", folder, LINES[0])
    assert not (tmp_path / "touched").exists()


def test_wrong_places_are_named(tmp_path: Path) -> None:
    assert "is not a complete model folder" in invoke_refused("run", tmp_path, "a")
    (tmp_path / "notes.txt").write_text("nothing")
    assert "notes.txt" in invoke_refused("run", tmp_path / "notes.txt", "a")
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    assert f"give the file: {tmp_path / 'some.gguf'}" in invoke_refused("run", tmp_path, "a")
    assert "some.gguf" in invoke_refused("describe", tmp_path / "some.gguf")
    save_file({"a": torch.zeros(2)}, tmp_path / "some.safetensors")
    assert "does not describe the model" in invoke_refused("run", tmp_path / "some.safetensors", "a")


# -- opening ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["continue", "translate", "classify", "see"])
def test_an_outline_has_the_shapes_of_the_model(kind: str, kept: PublishedModels) -> None:
    shape = pretrained.load_spec(kept(kind)[2])
    built, drawn = build(shape), build_on_meta(shape)
    shapes = {name: one.shape for name, one in built.named_parameters()}
    assert shapes == {name: one.shape for name, one in drawn.named_parameters()}
    assert all(one.is_meta for one in drawn.parameters())


def test_opening_loads_no_compiler(kept: PublishedModels) -> None:
    program = (
        "import sys, qkv\nqkv.load(sys.argv[1])\nprint(sorted({'torch._dynamo', 'transformers'} & {*sys.modules}))"
    )
    command = [sys.executable, "-c", program, str(kept("continue")[2])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_load_is_for_python_too(kept: PublishedModels) -> None:
    opened = qkv.load(kept("classify")[2])
    assert isinstance(opened, tasks.EncoderModel)
    assert [one[0].text for one in opened.predict_ranked(LINES)] == invoke_successfully(
        "run", kept("classify")[2], *LINES
    ).splitlines()
    with pytest.raises(CheckpointError, match="did you mean pronunciation"):
        qkv.load("pronunciaton")


def attention_shares(trace: Any) -> Tensor:
    result: Tensor = trace["encoder.0.self_attention"].weights
    return result


def test_a_page_shows_what_the_lens_does(kept: PublishedModels) -> None:
    opened = tasks.load(kept("classify")[2])
    assert isinstance(opened, tasks.EncoderModel)
    looked = opened.look(LINES[0])
    assert looked.source_tokens == ["<s>", *LINES[0].split(), "</s>"] and not looked.target_tokens
    assert attention_shares(looked).sum(-1).allclose(torch.ones(()))
