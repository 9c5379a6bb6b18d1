"""Published decoders: a tiny random model of transformers, read by us, predicts the same and is written back.

What is checked of each: every tensor placed; logits, padded and not; the weights of each attention; with a cache,
token by token; greedy and beam-4 generations, token for token; the file written back loads there with equal logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from published import Case, Written, close, generated, loaded, mask_of, tokens, writer
from qkv import lens, pretrained
from qkv.decoding import Beam, Decoding, Greedy, Length, LengthPenalty, decode


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
    decoder("Gemma3", config="Gemma3Text", **GROUPED, head_dim=12, sliding_window=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),  # noqa: E501
]  # fmt: skip
DECODERS[-1] = Case("Gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM", DECODERS[-1].settings)


each_decoder = pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)


@each_decoder
@torch.no_grad()
def test_a_decoder_predicts_the_same(case: Case, written: Written) -> None:
    theirs, folder = written(case)
    ours = pretrained.read(folder).model
    given, mask = tokens(), mask_of([12, 7], 12)
    expected = theirs(given, output_attentions=True)
    close(ours(target=given), expected.logits)
    padded = theirs(given, attention_mask=mask.long()).logits
    close(ours(target=given, target_mask=mask)[mask], padded[mask])
    trace = lens.look(ours, None, given[0].tolist())
    for number, weights in enumerate(expected.attentions):
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
