"""Published speech models: a tiny random model of transformers, read by us, predicts the same and is written back.

What is checked of Whisper: every tensor placed; logits, what the encoder makes, the weights of each attention, with a
cache token by token; greedy and beam-4 generations, token for token, with a forced beginning; written back. Its masks,
which transformers does not know, are held to the law that padding changes nothing.
Of wav2vec 2.0, with group and layer norms, norms before and after: every tensor placed, under the names of published
files and of transformers' own; logits of labels and bare states, padded (layer norms) and not; the weights of each
attention; greedy decoding; written back. It has no cache and generates nothing.
As CTranslate2 keeps it, Whisper is read from the same tensors in that form; the real tiny.en is in test_speech.py.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qkv import lens, pretrained, spec
from qkv.decoding import Beam, DecodingConfig, Greedy, LengthLimit, LengthPenalty, generate_batch
from qkv.errors import CheckpointError, DataError, SpecError
from qkv.generation_rules import GenerationRules
from qkv.models import build
from qkv.pretrained.families import get_family
from qkv.pretrained.families.speech import read_ctranslate2_whisper
from qkv.pretrained.family import build_model
from qkv.pretrained.generation_config import read_generation_rules
from qkv.pretrained.weights import LazyWeights
from qkv.pretrained.weights.lazy_weights import TensorEntry
from tests.published import Case, WriteModel, assert_close, load_model, make_mask, make_tokens, make_writer

WHISPER = Case(
    "Whisper", "WhisperConfig", "WhisperForConditionalGeneration",
    {
        "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "num_mel_bins": 10,
        "max_source_positions": 16, "max_target_positions": 32, "decoder_start_token_id": 1, "suppress_tokens": [7],
        "begin_suppress_tokens": [2, 13],
    },
)  # fmt: skip
CONVOLUTIONS = {
    "conv_dim": (16, 16, 24), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
LAYER_NORMS = {**CONVOLUTIONS, "feat_extract_norm": "layer", "conv_bias": True, "num_conv_pos_embeddings": 5}
LISTENERS = [
    Case("wav2vec2", "Wav2Vec2Config", "Wav2Vec2ForCTC", CONVOLUTIONS),
    Case("wav2vec2-bare", "Wav2Vec2Config", "Wav2Vec2Model", {**LAYER_NORMS, "mask_time_prob": 0.0}),
    Case("wav2vec2-stable", "Wav2Vec2Config", "Wav2Vec2ForCTC", {**LAYER_NORMS, "do_stable_layer_norm": True}),
]
each_listener = pytest.mark.parametrize("case", LISTENERS, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WriteModel:
    return make_writer(tmp_path_factory)


def make_frames(rows: int = 2, length: int = 32) -> Tensor:
    return torch.randn(rows, 10, length, generator=torch.Generator().manual_seed(3))


def make_samples(rows: int = 2, length: int = 400) -> Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(4))


# Whisper


@torch.no_grad()
def test_whisper_predicts_the_same(written: WriteModel) -> None:
    theirs, folder = written(WHISPER)
    ours = pretrained.load(folder).model
    sound, text = make_frames(), make_tokens()
    expected = theirs(input_features=sound, decoder_input_ids=text, output_attentions=True)
    assert_close(ours(source=sound, target=text), expected.logits)
    memory = ours.encode(sound)
    assert memory is not None
    assert_close(memory.states, expected.encoder_last_hidden_state)
    trace = lens.look(ours, sound, text)
    for place, attentions in (
        ("encoder.{}.self_attention", expected.encoder_attentions),
        ("decoder.{}.self_attention", expected.decoder_attentions),
        ("decoder.{}.cross_attention", expected.cross_attentions),
    ):
        assert len(attentions) == (3 if place.startswith("encoder") else 2)
        for number, weights in enumerate(attentions):
            assert_close(trace[place.format(number)].compute_weights(), weights)


@torch.no_grad()
def test_whisper_steps_and_generates_the_same(written: WriteModel) -> None:
    theirs, folder = written(WHISPER)
    ours = pretrained.load(folder).model
    sound, text = make_frames(), make_tokens()
    state, steps = ours.start(ours.encode(sound), rows=2), []
    for part in text.split([9, 1, 2], dim=1):
        logits, state = ours.step(part, state)
        steps.append(logits)
    assert_close(torch.cat(steps, dim=1), ours(source=sound, target=text))
    begin = [1, 11, 12]  # as Whisper begins: a language, a task
    opening = ours(source=sound, target=torch.tensor([begin] * 2))[:, -1].argmax(-1).tolist()  # what would come first
    for method, beams in ((Greedy(), 1), (Beam(4, LengthPenalty("power", 1.0), rules="hugging-face"), 4)):
        expected = generate_from_audio(theirs, sound, begin, beams, opening)
        found = generate_batch(
            ours,
            sound,
            rules=GenerationRules(
                bos=begin[0], eos=2, suppress_tokens=[7], begin_suppress_tokens=opening, prefixes=[begin[1:]] * 2
            ),
            decoding=DecodingConfig(method, LengthLimit(0, 12)),
        )
        for answer, row in zip(found, expected, strict=True):
            own = [begin[0], *answer[0].tokens]
            assert len(own) > 6 and own[3] not in opening
            assert own == row[: len(own)] and set(row[len(own) :]) <= {0}


def generate_from_audio(model: Any, sound: Tensor, begin: list[int], beams: int, opening: list[int]) -> list[list[int]]:
    """What transformers' plain generation, without Whisper's own rules for long sounds, goes on with."""
    from transformers import GenerationMixin

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Any = GenerationMixin.generate(
            model, sound, decoder_input_ids=torch.tensor([begin] * len(sound)), max_new_tokens=12, num_beams=beams,
            do_sample=False, suppress_tokens=[7], begin_suppress_tokens=opening,
        )  # fmt: skip
    rows: list[list[int]] = found.tolist()
    return rows


@torch.no_grad()
def test_whisper_is_written_back(written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(WHISPER)
    pretrained.save(pretrained.load(folder), tmp_path)
    sound, text = make_frames(), make_tokens()
    again = load_model(theirs, tmp_path)(input_features=sound, decoder_input_ids=text).logits
    torch.testing.assert_close(again, theirs(input_features=sound, decoder_input_ids=text).logits, rtol=0, atol=2e-6)


@torch.no_grad()
def test_silence_that_is_masked_changes_nothing(written: WriteModel) -> None:
    ours = pretrained.load(written(WHISPER)[1]).model
    sound, text = make_frames(), make_tokens()
    for length in (13, 14):
        mask = make_mask([length, 32], 32)
        padded = ours(source=sound, target=text, source_mask=mask)
        assert_close(padded[:1], ours(source=sound[:1, :, :length], target=text[:1]))
        assert_close(padded[1:], ours(source=sound[1:], target=text[1:]))


def test_frames_that_do_not_fit_are_refused(written: WriteModel) -> None:
    ours = pretrained.load(written(WHISPER)[1]).model
    with pytest.raises(DataError, match=r"expected \(batch, 10, frames\)"):
        ours(source=make_frames().mT, target=make_tokens())
    with pytest.raises(DataError, match="positions for 16"):
        ours(source=make_frames(length=34), target=make_tokens())


def convert_to_ctranslate2_names(folder: Path) -> dict[str, Tensor]:
    """A Whisper model's tensors as CTranslate2 keeps them: query, key and value in one, and no names of modules."""
    theirs = load_file(folder / "model.safetensors")
    kept: dict[str, Tensor] = {}

    def linear(to: str, *names: str) -> None:
        weights = [theirs[f"{name}.weight"] for name in names]
        biases = [
            theirs.get(f"{name}.bias", torch.zeros(len(weight))) for name, weight in zip(names, weights, strict=True)
        ]
        kept[f"{to}/weight"], kept[f"{to}/bias"] = torch.cat(weights), torch.cat(biases)

    def norm(to: str, name: str) -> None:
        kept[f"{to}/gamma"], kept[f"{to}/beta"] = theirs[f"{name}.weight"], theirs[f"{name}.bias"]

    for one, blocks in (("encoder", 3), ("decoder", 2)):
        kept[f"{one}/num_heads"] = torch.tensor(4 if one == "encoder" else 2, dtype=torch.int16)
        kept[f"{one}/position_encodings/encodings"] = theirs[f"model.{one}.embed_positions.weight"]
        norm(f"{one}/layer_norm", f"model.{one}.layer_norm")
        for number in range(blocks):
            to, name = f"{one}/layer_{number}", f"model.{one}.layers.{number}"
            linear(f"{to}/self_attention/linear_0", *(f"{name}.self_attn.{part}_proj" for part in "qkv"))
            linear(f"{to}/self_attention/linear_1", f"{name}.self_attn.out_proj")
            norm(f"{to}/self_attention/layer_norm", f"{name}.self_attn_layer_norm")
            if one == "decoder":
                linear(f"{to}/attention/linear_0", f"{name}.encoder_attn.q_proj")
                linear(f"{to}/attention/linear_1", *(f"{name}.encoder_attn.{part}_proj" for part in "kv"))
                linear(f"{to}/attention/linear_2", f"{name}.encoder_attn.out_proj")
                norm(f"{to}/attention/layer_norm", f"{name}.encoder_attn_layer_norm")
            linear(f"{to}/ffn/linear_0", f"{name}.fc1")
            linear(f"{to}/ffn/linear_1", f"{name}.fc2")
            norm(f"{to}/ffn/layer_norm", f"{name}.final_layer_norm")
    linear("encoder/conv1", "model.encoder.conv1")
    linear("encoder/conv2", "model.encoder.conv2")
    kept["decoder/embeddings/weight"] = theirs["model.decoder.embed_tokens.weight"]
    return {**kept, "decoder/activation": torch.tensor(3), "decoder/pre_norm": torch.tensor(1)}


def write_ctranslate2(path: Path, tensors: dict[str, Tensor]) -> Any:
    """The model of these tensors, said to lie in a model.bin at `path`."""
    entries = {name: TensorEntry(tuple(one.shape), lambda one=one: one) for name, one in tensors.items()}  # type: ignore[misc]
    found = read_ctranslate2_whisper(LazyWeights(path, entries, {"specification": "WhisperSpec", "aliases": {}}))
    assert found is not None
    config, stored = found
    return build_model(get_family(config), config, stored, None), config


@torch.no_grad()
def test_whisper_is_read_as_ctranslate2_keeps_it(written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(WHISPER)
    vocabulary = ["<unk>"] * 50257 + ["<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary[2] = "<|endoftext|>"
    (tmp_path / "vocabulary.txt").write_text("\n".join(vocabulary))
    (tmp_path / "config.json").write_text(
        '{"suppress_ids": [7], "suppress_ids_begin": [9], "alignment_heads": [[1, 0]]}'
    )
    ours, config = write_ctranslate2(tmp_path / "model.bin", convert_to_ctranslate2_names(folder))
    sound, text = make_frames(), make_tokens()
    assert_close(ours(source=sound, target=text), theirs(input_features=sound, decoder_input_ids=text).logits)
    generation = read_generation_rules(config, has_encoder=True)
    assert generation == GenerationRules(50257, (2,), (7,), (50258,), None, (9,))
    assert config["alignment_heads"] == [[1, 0]]


def test_what_is_no_whisper_of_ctranslate2_is_refused(written: WriteModel, tmp_path: Path) -> None:
    whole, weight = convert_to_ctranslate2_names(written(WHISPER)[1]), "encoder/layer_0/self_attention/linear_0/weight"
    for change, named in (
        ({"decoder/pre_norm": torch.tensor(0)}, "decoder/pre_norm=0"),
        ({"decoder/embeddings/weight": None}, "decoder/embeddings/weight"),
        ({"encoder/num_heads": torch.tensor(0)}, "encoder/num_heads"),
        ({weight: whole[weight][1:]}, "self_attn.v_proj.weight"),
        ({weight: torch.tensor(1.0)}, "self_attn.q_proj.weight"),
        ({weight: None}, "no tensor for encoder.blocks.0.self_attention.query.weight"),
        ({"decoder/layernorm_embedding/gamma": torch.ones(32)}, "decoder/layernorm_embedding/gamma has no place"),
    ):
        with pytest.raises(CheckpointError, match=named):
            write_ctranslate2(
                tmp_path / "model.bin", {name: one for name, one in {**whole, **change}.items() if one is not None}
            )
    (tmp_path / "vocabulary.json").write_text("[")
    with pytest.raises(CheckpointError, match="vocabulary.json cannot be read"):
        write_ctranslate2(tmp_path / "model.bin", whole)


# wav2vec 2.0


def run_model(model: Any, given: Tensor, **options: Any) -> Tensor:
    found = model(given, **options)
    result: Tensor = found.logits if "logits" in found else found.last_hidden_state
    return result


@each_listener
@torch.no_grad()
def test_a_listener_hears_the_same(case: Case, written: WriteModel) -> None:
    theirs, folder = written(case)
    ours = pretrained.load(folder).model
    sound = make_samples()
    assert_close(ours(source=sound), run_model(theirs, sound))
    trace = lens.look(ours, sound)
    expected = theirs(sound, output_attentions=True).attentions
    assert len(expected) == len(trace) == 3
    for number, weights in enumerate(expected):
        assert_close(trace[f"encoder.{number}.self_attention"].compute_weights(), weights)


@each_listener
@torch.no_grad()
def test_a_listener_hears_the_same_padded(case: Case, written: WriteModel) -> None:
    theirs, folder = written(case)
    ours: Any = pretrained.load(folder).model
    for length in (233, 240, 241):
        mask = make_mask([length, 400], 400)
        sound = make_samples() * mask
        padded = run_model(theirs, sound, attention_mask=mask.long())
        found = ours(source=sound, source_mask=mask)
        real = ours.encoder.embedding.position_mask(mask)
        assert_close(found[real], padded[real])
        if "layer" in case.settings.values():
            assert_close(found[:1][real[:1]], ours(source=sound[:1, :length])[0])


@each_listener
@torch.no_grad()
def test_a_listener_is_written_back(case: Case, written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(case)
    pretrained.save(pretrained.load(folder), tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert any(name.endswith("pos_conv_embed.conv.weight_g") for name in names)  # as published files have it
    sound = make_samples()
    assert_close(run_model(load_model(theirs, tmp_path), sound), run_model(theirs, sound))
    assert_close(pretrained.load(tmp_path).model(source=sound), run_model(theirs, sound))


def test_what_a_listener_cannot_be_is_refused(written: WriteModel, tmp_path: Path) -> None:
    folder = written(LISTENERS[0])[1]
    says = json.loads((folder / "config.json").read_text())
    for change in (
        {"architectures": ["Wav2Vec2ForXVector"]},
        {"add_adapter": True},
        {"feat_extract_activation": "relu"},
        {"feat_extract_norm": "batch"},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**says, **change}))
        with pytest.raises(CheckpointError, match=next(iter(change))):
            pretrained.load_spec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(says))
    whole = load_file(folder / "model.safetensors")
    length = "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    save_file({name: one for name, one in whole.items() if name != length}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="adjusts encoder.embedding.positional_conv.weight"):
        pretrained.load(tmp_path)


def test_samples_that_do_not_fit_are_refused(written: WriteModel) -> None:
    ours = pretrained.load(written(LISTENERS[0])[1]).model
    assert ours(source=make_samples(length=30)).shape[1] == 1
    with pytest.raises(DataError, match="at least 30 samples"):
        ours(source=make_samples(length=29))


def test_models_that_hear_are_built_fresh_and_their_specs_checked(written: WriteModel) -> None:
    for case, given in (
        (WHISPER, {"source": make_frames(), "target": make_tokens()}),
        (LISTENERS[2], {"source": make_samples()}),
    ):
        shape = pretrained.load_spec(written(case)[1])
        assert spec.from_json(spec.to_json(shape)) == shape
        assert build(shape)(**given).isfinite().all()
    block = spec.Block(spec.Attention(4, 8), spec.FeedForward(8))
    with pytest.raises(SpecError, match="multiple of groups=5"):
        spec.Stack(32, (block,), spec.Frames(10), spec.Convolutional(6, 5))
    causal = spec.Block(spec.Attention(4, 8, causal=True), spec.FeedForward(8))
    with pytest.raises(SpecError, match="the future"):
        spec.Stack(32, (causal,), spec.Tokens(10), spec.Convolutional(6, 4))
