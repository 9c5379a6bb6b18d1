"""The rules of Hugging Face, held against transformers' own generate() on tiny models with random parameters."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from qkv.decoding import Beam, DecodingConfig, Greedy, LengthLimit, LengthPenalty, Sample, generate_batch
from qkv.decoding.sampling import filter_logits
from qkv.generation_rules import GenerationRules
from qkv.models import SequenceModel
from qkv.tap import NO_TAP

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

BOS, EOS, PAD = 0, 2, 1


@dataclass
class Rows:
    """The tokens of every row so far, for a model that is run anew at every step."""

    memory: tuple[Tensor, Tensor] | None
    tokens: Tensor
    length: int = 0

    def reorder(self, index: Tensor) -> Rows:
        memory = None if self.memory is None else (self.memory[0][index], self.memory[1][index])
        return Rows(memory, self.tokens[index], self.length)


class Theirs(SequenceModel):
    """A model of transformers as a `SequenceModel`, without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()

    def encode(self, source, source_mask=None, tap=NO_TAP):
        return self.model.get_encoder()(source, attention_mask=source_mask.long()).last_hidden_state, source_mask.long()

    def start(self, memory, rows):
        rows = rows if memory is None else len(memory[0])
        return Rows(memory, torch.zeros(rows, 0, dtype=torch.int64))

    def step(self, tokens, state, tap=NO_TAP):
        seen = torch.cat((state.tokens, tokens), 1)
        if state.memory is None:
            logits = self.model(seen).logits
        else:
            states, mask = state.memory
            logits = self.model(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=seen).logits
        return logits[:, -tokens.shape[1] :], Rows(state.memory, seen, seen.shape[1])


def build_encoder_decoder(seed: int, eager_to_end: float) -> Any:
    torch.manual_seed(seed)
    config = transformers.BartConfig(
        vocab_size=24, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, init_std=1.0,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=BOS, forced_eos_token_id=None,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config).eval()
    model.model.shared.weight.data *= 0.35
    model.final_logits_bias[0, EOS] = eager_to_end
    return model


def build_decoder(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=24, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.4,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


SOURCE = torch.tensor([[4, 5, 6, 7, EOS], [8, 9, EOS, PAD, PAD], [5, 5, 5, EOS, PAD], [20, 9, 4, 4, EOS]])
MASK = SOURCE != PAD
NAMES = {False: "hugging-face", True: "hugging-face-early-stopping", "never": "hugging-face-never"}


def generate_theirs(model: Any, prompts: Tensor, longest: int, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(
            prompts, max_new_tokens=longest, output_scores=True, return_dict_in_generate=True, **options
        )


def strip_prompt(row: list[int], start: int) -> tuple[int, ...]:
    """The tokens after the prompt, up to the end token or the padding."""
    row = row[start:]
    if EOS in row:
        return tuple(row[: row.index(EOS) + 1])
    return tuple(row)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.6, 1.0, 2.0])
def test_beam_search_token_for_token(early_stopping, alpha):
    ended = set()
    for seed, eager in ((0, 1.0), (1, 3.0), (2, 6.0)):
        model = build_encoder_decoder(seed, eager)
        answer = generate_theirs(
            model, SOURCE, 9, attention_mask=MASK.long(), num_beams=4, num_return_sequences=3,
            early_stopping=early_stopping, length_penalty=alpha,
        )  # fmt: skip
        method = Beam(4, LengthPenalty("power", alpha), n_best=3, rules=NAMES[early_stopping])
        decoding = DecodingConfig(method, LengthLimit(0, 9))
        found = [
            one
            for row in generate_batch(
                Theirs(model), SOURCE, MASK, rules=GenerationRules(bos=BOS, eos=EOS), decoding=decoding
            )
            for one in row
        ]
        assert [one.score for one in found] == pytest.approx(answer.sequences_scores.tolist(), abs=2e-4)
        for one, row in zip(found, answer.sequences.tolist(), strict=True):
            tokens = strip_prompt(row, 1)
            assert one.tokens == tokens[: len(one.tokens)] and set(tokens[len(one.tokens) :]) <= {PAD}
            ended.add((one.is_finished, len(one.tokens)))
    assert len(ended) > 1  # otherwise this shows little


def test_greedy_token_for_token():
    model = build_encoder_decoder(1, 2.0)
    answer = generate_theirs(model, SOURCE, 9, attention_mask=MASK.long(), num_beams=1)
    decoding = DecodingConfig(Greedy(), LengthLimit(0, 9))
    found = generate_batch(Theirs(model), SOURCE, MASK, rules=GenerationRules(bos=BOS, eos=EOS), decoding=decoding)
    assert [row[0].tokens for row in found] == [strip_prompt(row, 1) for row in answer.sequences.tolist()]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_a_prompt_is_given_and_adds_nothing_to_score_and_length(early_stopping):
    for seed in range(3):
        model = build_decoder(seed)
        prompts = torch.tensor([[4, 5, 6], [7, 8, 9]])
        answer = generate_theirs(
            model, prompts, 6, attention_mask=torch.ones_like(prompts), num_beams=3, num_return_sequences=3,
            early_stopping=early_stopping, length_penalty=1.3,
        )  # fmt: skip
        method = Beam(3, LengthPenalty("power", 1.3), n_best=3, rules=NAMES[early_stopping])
        found = generate_batch(
            Theirs(model),
            rules=GenerationRules(bos=None, eos=EOS, prefixes=prompts.tolist()),
            decoding=DecodingConfig(method, LengthLimit(0, 6)),
        )
        flat = [one for row in found for one in row]
        assert [one.score for one in flat] == pytest.approx(answer.sequences_scores.tolist(), abs=2e-4)
        assert [one.tokens[3:] for one in flat] == [
            strip_prompt(row, 3)[: len(one.tokens) - 3]
            for one, row in zip(flat, answer.sequences.tolist(), strict=True)
        ]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 5, 30])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_sampling_leaves_the_same_tokens(temperature, top_k, top_p):
    logits = 3 * torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = filter_logits(logits, Sample(temperature, top_k, top_p))
    assert torch.equal(found.isinf(), expected.isinf())
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1))
