"""Published encoder-decoders: a tiny random model of transformers, read by us, predicts the same and is written back.

What is checked of each: every tensor placed; the memory and the logits, with sources and targets padded and not; the
weights of each attention, of the encoder, of the decoder and of the decoder over the memory; with a cache, token by
token; greedy and beam-4 generations, token for token, by the model's own rules (begin token, end tokens, forbidden
tokens, forced beginning and end); the file written back loads there with equal logits. Of T5 as an encoder alone:
states. Of mT5, as transformers 5 writes it (tied) and as published files have it. Not checked: classifying heads,
which are refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qkv import lens, pretrained, spec
from qkv.decoding import Beam, DecodingConfig, Greedy, LengthLimit, LengthPenalty, generate_batch
from qkv.errors import CheckpointError
from qkv.generation_rules import GenerationRules
from qkv.models import SequenceModel
from qkv.positions import RelativeBias
from qkv.pretrained.generation_config import read_generation_rules
from tests.published import (
    Case,
    WriteModel,
    assert_close,
    load_model,
    make_mask,
    make_tokens,
    make_writer,
    transformers,
)

SIZES = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "init_std": 0.2,
}  # fmt: skip


@dataclass(frozen=True)
class Whole(Case):
    """With the parts that transformers leaves at 0, or ties where published models do not, and rules of generation."""

    rules: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        model = super().build()
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.add_(torch.randn(buffer.shape) * 0.1)
        for module in model.modules():
            if hasattr(module, "create_weight"):  # sinusoids: they are no parameters, and in no file
                module.weight.data = module.create_weight()
        model.get_input_embeddings().weight.data *= 0.3  # lest every token answers with itself
        model.generation_config.update(**self.rules)
        if self.name == "T5-1.1":
            model.lm_head.weight = torch.nn.Parameter(torch.randn(99, 32) * 0.3)
        return model


def make_case(name: str, kind: str, rules: dict[str, Any] | None = None, **settings: Any) -> Case:
    model = "MTModel" if kind == "Marian" else "ForConditionalGeneration"
    return Whole(name, f"{kind}Config", f"{kind}{model}", {**SIZES, **settings}, rules=rules or {})


def make_t5_case(name: str, rules: dict[str, Any] | None = None, kind: str = "T5", **settings: Any) -> Case:
    sizes = {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10}
    settings = {"decoder_start_token_id": 0, "eos_token_id": 2, **settings}
    return Whole(
        name, f"{kind}Config", f"{kind}ForConditionalGeneration", {**sizes, **buckets, **settings}, rules=rules or {}
    )


MARIAN = {
    "activation_function": "swish", "scale_embedding": True, "decoder_start_token_id": 0, "pad_token_id": 0,
    "eos_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
CASES = [
    make_case("Marian", "Marian", {"bad_words_ids": [[0]]}, **MARIAN),
    make_case("Marian-apart", "Marian", **MARIAN, share_encoder_decoder_embeddings=False, decoder_vocab_size=90),
    make_t5_case("T5"),
    make_t5_case("T5-1.1", {"eos_token_id": [2, 54, 67]}, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    make_case("BART", "Bart", {"forced_bos_token_id": 0}, pad_token_id=1, bos_token_id=0, decoder_start_token_id=2),
    make_case("mBART", "MBart", {"forced_bos_token_id": 7}, pad_token_id=1, bos_token_id=0, scale_embedding=True, decoder_start_token_id=2),  # noqa: E501
    make_case("M2M100", "M2M100", {"forced_bos_token_id": 7}, pad_token_id=1, bos_token_id=0, decoder_start_token_id=2),
    make_t5_case("mT5", kind="MT5"),
]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WriteModel:
    return make_writer(tmp_path_factory)


each = pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
SOURCE, SOURCES = make_tokens(2, 9), make_mask([9, 5], 9)
TARGET, TARGETS = make_tokens(2, 12)[:, 4:] % 80 + 3, make_mask([8, 6], 8)


def read_both(one: Case, written: WriteModel) -> tuple[Any, SequenceModel]:
    theirs, folder = written(one)
    return theirs, pretrained.load(folder).model


@each
@torch.no_grad()
def test_it_predicts_the_same(one: Case, written: WriteModel) -> None:
    theirs, ours = read_both(one, written)
    whole = theirs(input_ids=SOURCE, decoder_input_ids=TARGET, use_cache=False)
    assert_close(ours(SOURCE, TARGET), whole.logits)
    padded = theirs(
        input_ids=SOURCE.masked_fill(~SOURCES, theirs.config.pad_token_id), attention_mask=SOURCES.long(),
        decoder_input_ids=TARGET.masked_fill(~TARGETS, theirs.config.pad_token_id),
        decoder_attention_mask=TARGETS.long(), use_cache=False,
    )  # fmt: skip
    memory = ours.encode(SOURCE, SOURCES)
    assert memory is not None
    assert_close(memory.states[SOURCES], padded.encoder_last_hidden_state[SOURCES])
    assert_close(ours(SOURCE, TARGET, SOURCES, TARGETS)[TARGETS], padded.logits[TARGETS])


@each
@torch.no_grad()
def test_it_attends_the_same(one: Case, written: WriteModel) -> None:
    theirs, ours = read_both(one, written)
    masks = {"attention_mask": SOURCES.long()}
    expected = theirs(input_ids=SOURCE, decoder_input_ids=TARGET, output_attentions=True, use_cache=False, **masks)
    trace = lens.look(ours, SOURCE, TARGET, SOURCES)
    for place, attentions in (
        ("encoder.{}.self_attention", expected.encoder_attentions),
        ("decoder.{}.self_attention", expected.decoder_attentions),
        ("decoder.{}.cross_attention", expected.cross_attentions),
    ):
        assert len(attentions) in (2, 3)
        for number, weights in enumerate(attentions):
            found = trace[place.format(number)].compute_weights()
            rows = SOURCES if place.startswith("encoder") else torch.ones_like(TARGETS)
            assert_close(found.transpose(1, 2)[rows], weights.transpose(1, 2)[rows])


@each
@torch.no_grad()
def test_it_steps_the_same(one: Case, written: WriteModel) -> None:
    _, ours = read_both(one, written)
    state, steps = ours.start(ours.encode(SOURCE, SOURCES), rows=2), []
    for part in TARGET.split([5, 1, 2], dim=1):
        logits, state = ours.step(part, state)
        steps.append(logits)
    assert_close(torch.cat(steps, dim=1), ours(SOURCE, TARGET, SOURCES))


@each
@pytest.mark.parametrize("beams", [1, 4])
@torch.no_grad()
def test_it_generates_the_same(one: Case, written: WriteModel, beams: int) -> None:
    theirs, folder = written(one)
    ours = pretrained.load(folder)
    source = SOURCE.masked_fill(~SOURCES, theirs.config.pad_token_id)
    rows = theirs.generate(
        source, attention_mask=SOURCES.long(), max_new_tokens=7, num_beams=beams, do_sample=False,
        **({"length_penalty": 0.6} if beams > 1 else {}),
    )  # fmt: skip
    method = Greedy() if beams == 1 else Beam(beams, LengthPenalty("power", 0.6), rules="hugging-face")
    rules = ours.generation
    found = generate_batch(ours.model, source, SOURCES, rules=rules, decoding=DecodingConfig(method, LengthLimit(0, 7)))
    for answer, row in zip(found, rows.tolist(), strict=True):
        count = len(answer[0].tokens)
        assert [rules.bos, *answer[0].tokens] == row[: count + 1]
        assert set(row[count + 1 :]) <= {theirs.config.pad_token_id, *rules.eos}


@each
@torch.no_grad()
def test_it_is_written_back(one: Case, written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(one)
    pretrained.save(pretrained.load(folder), tmp_path)
    again = load_model(theirs, tmp_path)
    expected = theirs(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    torch.testing.assert_close(again(input_ids=SOURCE, decoder_input_ids=TARGET).logits, expected, rtol=0, atol=5e-6)
    assert pretrained.load(tmp_path).generation == pretrained.load(folder).generation


@torch.no_grad()
def test_t5_may_be_an_encoder_alone(tmp_path: Path) -> None:
    theirs = Case("T5", CASES[2].config, "T5EncoderModel", CASES[2].settings).build()
    theirs.save_pretrained(tmp_path)
    ours = pretrained.load(tmp_path).model
    assert_close(ours(SOURCE, None, SOURCES)[SOURCES], theirs(SOURCE, SOURCES.long()).last_hidden_state[SOURCES])


@torch.no_grad()
def test_a_published_mt5_answers_with_vectors_of_its_own(written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(next(one for one in CASES if one.name == "mT5"))
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    own = torch.randn(99, 32) * 0.3
    save_file({**tensors, "lm_head.weight": own}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    states = theirs(input_ids=SOURCE, decoder_input_ids=TARGET, output_hidden_states=True).decoder_hidden_states[-1]
    assert_close(pretrained.load(tmp_path).model(SOURCE, TARGET), states @ own.mT)


@pytest.mark.parametrize("both_ways", [True, False])
def test_distances_fall_into_the_same_buckets(both_ways: bool) -> None:
    ahead = torch.arange(-3000, 3001)[None]
    ours = RelativeBias(spec.RelativeBias(32, 128), 1, both_ways)._bucket(ahead)
    attention = transformers.models.t5.modeling_t5.T5Attention
    assert torch.equal(ours, attention._relative_position_bucket(ahead, both_ways, 32, 128))


def test_a_wrong_file_is_named(written: WriteModel, tmp_path: Path) -> None:
    _, folder = written(CASES[4])
    tensors, config = load_file(folder / "model.safetensors"), (folder / "config.json").read_text()
    fc1 = "model.encoder.layers.1.fc1.weight"
    for change, expected in (
        ({fc1: None}, "no tensor for encoder.blocks.1.feed_forward.up_proj.weight"),
        ({fc1: None, "model.encoder.layers.1.fc3.weight": tensors[fc1]}, "fc3.weight has no place"),
        ({fc1: tensors[fc1].T.contiguous()}, "the shape"),
        ({"model.decoder.embed_tokens.weight": tensors["model.shared.weight"] + 1}, "they are tied"),
    ):
        changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(changed, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match=expected):
            pretrained.load(tmp_path)


def test_a_setting_that_cannot_be_followed_is_named(written: WriteModel, tmp_path: Path) -> None:
    _, folder = written(CASES[4])
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    for change, expected in (
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"activation_function": "mish"}, "'mish'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=expected):
            pretrained.load(tmp_path)


def test_rules_of_generation_are_read_or_refused() -> None:
    says = {
        "decoder_start_token_id": 5, "bos_token_id": 1, "eos_token_id": [2, 3], "bad_words_ids": [[9], [4]],
        "forced_bos_token_id": 7, "forced_eos_token_id": 2,
    }  # fmt: skip
    assert read_generation_rules(says, has_encoder=True) == GenerationRules(5, (2, 3), (4, 9), (7,), 2)
    assert read_generation_rules({"bos_token_id": 1, "eos_token_id": 2}, has_encoder=False) == GenerationRules(
        None, (2,)
    )
    assert read_generation_rules({"bos_token_id": 1}, has_encoder=True) == GenerationRules(1, ())
    for wrong in ({"bad_words_ids": [[1, 2]]}, {"eos_token_id": "</s>"}, {"forced_bos_token_id": -1}):
        with pytest.raises(CheckpointError, match=next(iter(wrong))):
            read_generation_rules(wrong, has_encoder=True)
