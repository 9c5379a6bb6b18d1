"""CLIP by the commands: a tiny random checkpoint of transformers with its tokenizer and its processor of images.

What is checked: that `qkv run` ranks texts as CLIPModel does on what CLIPProcessor prepares, `evaluate` counts right
ones, `look` shows both towers, `convert` gives graphs, folders and checkpoints that answer the same, and that lines
without an image, a tab or a text, with a text that is too long or with another tokenizer are refused by name.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch import Tensor

from qkv import tasks
from qkv.data.images import processing
from qkv.errors import QkvError
from qkv.text import train
from qkv.view import Session
from tests.tasks.test_published import invoke, invoke_refused, invoke_successfully
from tests.view.test_document import Parts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

TEXTS = ["a cat", "The dog, on a mat!", "a cat and a dog and a tree", "a tree"]
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE as CLIP has it: lower case, the ends of words marked, a begin and an end token around a text."""
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, end_of_word_suffix="</w>", special_tokens=[], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>", unk_token=END))
    inner.normalizer = tokenizers.normalizers.Lowercase()
    cut = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(cut), "removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.train_from_iterator([text.lower() for text in TEXTS] * 3, trainer)
    inner.add_special_tokens([BEGIN, END])
    ends = [(token, inner.token_to_id(token)) for token in (BEGIN, END)]
    inner.post_processor = tokenizers.processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=ends)
    inner.save(str(path))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The model of transformers and its folder."""
    pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder / "tokenizer.json")
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ids = {"bos_token_id": inner.token_to_id(BEGIN), "eos_token_id": inner.token_to_id(END), "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config={**tower, **ids, "num_hidden_layers": 1, "vocab_size": inner.get_vocab_size(),
                     "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 12, "patch_size": 4}, projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(1)
    model: Any = transformers.CLIPModel(config)
    model.eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    names = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "tokenizer_class": "CLIPTokenizer"}))
    sizes = {"size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 12}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **sizes})
    )
    return model, folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two images of other sizes than the model's."""
    image = pytest.importorskip("PIL.Image")
    folder, draw = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(3)
    found = []
    for number, (height, width) in enumerate([(20, 31), (14, 12)]):
        pixels = torch.randint(256, (height, width, 3), generator=draw, dtype=torch.uint8)
        image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
        found.append(folder / f"{number}.png")
    return found


@torch.no_grad()
def run_theirs(clip: tuple[Any, Path], path: Path, texts: list[str]) -> Tensor:
    """The logits of transformers, (texts,)."""
    model, folder = clip
    image = pytest.importorskip("PIL.Image").open(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = transformers.CLIPImageProcessor.from_pretrained(folder)
        fast: Any = transformers.PreTrainedTokenizerFast
        tokenizer = fast(tokenizer_file=str(folder / "tokenizer.json"), pad_token=END)
        both: Any = transformers.CLIPProcessor
        given = both(processor, tokenizer)(text=texts, images=image, return_tensors="pt", padding=True)
    given.pop("token_type_ids", None)
    logits: Tensor = model(**given).logits_per_image[0]
    return logits


def format_line(path: Path, texts: list[str] | None = None) -> str:
    return "\t".join([str(path), *(TEXTS if texts is None else texts)])


def test_run_ranks_texts_as_transformers_does(clip: tuple[Any, Path], pictures: list[Path]) -> None:
    lines = [format_line(pictures[0]), "", format_line(pictures[1], TEXTS[:2])]
    shown = invoke_successfully("run", clip[1], "--n-best", "4", "--json", stdin="\n".join(lines)).splitlines()
    assert json.loads(shown[1])[0]["text"] == ""
    for line, path, texts in ((shown[0], pictures[0], TEXTS), (shown[2], pictures[1], TEXTS[:2])):
        logits = run_theirs(clip, path, texts)
        found = json.loads(line)
        order = logits.argsort(descending=True).tolist()
        assert [one["text"] for one in found] == [texts[number] for number in order]
        assert [one["tokens"] for one in found] == [[number] for number in order]
        assert [one["score"] for one in found] == pytest.approx(logits[order].tolist(), abs=1e-4)
        chances = logits.log_softmax(-1)[order].tolist()
        assert [one["log_probability"] for one in found] == pytest.approx(chances, abs=1e-4)
    best = [json.loads(line)[0]["text"] for line in (shown[0], shown[2])]
    assert invoke_successfully("run", clip[1], lines[0], lines[2]).splitlines() == best
    ranked = invoke_successfully("run", clip[1], "--n-best", "9", lines[0]).rstrip("\n").split("\t")
    assert sorted(ranked) == sorted(TEXTS) and ranked[0] == best[0]


def test_lines_that_cannot_be_read_are_refused(clip: tuple[Any, Path], pictures: list[Path], tmp_path: Path) -> None:
    folder, path = clip[1], pictures[0]
    assert "line 1: " in invoke_refused("run", folder, str(path)) and "no tab and no text" in invoke_refused(
        "run", folder, str(path)
    )
    assert "an empty text" in invoke_refused("run", folder, f"{path}\ta cat\t ")
    assert "no image before its first tab" in invoke_refused("run", folder, "\ta cat")
    assert "absent.png does not exist" in invoke_refused("run", folder, "absent.png\ta cat")
    (tmp_path / "a.png").write_text("no image")
    assert "a.png" in invoke_refused("run", folder, f"{tmp_path / 'a.png'}\ta cat")
    assert "expected at most 16" in invoke_refused("run", folder, f"{path}\ta cat\t{'a dog ' * 9}")
    done = invoke("run", folder, format_line(path), "absent.png\ta cat", format_line(path))
    assert (
        done.exit_code == 2
        and done.stdout.splitlines() == invoke_successfully("run", folder, format_line(path)).splitlines()
    )


def test_what_stands_after_an_end_is_not_read(clip: tuple[Any, Path], pictures: list[Path]) -> None:
    texts = [f"a cat {END} a dog", "a tree"]
    found = json.loads(invoke_successfully("run", clip[1], "--n-best", "2", "--json", format_line(pictures[0], texts)))
    scores = {one["text"]: one["score"] for one in found}
    assert [scores[text] for text in texts] == pytest.approx(run_theirs(clip, pictures[0], texts).tolist(), abs=1e-4)


def test_evaluate_counts_the_right_texts(clip: tuple[Any, Path], pictures: list[Path], tmp_path: Path) -> None:
    folder = clip[1]
    best, worst = (
        invoke_successfully("run", folder, "--n-best", "2", format_line(pictures[0], TEXTS[:2]))
        .rstrip("\n")
        .split("\t")
    )
    rows = [[str(pictures[0]), best, worst], [str(pictures[0]), worst, best]]
    (tmp_path / "some.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "some.jsonl").write_text(
        "".join(json.dumps({"source": "\t".join(row), "target": row[1]}) + "\n" for row in rows)
    )
    for name in ("some.tsv", "some.jsonl"):
        shown = invoke_successfully("evaluate", folder, tmp_path / name, "--answers", tmp_path / "answers")
        assert shown.split()[:2] == ["accuracy", "50.00"] and "2 lines" in shown
        assert (tmp_path / "answers").read_text().splitlines() == [best, best]
    for label in (best, worst):
        (tmp_path / "album" / label).mkdir(parents=True)
        shutil.copy(pictures[0], tmp_path / "album" / label / "one.png")
    assert invoke_successfully("evaluate", folder, tmp_path / "album").split()[:2] == ["accuracy", "50.00"]
    (tmp_path / "wrong.tsv").write_text(f"{pictures[0]}\n")
    assert "no tab and no text" in invoke_refused("evaluate", folder, tmp_path / "wrong.tsv")


def test_look_shows_both_towers(clip: tuple[Any, Path], pictures: list[Path], tmp_path: Path) -> None:
    model, folder = clip
    line, page = format_line(pictures[0]), tmp_path / "look.html"
    best = invoke_successfully("run", folder, line).strip()
    assert invoke_successfully("look", folder, line, "--html", page).splitlines()[0] == best
    [run] = json.loads(Parts(page.read_text("utf-8")).parts["document"])["runs"]
    sides = [(one["place"], one["queries"], one["keys"], one["n_keys"]) for one in run["attentions"]]
    length = len(run["axes"]["target"]["tokens"])
    assert sides == [
        *((f"source.encoder.{number}.self_attention", "source", "source", 10) for number in range(2)),
        ("target.encoder.0.self_attention", "target", "target", length),
    ]
    assert run["axes"]["source"]["kind"] == "image" and len(run["axes"]["source"]["tokens"]) == 10
    assert run["axes"]["target"]["tokens"][0] == BEGIN and run["axes"]["target"]["tokens"][-1] == END
    chances = run_theirs(clip, pictures[0], TEXTS).softmax(-1)
    [answer] = run["answers"]
    assert answer["chosen"][0] == best and answer["chosen"][1] == pytest.approx(float(chances.max()), abs=1e-4)
    assert {name for name, _ in answer["best"]} == set(TEXTS)
    other = next(text for text in TEXTS if text != best)
    assert invoke_successfully("look", folder, line, "--answer", other, "--html", page).splitlines()[0] == other
    assert "expected one of the texts of the line" in invoke_refused(
        "look", folder, line, "--answer", "no", "--html", page
    )


def test_a_page_of_two_towers_answers(clip: tuple[Any, Path], pictures: list[Path]) -> None:
    line = format_line(pictures[0])
    opened = tasks.load(clip[1])
    session = Session([("clip", opened)], line)
    edits = [
        {"kind": "knock_out", "keys": [1], "place": f"{one}.encoder.*.self_attention"} for one in ("source", "target")
    ]
    reply, _ = session.ask({"ask": "look", "edits": edits})
    assert "error" not in reply, reply
    own = [share for _, share in reply["run"]["answers"][0]["best"]]
    assert own != pytest.approx(run_theirs(clip, pictures[0], TEXTS).softmax(-1).sort(descending=True).values.tolist())
    assert "token by token" in session.ask({"ask": "explain", "position": 0})[0]["error"]


@torch.no_grad()
def test_graphs_answer_the_same(clip: tuple[Any, Path], pictures: list[Path], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    pytest.importorskip("onnxscript", reason="needs the package onnxscript")
    model, folder = clip
    invoke_successfully("convert", folder, tmp_path / "graphs", "--to", "onnx")
    source, target = (
        runtime.InferenceSession(tmp_path / "graphs" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("source", "target")
    )
    opened = tasks.load(folder)
    assert isinstance(opened, tasks.ImageTextModel)
    seen = torch.cat([opened.prepare(format_line(path)).image.source for path in pictures])
    ids = [opened.tokenizer.encode_with_special_tokens(text).ids for text in TEXTS]
    longest = max(map(len, ids))
    mask = torch.tensor([[True] * len(one) + [False] * (longest - len(one)) for one in ids])
    tokens = torch.tensor([one + [0] * (longest - len(one)) for one in ids])
    [left] = source.run(None, {"source": seen.numpy()})
    [right] = target.run(None, {"source": tokens.numpy(), "source_mask": mask.numpy()})
    expected = torch.stack([run_theirs(clip, path, TEXTS) for path in pictures])
    assert float((torch.from_numpy(left @ right.T) - expected).abs().max() / expected.abs().max()) < 1e-4
    assert (tmp_path / "graphs" / "tokenizer.json").is_file()


@pytest.mark.parametrize("form", ["qkv", "hugging-face"])
def test_what_is_written_answers_the_same(
    form: str, clip: tuple[Any, Path], pictures: list[Path], tmp_path: Path
) -> None:
    line = format_line(pictures[0])
    invoke_successfully("convert", clip[1], tmp_path / "other", "--to", form)
    ours, again = (
        json.loads(invoke_successfully("run", one, "--json", "--n-best", "4", line))
        for one in (clip[1], tmp_path / "other")
    )
    assert [one["text"] for one in ours] == [one["text"] for one in again]
    assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in again], abs=1e-4)
    if form == "qkv":
        card = json.loads((tmp_path / "other" / "card.json").read_text())
        (tmp_path / "other" / "card.json").write_text(json.dumps({**card, "tokenizers": {"target": "0"}}))
        assert "not the one that the model was trained with" in invoke_refused("run", tmp_path / "other", line)


@pytest.mark.parametrize("numbers", ["bfloat16", "int8", "stored"])
def test_numbers_are_kept_in_every_way(numbers: str, clip: tuple[Any, Path], pictures: list[Path]) -> None:
    [found] = json.loads(invoke_successfully("run", clip[1], "--dtype", numbers, "--json", format_line(pictures[0])))
    best = run_theirs(clip, pictures[0], TEXTS)
    assert found["score"] == pytest.approx(float(best[found["tokens"][0]]), abs=0.5)


def test_describe(clip: tuple[Any, Path]) -> None:
    shown = invoke_successfully("describe", clip[1])
    count = sum(one.numel() for one in tasks.load(clip[1]).module.parameters())
    assert "DualEncoder(" in shown and f"{count:,}" in shown


def test_the_processor_of_newer_folders_is_read(clip: tuple[Any, Path], pictures: list[Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip[1], tmp_path / "model"))
    said = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json is not there" in invoke_refused("run", folder, format_line(pictures[0]))
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    assert invoke_successfully("run", folder, format_line(pictures[0])) == invoke_successfully(
        "run", clip[1], format_line(pictures[0])
    )


def test_a_tokenizer_of_another_model_is_refused(clip: tuple[Any, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip[1], tmp_path / "model"))
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**whole, "post_processor": None}))
    (folder / "tokenizer_config.json").write_text("{}")
    assert "appends no end token to a text" in invoke_refused("run", folder, "a.png\ta cat")
    model = tasks.load(clip[1])
    assert isinstance(model, tasks.ImageTextModel)
    other = train([f"word{number}" for number in range(400)], "word")
    with pytest.raises(QkvError, match="take the tokenizer from the model's own folder"):
        tasks.ImageTextModel(model.module, processing.ImageProcessor((12, 12)), other)
