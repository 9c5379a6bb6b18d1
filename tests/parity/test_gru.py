"""The pronouncer of the package g2p-en: read by us, it is the GRU of a few lines of NumPy.

Checked: logits over whole words and step by step, in a padded batch, what words it says and the rules of its answers,
writing back, and what is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from qkv import pretrained, spec, tasks
from qkv.cli import main
from qkv.decoding import DecodingConfig, Greedy, LengthLimit, generate_batch
from qkv.errors import CheckpointError, SpecError
from qkv.generation_rules import GenerationRules
from qkv.models import build
from qkv.pretrained.families.g2p import LETTERS, PHONEMES
from tests.published import assert_close

DATA = os.environ.get("QKV_DATA")
FILE = Path(DATA or "", "models-small", "g2p-gru", "checkpoint20.npz")
needs_data = pytest.mark.skipif(not DATA, reason="needs the pronouncer; name the folder that holds it in QKV_DATA")
Array = NDArray[Any]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def run_gru(tensors: dict[str, Array], side: str, tokens: list[int], state: Array) -> list[Array]:
    """The states of a gated recurrent unit [Cho et al. 2014], the reset gate on the recurrent part of the new."""
    states = []
    for token in tokens:
        given = tensors[f"{side}_w_ih"] @ tensors[f"{side}_emb"][token] + tensors[f"{side}_b_ih"]
        carried = tensors[f"{side}_w_hh"] @ state + tensors[f"{side}_b_hh"]
        reset, update, new = np.split(given, 3)
        reset_by, update_by, new_by = np.split(carried, 3)
        kept = sigmoid(update + update_by)
        state = (1 - kept) * np.tanh(new + sigmoid(reset + reset_by) * new_by) + kept * state
        states.append(state)
    return states


def run_plain(tensors: dict[str, Array], source: list[int], target: list[int]) -> torch.Tensor:
    last = run_gru(tensors, "enc", source, np.zeros(tensors["enc_w_hh"].shape[1], np.float32))[-1]
    states = np.stack(run_gru(tensors, "dec", target, last))
    return torch.tensor(states @ tensors["fc_w"].T + tensors["fc_b"])


def encode_word(word: str) -> list[int]:
    return [LETTERS.index(letter) for letter in [*word, "</s>"]]


def write_archive(path: Path, width: int = 8) -> dict[str, Array]:
    draw = np.random.default_rng(2)
    shapes: dict[str, tuple[int, ...]] = {"enc_emb": (29, width), "dec_emb": (74, width), "fc_w": (74, width)}
    for side in ("enc", "dec"):
        shapes |= {f"{side}_w_{part}": (3 * width, width) for part in ("ih", "hh")}
        shapes |= {f"{side}_b_{part}": (3 * width,) for part in ("ih", "hh")}
    shapes["fc_b"] = (74,)
    tensors = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(path, **tensors)
    return tensors


WORDS = ("attention", "transformer", "queue")


@torch.no_grad()
def assert_matches_plain(path: Path, tensors: dict[str, Array]) -> None:
    model = pretrained.load(path).model
    target = [2, 40, 7, 66, 19]
    source = torch.tensor([encode_word(word) + [0] * (11 - len(word)) for word in WORDS])
    mask = torch.tensor([[place <= len(word) for place in range(12)] for word in WORDS])
    given = torch.tensor([target] * 3)
    padded = model(source, given, mask)
    state, steps = model.start(model.encode(source, mask), 3), []
    for part in given.split([1, 3, 1], dim=1):
        logits, state = model.step(part, state)
        steps.append(logits)
    for row, word in enumerate(WORDS):
        expected = run_plain(tensors, encode_word(word), target)
        assert_close(model(torch.tensor([encode_word(word)]), torch.tensor([target]))[0], expected)
        assert_close(padded[row], expected)
        assert_close(torch.cat(steps, 1)[row], expected)


def test_a_random_one_is_the_plain_formula(tmp_path: Path) -> None:
    assert_matches_plain(tmp_path / "model.npz", write_archive(tmp_path / "model.npz"))


@needs_data
def test_the_published_one_is_the_plain_formula() -> None:
    with np.load(FILE) as stored:
        assert_matches_plain(FILE, dict(stored))


@needs_data
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("activationist", "AE2 K T IH0 V EY1 SH AH0 N IH0 S T"),
        ("attention", "AH0 T EH1 N SH AH0 N"),
        ("street", "S T R IY1 T"),
        ("phone", "F OW1 N"),
        ("knight", "N AY1 T"),
    ],
)
def test_it_pronounces(word: str, expected: str) -> None:
    published = pretrained.load(FILE)
    rules = published.generation
    assert (rules["bos"], rules["eos"]) == (2, (3,))
    answer = generate_batch(
        published.model,
        torch.tensor([encode_word(word)]),
        rules=rules,
        decoding=DecodingConfig(Greedy(), LengthLimit(0, 20)),
    )
    assert answer[0][0].is_finished
    assert " ".join(PHONEMES[token] for token in answer[0][0].tokens[:-1]) == expected


@needs_data
def test_the_command_pronounces(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("street\tS T R IY1 T\nknight\tN AY1 T\n")
    answers = CliRunner().invoke(main, ["run", str(FILE)], input="activationist\n\nStreet\n")
    assert answers.output.splitlines() == ["AE2 K T IH0 V EY1 SH AH0 N IH0 S T", "", "S T R IY1 T"]
    scores = CliRunner().invoke(main, ["evaluate", str(FILE), str(tmp_path / "pairs.tsv")])
    assert scores.output.splitlines()[0].split()[:2] == ["wer", "0.00"], scores.output


def test_a_random_one_reads_letters_and_answers_phonemes(tmp_path: Path) -> None:
    write_archive(tmp_path / "model.npz")
    opened = tasks.load(tmp_path / "model.npz")
    assert isinstance(opened, tasks.TextGenerator)
    assert opened.source_tokenizer.encode_with_special_tokens("Queue").ids == encode_word("queue")
    assert opened.target_tokenizer.encode("AH0 K") == [PHONEMES.index("AH0"), PHONEMES.index("K")]
    assert (
        opened.target_tokenizer.decode([PHONEMES.index("AH0"), PHONEMES.index("K"), PHONEMES.index("</s>")]) == "AH0 K"
    )
    done = CliRunner().invoke(main, ["convert", str(tmp_path / "model.npz"), str(tmp_path / "own"), "--to", "qkv"])
    assert done.exit_code == 0, done.output
    again = tasks.load(tmp_path / "own")
    assert isinstance(again, tasks.TextGenerator)
    greedy = DecodingConfig(Greedy(), LengthLimit(0, 8))
    assert (
        next(again.predict_ranked(["queue"], greedy))[0].text == next(opened.predict_ranked(["queue"], greedy))[0].text
    )


@torch.no_grad()
def test_it_is_written_back(tmp_path: Path) -> None:
    tensors = write_archive(tmp_path / "model.npz")
    pretrained.save(pretrained.load(tmp_path / "model.npz"), tmp_path / "folder")
    again = pretrained.load(tmp_path / "folder")
    assert_close(
        again.model(torch.tensor([encode_word("queue")]), torch.tensor([[2, 5]]))[0],
        run_plain(tensors, encode_word("queue"), [2, 5]),
    )
    assert again.generation == GenerationRules(2, (3,))


def test_another_archive_is_not_taken_for_it(tmp_path: Path) -> None:
    tensors = write_archive(tmp_path / "whole.npz")
    del tensors["fc_b"]
    np.savez(tmp_path / "model.npz", **tensors)
    with pytest.raises(CheckpointError, match="does not describe the model"):
        pretrained.load(tmp_path / "model.npz")
    np.savez(tmp_path / "model.npz", **tensors, fc_b=np.zeros(73, np.float32))
    with pytest.raises(CheckpointError, match="fc_b"):
        pretrained.load(tmp_path / "model.npz")


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("attention", [None, "additive", "general"])
@torch.no_grad()
def test_an_encoder_may_read_in_one_direction(cell: Any, attention: Any) -> None:
    torch.manual_seed(0)
    words = spec.Tokens(20)
    model = build(spec.Recurrent(cell, 7, 2, words, words, attention, bidirectional=False)).eval()
    source, target = torch.randint(3, 20, (2, 6)), torch.randint(3, 20, (2, 5))
    memory = model.encode(source)
    assert memory is not None
    assert memory.states.shape == (2, 6, 7)
    changed = model.encode(torch.cat([source[:, :4], source[:, :2]], 1))
    assert changed is not None
    assert torch.equal(memory.states[:, :4], changed.states[:, :4])
    state, steps = model.start(memory, 2), []
    for part in target.split([2, 1, 2], dim=1):
        logits, state = model.step(part, state)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), model(source, target))


@pytest.mark.parametrize("change", [{"bidirectional": True}, {"cell": "lstm"}, {"layers": 2}])
def test_a_decoder_needs_a_bridge_where_the_encoder_ends_otherwise(change: dict[str, Any]) -> None:
    choice: dict[str, Any] = {"cell": "gru", "d_model": 8, "layers": 1, "bidirectional": False, "bridged": False}
    words = spec.Tokens(20)
    spec.Recurrent(**choice, source=words, target=words)
    with pytest.raises(SpecError, match="bridged=False"):
        spec.Recurrent(**{**choice, **change}, source=words, target=words)
