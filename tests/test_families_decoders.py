"""Published decoders: a tiny random model of transformers, read by us, predicts the same and is written back.

What is checked of each: every tensor placed; logits, padded and not; the weights of each attention; with a cache,
token by token; greedy and beam-4 generations, token for token; the file written back loads there with equal logits.
Also, of some: files that do not fit and configurations that ask for what is not there are refused by name.

What is not: dropout and other training settings; heads other than the vocabulary's; token vectors of OPT-350m, which
are narrower than its blocks (refused); ALiBi in Falcon with more heads than 8, where transformers rounds to bfloat16.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from published import Case, Written, close, generated, loaded, mask_of, tokens, writer
from qkv import lens, pretrained
from qkv.decoding import Beam, Decoding, Greedy, Length, LengthPenalty, decode
from qkv.errors import CheckpointError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return writer(tmp_path_factory)


def decoder(name: str, config: str | None = None, case: str = "", **settings: Any) -> Case:
    return Case(name + case, f"{config or name}Config", f"{config or name}ForCausalLM", settings)


GROUPED = {"num_key_value_heads": 2}
DECODERS = [
    decoder("Llama", **GROUPED),
    decoder("Llama", case="-llama3", **GROUPED, rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),  # noqa: E501
    decoder("Llama", case="-linear", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    decoder("Llama", case="-yarn", rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}),  # noqa: E501
    decoder("Llama", case="-biased", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    decoder("Mistral", **GROUPED, sliding_window=3),
    decoder("Qwen2", **GROUPED),
    decoder("Qwen2", case="-windows", **GROUPED, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    decoder("Qwen3", **GROUPED, head_dim=12),
    decoder("SmolLM3", **GROUPED, no_rope_layers=[1, 0, 1]),
    decoder("Olmo2", **GROUPED),
    decoder("Phi3", **GROUPED),
    decoder("Phi3", case="-longrope", original_max_position_embeddings=8, rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}),  # noqa: E501
    decoder("Gemma", **GROUPED, head_dim=12),
    decoder("Gemma2", **GROUPED, head_dim=12, sliding_window=3, query_pre_attn_scalar=20),
    Case("Gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM", {**GROUPED, "head_dim": 12, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),  # noqa: E501
    Case("GPT2", "GPT2Config", "GPT2LMHeadModel"),
    Case("GPT2-scaled", "GPT2Config", "GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 40, "activation_function": "relu", "tie_word_embeddings": False}),  # noqa: E501
    decoder("GPTNeoX", rotary_pct=0.5),
    decoder("GPTNeoX", case="-sequential", use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True),
    decoder("OPT", ffn_dim=48),
    decoder("OPT", case="-post", ffn_dim=48, do_layer_norm_before=False, enable_bias=False),
    decoder("Bloom"),
    decoder("Falcon", ffn_hidden_size=48),
    decoder("Falcon", case="-grouped", new_decoder_architecture=True, num_kv_heads=2),
    decoder("Falcon", case="-grouped-1-norm", new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    # transformers adds ALiBi twice in eager (to the scores and to the mask), once in its default: so did the training.
    Case("Falcon-alibi", "FalconConfig", "FalconForCausalLM", {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}, "sdpa"),  # noqa: E501
]  # fmt: skip


each_decoder = pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)


@each_decoder
@torch.no_grad()
def test_a_decoder_predicts_the_same(case: Case, written: Written) -> None:
    theirs, folder = written(case)
    ours = pretrained.read(folder).model
    given, mask = tokens(), mask_of([12, 7], 12)
    expected = theirs(given, output_attentions=case.kernel == "eager")
    close(ours(target=given), expected.logits)
    padded = theirs(given, attention_mask=mask.long()).logits
    close(ours(target=given, target_mask=mask)[mask], padded[mask])
    trace = lens.look(ours, None, given[0].tolist())
    for number, weights in enumerate(expected.attentions or ()):
        close(trace[f"decoder.{number}.self_attention"].weights()[0], weights[0])


@each_decoder
@torch.no_grad()
def test_a_decoder_steps_and_generates_the_same(case: Case, written: Written) -> None:
    theirs, folder = written(case)
    ours = pretrained.read(folder).model
    given = tokens()
    state, steps = ours.start(None, rows=2), []
    for part in given.split([9, 1, 2], dim=1):
        logits, state = ours.step(part, state)
        steps.append(logits)
    close(torch.cat(steps, dim=1), ours(target=given))
    for method, beams in ((Greedy(), 1), (Beam(4, LengthPenalty("power", 1.0), rules="hugging-face"), 4)):
        prompts = {"input_ids": given[:, :9], "attention_mask": torch.ones_like(given[:, :9])}
        expected = generated(theirs, prompts, beams)
        decoding = Decoding(method, Length(0, 8))
        found = decode(ours, bos=None, eos=2, decoding=decoding, prefixes=given[:, :9].tolist())
        for answer, row in zip(found, expected, strict=True):
            assert list(answer[0].tokens) == row[: len(answer[0].tokens)]
            assert set(row[len(answer[0].tokens) :]) <= {0}


@each_decoder
@torch.no_grad()
def test_a_decoder_is_written_back(case: Case, written: Written, tmp_path: Path) -> None:
    theirs, folder = written(case)
    pretrained.write(pretrained.read(folder), tmp_path)
    given = tokens()
    torch.testing.assert_close(loaded(theirs, tmp_path)(given).logits, theirs(given).logits, rtol=0, atol=2e-6)


def altered(written: Written, case: str, folder: Path, **says: Any) -> Path:
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
        ("OPT", "word_embed_proj_dim", 16),
        ("OPT", "layer_norm_elementwise_affine", False),
        ("Bloom", "apply_residual_connection_post_layernorm", True),
        ("Llama", "model_type", "lama"),
    ],
)
def test_what_is_not_supported_is_refused(case: str, field: str, value: Any, written: Written, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{value!r}|{field}={value!r}"):
        pretrained.read(altered(written, case, tmp_path, **{field: value}))


def test_a_file_that_does_not_fit_is_refused_by_every_name(written: Written, tmp_path: Path) -> None:
    folder = altered(written, "GPT2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.attn.c_atn.weight"] = tensors.pop("transformer.h.0.attn.c_attn.weight")
    tensors["transformer.ln_f.weight"] = torch.ones(31)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        pretrained.read(folder)
    for problem in (
        "transformer.h.0.attn.c_atn.weight has no place",
        "no tensor for decoder.blocks.0.self_attention.query.weight",
        "transformer.ln_f.weight gives decoder.final_norm.weight the shape (31,), and config.json makes it (32,)",
    ):
        assert problem in str(caught.value)


def test_norms_that_share_a_tensor_and_differ_are_not_written(written: Written, tmp_path: Path) -> None:
    published = pretrained.read(written(next(one for one in DECODERS if one.name == "Falcon"))[1])
    published.model.get_parameter("decoder.blocks.1.feed_forward_residual.before.bias").data[0] += 1
    with pytest.raises(CheckpointError, match=r"feed_forward_residual\.before differ"):
        pretrained.write(published, tmp_path)
