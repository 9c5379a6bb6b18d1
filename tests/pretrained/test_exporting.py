"""Models in the forms of others: what those predict and generate equals what ours do."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy
import pytest
import tokenizers as library
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from qkv import presets, pretrained, spec, tasks
from qkv.cli import main
from qkv.decoding import DecodingConfig, Greedy, LengthLimit
from qkv.errors import CheckpointError, MissingExtraError, QkvError, SpecError, StorageError, VocabularyError
from qkv.models import SequenceModel, build
from qkv.pretrained import export
from qkv.pretrained.export import output_folder
from qkv.tasks.speech.config import AudioClassifier, SpeechTransformer
from qkv.text import SpecialTokenIds, Tokenizer, train
from tests.published import Case, load_model, make_mask, make_tokens

SIZES = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40,
}  # fmt: skip
T5 = {
    "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, "decoder_start_token_id": 0,
}  # fmt: skip
MARIAN = Case(
    "Marian",
    "MarianConfig",
    "MarianMTModel",
    {**SIZES, "scale_embedding": True, "decoder_start_token_id": 0, "bad_words_ids": [[0]]},
)  # noqa: E501
BART = Case("BART", "BartConfig", "BartForConditionalGeneration", {**SIZES, "decoder_start_token_id": 2})
LLAMA = Case("Llama", "LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 2, "rms_norm_eps": 1e-3})
MISTRAL = Case(
    "Mistral",
    "MistralConfig",
    "MistralForCausalLM",
    {"num_key_value_heads": 2, "sliding_window": 4, "num_hidden_layers": 2},
)  # noqa: E501
SOURCE, LENGTHS = make_tokens(2, 7) % 80 + 3, [7, 4]


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def write_published(case: Case, folder: Path) -> Any:
    """Write a case's model with a tokenizer and rules of generation; give it as transformers has it."""
    model = case.build()
    model.save_pretrained(folder)
    special = {0: "<pad>", 1: "<s>", 2: "</s>", 97: "en_XX", 98: "__en__"}  # the last two for mBART and M2M100
    words = {special.get(number, f"w{number}"): number for number in range(99)}
    inner = library.Tokenizer(library.models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    inner.save(str(folder / "tokenizer.json"))
    roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return model


def train_word_tokenizer() -> Tokenizer:
    names = {f"w{number}": number for number in range(99)}
    inner = library.Tokenizer(library.models.WordLevel(names, unk_token="w0"))
    return Tokenizer(inner, special_tokens=SpecialTokenIds(99, pad=0, bos=1, eos=2))


def build_random(choice: spec.Spec) -> SequenceModel:
    torch.manual_seed(3)
    model = build(choice).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def build_spec(**choices: Any) -> spec.Transformer:
    return presets.encoder_decoder(source_vocab=99, target_vocab=99, d_model=32, heads=4, d_ff=48, layers=2, **choices)


@torch.no_grad()
def decode_greedily(model: SequenceModel, source: Tensor | None, begin: list[int], longest: int = 10) -> list[int]:
    """Without a cache and without token 0, up to eos 2: the plainest search there is."""
    row = list(begin)
    while len(row) < len(begin) + longest:
        logits = model(None if source is None else source[None], torch.tensor([row]))[0, -1]
        logits[0] = -torch.inf
        if int(logits.argmax()) == 2:
            break
        row.append(int(logits.argmax()))
    return row[len(begin) :]


# Hugging Face


@pytest.mark.parametrize("case", [LLAMA, BART], ids=lambda case: case.name)
@torch.no_grad()
def test_a_folder_of_hugging_face_comes_back_whole(case: Case, tmp_path: Path) -> None:
    theirs = write_published(case, tmp_path / "there")
    done = convert(tmp_path / "there", tmp_path / "back", "--to", "hugging-face")
    assert done.exit_code == 0, done.output
    again = load_model(theirs, tmp_path / "back")
    more = {"decoder_input_ids": SOURCE} if case is BART else {}
    assert torch.equal(again(input_ids=SOURCE, **more).logits, theirs(input_ids=SOURCE, **more).logits)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    for name in ("there", "back"):
        assert (tmp_path / name / "generation_config.json").is_file()


def build_trained(folder: Path) -> tasks.TextGenerator:
    tokenizer = train(["the quick cat", "a queue of cats"], "character")
    size = tokenizer.size
    choice = presets.encoder_decoder(
        source_vocab=size, target_vocab=size, d_model=16, heads=2, d_ff=24, layers=1,
        position=spec.RelativeBias(8, 16), sinusoidal=False,
    )  # fmt: skip
    decoding = DecodingConfig(Greedy(), LengthLimit(0, 8))
    runner = tasks.TextGenerator(build_random(choice), tokenizer, tokenizer, tasks.TASKS["pronunciation"], decoding)
    runner.save(folder)
    return runner


def test_a_model_trained_here_is_of_no_family(tmp_path: Path) -> None:
    build_trained(tmp_path / "run")
    done = convert(tmp_path / "run", tmp_path / "back", "--to", "hugging-face")
    assert done.exit_code == 2 and "no family" in done.output and not (tmp_path / "back").exists()


def test_a_published_model_becomes_a_folder_of_this_package(tmp_path: Path) -> None:
    write_published(MARIAN, tmp_path / "there")
    done = convert(tmp_path / "there", tmp_path / "here", "--to", "qkv")
    assert done.exit_code == 0, done.output
    before, after = tasks.load(tmp_path / "there"), tasks.load(tmp_path / "here")
    assert isinstance(before, tasks.TextGenerator) and isinstance(after, tasks.TextGenerator)
    assert after.generation == before.generation and (tmp_path / "here" / "spec.json").is_file()
    lines = ["w5 w6 w7", "w20 w30"]
    assert list(after.predict_ranked(lines)) == list(before.predict_ranked(lines))


# Folders


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError), export.create_folder(tmp_path / "new") as part:
        (part / "half").write_text("half")
        raise CheckpointError("in the middle")
    assert not any(tmp_path.iterdir())
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("whole")
    with pytest.raises(StorageError, match="already exists"), export.create_folder(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept" / "file").read_text() == "whole"
    with pytest.raises(StorageError, match="could not be written"), export.create_folder(tmp_path / "kept/file/new"):
        pass


def test_a_missing_library_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"qkv\[onnx\]"):
        output_folder.import_library("no_such_library", "onnx")


# CTranslate2

DECODERS = [
    LLAMA,
    Case("Llama-wide", "LlamaConfig", "LlamaForCausalLM", {"head_dim": 12, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),  # noqa: E501
    Case("Qwen3", "Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 8, "num_key_value_heads": 2}),
    Case("GPT-2", "GPT2Config", "GPT2LMHeadModel"),
    Case("GPT-NeoX", "GPTNeoXConfig", "GPTNeoXForCausalLM"),
    Case("BLOOM", "BloomConfig", "BloomForCausalLM", {"n_head": 4, "n_layer": 2}),
    Case("Gemma", "GemmaConfig", "GemmaForCausalLM", {"head_dim": 8, "num_key_value_heads": 2}),
    Case("Gemma 2", "Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 8, "num_key_value_heads": 2, "query_pre_attn_scalar": 20, "attn_logit_softcapping": None, "layer_types": ["full_attention"] * 3}),  # noqa: E501
    Case("OPT", "OPTConfig", "OPTForCausalLM", {"ffn_dim": 40, "word_embed_proj_dim": 32}),
]  # fmt: skip
PAIRS = [
    MARIAN,
    BART,
    Case(
        "mBART",
        "MBartConfig",
        "MBartForConditionalGeneration",
        {**SIZES, "scale_embedding": True, "decoder_start_token_id": 5},
    ),  # noqa: E501
    Case("M2M100", "M2M100Config", "M2M100ForConditionalGeneration", {**SIZES, "decoder_start_token_id": 2}),
    Case("T5", "T5Config", "T5ForConditionalGeneration", T5),
]
OWN = {
    "pre-norm": build_spec(),
    "post-norm": build_spec(norm_at="post", shared_embedding=True),
    "relative": build_spec(position=spec.RelativeBias(8, 16), sinusoidal=False),
    "gated": build_spec(norm=spec.Norm("rms", 1e-6), feed_forward=spec.FeedForward(40, "silu", gated=True), tied=False),
}


def name_tokens(row: list[int], names: list[str]) -> list[str]:
    return [names[number] for number in row]


def translate_with_ctranslate2(folder: Path, names: list[str]) -> list[list[int]]:
    engine = pytest.importorskip("ctranslate2", reason="needs the package ctranslate2")
    rows = [name_tokens(row[:length], names) for row, length in zip(SOURCE.tolist(), LENGTHS, strict=True)]
    found = engine.Translator(str(folder)).translate_batch(
        rows, beam_size=1, max_decoding_length=10, min_decoding_length=0
    )
    return [[names.index(piece) for piece in one.hypotheses[0]] for one in found]


@pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
@torch.no_grad()
def test_ctranslate2_continues_the_same(case: Case, tmp_path: Path) -> None:
    engine = pytest.importorskip("ctranslate2", reason="needs the package ctranslate2")
    case.build().save_pretrained(tmp_path)
    model, names = pretrained.load(tmp_path).model, train_word_tokenizer().vocabulary()
    out = tmp_path / "out"
    out.mkdir()
    export.to_ctranslate2(
        model, out, train_word_tokenizer(), train_word_tokenizer(), bos=None, eos=2, suppress_tokens=(0,)
    )
    generator = engine.Generator(str(out))
    rows = [name_tokens(row, names) for row in SOURCE.tolist()]
    theirs = torch.from_numpy(numpy.array(generator.forward_batch(rows)))
    ours = model(target=SOURCE)
    assert float((theirs - ours)[..., 1:].abs().max() / ours.abs().max()) < 1e-5
    found = generator.generate_batch(rows, sampling_topk=1, max_length=10, include_prompt_in_result=False)
    assert [one.sequences_ids[0] for one in found] == [decode_greedily(model, None, row) for row in SOURCE.tolist()]


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.name)
def test_ctranslate2_translates_the_same(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="needs the package ctranslate2")
    write_published(case, tmp_path / "there")
    done = convert(tmp_path / "there", tmp_path / "out", "--to", "ctranslate2")
    assert done.exit_code == 0, done.output
    runner = tasks.load(tmp_path / "there")
    assert isinstance(runner, tasks.TextGenerator) and runner.generation is not None
    bos = runner.generation.bos
    assert bos is not None
    never = set(runner.generation.suppress_tokens)
    expected = [
        decode_greedily(runner.module, row[:length], [bos]) for row, length in zip(SOURCE, LENGTHS, strict=True)
    ]
    assert never <= {0}
    assert translate_with_ctranslate2(tmp_path / "out", runner.target_tokenizer.vocabulary()) == expected


@pytest.mark.parametrize("choice", OWN.values(), ids=OWN)
def test_ctranslate2_translates_the_same_with_models_of_our_own(choice: spec.Transformer, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="needs the package ctranslate2")
    model = build_random(choice)
    export.to_ctranslate2(
        model, tmp_path, train_word_tokenizer(), train_word_tokenizer(), bos=1, eos=2, suppress_tokens=(0,)
    )
    expected = [decode_greedily(model, row[:length], [1]) for row, length in zip(SOURCE, LENGTHS, strict=True)]
    assert translate_with_ctranslate2(tmp_path, train_word_tokenizer().vocabulary()) == expected


def test_what_ctranslate2_does_not_have_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="needs the package ctranslate2")
    rotary = spec.Rotary(scaling=spec.Llama3Scaling(8.0, 1.0, 4.0, 64))
    attention = spec.Attention(4, 8, position=rotary, causal=True, window=4, softcap=20.0, sinks=True)
    stack = spec.Stack(32, (spec.Block(attention, spec.FeedForward(48)),), spec.Tokens(99))
    for choice, told in (
        (spec.Transformer(None, stack, spec.Vocabulary()), ["window=4", "softcap=20.0", "sinks", "Llama3Scaling"]),
        (build_spec(qk_norm=spec.Norm()), ["qk_norm"]),
        (build_spec(position=spec.RelativeBias()), ["beside those of an attention"]),
        (build_spec(position=spec.Rotary(), sinusoidal=False), ["Rotary beside another stack"]),
        (build_spec(sinusoidal=False), ["no positions at all"]),
        (spec.Recurrent("gru", 8, 1, spec.Tokens(99), spec.Tokens(99)), ["a Recurrent"]),
    ):
        with pytest.raises(SpecError) as caught:
            export.to_ctranslate2(build(choice), tmp_path, train_word_tokenizer(), train_word_tokenizer(), bos=1, eos=2)
        assert all(what in str(caught.value) for what in told), str(caught.value)
    small = presets.encoder_decoder(source_vocab=50, target_vocab=50, d_model=8, heads=2, d_ff=8, layers=1)
    with pytest.raises(VocabularyError, match="99 tokens and the model 50"):
        export.to_ctranslate2(build(small), tmp_path, train_word_tokenizer(), train_word_tokenizer(), bos=1, eos=2)
    assert not any(tmp_path.iterdir())


def test_a_model_trained_here_translates_the_same(tmp_path: Path) -> None:
    engine = pytest.importorskip("ctranslate2", reason="needs the package ctranslate2")
    runner = build_trained(tmp_path / "run")
    done = convert(tmp_path / "run", tmp_path / "out", "--to", "ctranslate2")
    assert done.exit_code == 0, done.output
    lines = ["cat", "queue the cats"]
    pieces = runner.source_tokenizer.vocabulary()
    rows = [[pieces[number] for number in row] for row in runner.validate_inputs(lines)]
    found = engine.Translator(str(tmp_path / "out")).translate_batch(
        rows, beam_size=1, max_decoding_length=8, min_decoding_length=0
    )
    ours = [one[0].tokens for one in runner.predict_ranked(lines)]
    expected = [[pieces[number] for number in row if number != runner.target_tokenizer.eos] for row in ours]
    assert [one.hypotheses[0] for one in found] == expected


# ONNX


@pytest.fixture
def traceable() -> Iterator[None]:
    """Without the checks of shapes, which take sizes of any value for no numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def open_session(path: Path) -> Any:
    runtime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run_graph(graph: Any, **given: Tensor | numpy.ndarray[Any, Any]) -> dict[str, numpy.ndarray[Any, Any]]:
    arrays = {name: one.numpy() if isinstance(one, Tensor) else one for name, one in given.items()}
    return dict(zip([one.name for one in graph.get_outputs()], graph.run(None, arrays), strict=True))


def assert_close(theirs: numpy.ndarray[Any, Any], ours: Tensor) -> None:
    assert theirs.shape == tuple(ours.shape)
    assert float((torch.from_numpy(theirs) - ours).abs().max() / ours.abs().max()) < 1e-4


def make_empty_past(graph: Any, rows: int) -> dict[str, numpy.ndarray[Any, Any]]:
    past = [one for one in graph.get_inputs() if one.name.startswith("past.")]
    return {one.name: numpy.zeros((rows, one.shape[1], 0, one.shape[3]), numpy.float32) for one in past}


def generate(graph: Any, begin: Tensor, longest: int = 10, **given: Any) -> list[list[int]]:
    """Greedy, one token at a time after the beginning, each row up to eos; without token 0."""
    past, step, rows = make_empty_past(graph, len(begin)), begin, []
    for _ in range(longest):
        found = run_graph(graph, tokens=step, **past, **given)
        past = {name: found[name.replace("past", "present")] for name in past}
        found["logits"][..., 0] = -numpy.inf
        step = torch.from_numpy(found["logits"][:, -1:].argmax(-1))
        rows.append(step)
    whole = torch.cat(rows, dim=1).tolist()
    return [row[: row.index(2)] if 2 in row else row for row in whole]


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@torch.no_grad()
def test_an_onnx_decoder_steps_as_ours_does(tmp_path: Path) -> None:
    write_published(MISTRAL, tmp_path / "there")
    level = logging.getLogger("torch.onnx").level
    done = convert(tmp_path / "there", tmp_path / "out", "--to", "onnx")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "tokenizer.json").is_file() and logging.getLogger("torch.onnx").level == level
    model, graph = pretrained.load(tmp_path / "there").model, open_session(tmp_path / "out" / "model.onnx")
    for rows, length in ((1, 1), (3, 9)):
        given = make_tokens(rows, length)
        assert_close(run_graph(graph, tokens=given, **make_empty_past(graph, rows))["logits"], model(target=given))
    assert generate(graph, SOURCE) == [decode_greedily(model, None, row) for row in SOURCE.tolist()]


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@torch.no_grad()
def test_onnx_graphs_translate_as_ours_do(tmp_path: Path) -> None:
    runner = build_trained(tmp_path / "run")
    done = convert(tmp_path / "run", tmp_path / "out", "--to", "onnx")
    assert done.exit_code == 0, done.output
    assert Tokenizer.load(tmp_path / "out" / "source.tokenizer.json") == runner.source_tokenizer
    encoder, decoder = open_session(tmp_path / "out" / "encoder.onnx"), open_session(tmp_path / "out" / "decoder.onnx")
    model, size = runner.module, runner.source_tokenizer.size
    source, target, mask = SOURCE % (size - 4) + 4, make_tokens(2, 5) % (size - 4) + 4, make_mask(LENGTHS, 7)
    memory = run_graph(encoder, source=source, source_mask=mask)
    found = run_graph(decoder, tokens=target, source_mask=mask, **memory, **make_empty_past(decoder, 2))
    assert_close(found["logits"], model(source, target, mask))
    begin = torch.ones(2, 1, dtype=torch.long)
    expected = [decode_greedily(model, row[:length], [1]) for row, length in zip(source, LENGTHS, strict=True)]
    assert generate(decoder, begin, source_mask=mask, **memory) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@pytest.mark.parametrize("length", [None, 4], ids=["all", "window"])
@torch.no_grad()
def test_an_onnx_encoder_answers_as_ours_does(length: int | None, tmp_path: Path) -> None:
    block = spec.Block(spec.Attention(4, 8, window=length), spec.FeedForward(48))
    stem = (spec.Convolution(6, 3, 2), spec.Convolution(6, 3, 1))
    seen = spec.Patches(4, stem=stem, stem_norm="batch", stem_residual=True)
    reads = spec.Tokens(99) if length else seen
    positions = spec.Learned(20) if length else spec.Learned(10)
    answers = spec.Labels(5) if length else spec.Vector("first", 6)
    model = build_random(spec.Transformer(spec.Stack(32, (block,), reads, positions), None, answers))
    export.to_onnx(model, tmp_path)
    graph = open_session(tmp_path / "model.onnx")
    if not length:
        images = torch.randn(3, 3, 12, 12)
        assert_close(run_graph(graph, source=images)["answer"], model(images))
        return
    source, mask = make_tokens(2, 15), make_mask([15, 3], 15)
    found, expected = run_graph(graph, source=source, source_mask=mask)["answer"], model(source, source_mask=mask)
    assert_close(found[mask.numpy()], expected[mask])


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@torch.no_grad()
def test_onnx_graphs_write_down_sounds_as_ours_do(tmp_path: Path) -> None:
    model = build_random(SpeechTransformer(32, 4, 64, 2, 2).spec(16, 30, ctc=False))
    export.to_onnx(model, tmp_path)
    encoder, decoder = open_session(tmp_path / "encoder.onnx"), open_session(tmp_path / "decoder.onnx")
    for rows, frames in ((1, 8), (3, 51)):
        sound, target = torch.randn(rows, 16, frames), make_tokens(rows, 5) % 26 + 4
        memory = run_graph(encoder, source=sound)
        real = torch.ones(rows, -(-frames // 2), dtype=torch.bool)
        found = run_graph(decoder, tokens=target, source_mask=real, **memory, **make_empty_past(decoder, rows))
        assert_close(found["logits"], model(sound, target))


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@torch.no_grad()
def test_an_onnx_classifier_hears_as_ours_does(tmp_path: Path) -> None:
    stem = (spec.Convolution(6, 3, 2), spec.Convolution(6, 3, 1))
    model = build_random(AudioClassifier(32, 4, 48, 1, stem=stem, stem_norm="batch", stem_residual=True).spec(16, 5))
    export.to_onnx(model, tmp_path)
    graph = open_session(tmp_path / "model.onnx")
    for rows, frames in ((1, 8), (3, 51)):
        sound = torch.randn(rows, 16, frames)
        assert_close(run_graph(graph, source=sound)["answer"], model(sound))


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@torch.no_grad()
def test_an_onnx_encoder_reads_samples_as_ours_does(tmp_path: Path) -> None:
    reads = spec.Waveform((spec.Convolution(8, 10, 5), spec.Convolution(8, 3, 2)))
    block = spec.Block(spec.Attention(4, 8), spec.FeedForward(48))
    model = build_random(spec.Transformer(spec.Stack(32, (block,), reads), None, spec.Labels(5)))
    export.to_onnx(model, tmp_path)
    graph = open_session(tmp_path / "model.onnx")
    for rows, samples in ((1, 100), (2, 1234)):
        sound = torch.randn(rows, samples)
        assert_close(run_graph(graph, source=sound)["answer"], model(sound))


def test_what_has_no_graph_is_named(tmp_path: Path) -> None:
    attention = spec.Attention(1, 8, causal=True)
    mixed = spec.Block(attention, spec.Experts(2, 1, spec.FeedForward(8)))
    decoder = spec.Transformer(None, spec.Stack(8, (mixed,), spec.Tokens(9)), spec.Vocabulary())
    with pytest.raises(QkvError, match="feed_forward=Experts"):
        export.to_onnx(build(decoder), tmp_path)
    assert not any(tmp_path.iterdir())
