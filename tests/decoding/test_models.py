"""Decoding with the package's own models, and coverage, which needs their attention."""

from __future__ import annotations

import pytest
import torch

from qkv import spec
from qkv.decoding import (
    Beam,
    DecodingConfig,
    Ensemble,
    Greedy,
    LengthLimit,
    LengthPenalty,
    Sample,
    generate_batch,
    score,
    stream_tokens,
)
from qkv.generation_rules import GenerationRules
from qkv.models import build
from qkv.presets import encoder_decoder
from qkv.tap import Tap

SOURCE = torch.tensor([[4, 5, 6, 7, 2], [8, 9, 2, 0, 0], [5, 5, 5, 2, 0]])
MASK = SOURCE != 0
BOS, EOS = 1, 2


def build_model(kind: str, seed: int = 0):
    torch.manual_seed(seed)
    if kind == "transformer":
        choice = encoder_decoder(source_vocab=10, target_vocab=11, d_model=16, heads=2, d_ff=16, layers=2)
    else:
        read = spec.Tokens(10), spec.Tokens(11)
        choice = spec.Recurrent("gru", 16, 1, *read, attention=None if kind == "plain" else kind)
    built = build(choice).eval()
    for parameter in built.parameters():
        parameter.data.mul_(2)  # freshly drawn models say nearly the same after every prefix
    return built


KINDS = ["transformer", "additive", "general", "plain"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [Greedy(), Beam(3, n_best=2), Beam(3, rules="fairseq"), Sample(n_best=2)], ids=str)
def test_with_caches_scores_are_those_of_forced_scoring(kind, method):
    own = build_model(kind)
    prefixes = [[3, 4], [], [5]]
    decoding = DecodingConfig(method, LengthLimit(0, 8))
    found = generate_batch(
        own, SOURCE, MASK, rules=GenerationRules(bos=BOS, eos=EOS, prefixes=prefixes), decoding=decoding
    )
    for row, (prefix, hypotheses) in enumerate(zip(prefixes, found, strict=True)):
        for one in hypotheses:
            source, mask = SOURCE[row : row + 1], MASK[row : row + 1]
            values = score(own, [one.tokens], source, mask, bos=BOS)[0]
            counted = isinstance(method, Beam) and method.rules == "fairseq"
            assert one.log_probability == pytest.approx(sum(values[0 if counted else len(prefix) :]), abs=2e-4)
            alone = generate_batch(
                own, source[:, mask[0]], rules=GenerationRules(bos=BOS, eos=EOS, prefixes=[prefix]), decoding=decoding
            )[0]
            if not isinstance(method, Sample):
                assert one.tokens in [other.tokens for other in alone]


def test_a_decoder_alone_continues_ragged_prompts():
    torch.manual_seed(0)
    block = spec.Block(spec.Attention(2, 8, causal=True, position=spec.Rotary()), spec.FeedForward(16))
    stack = spec.Stack(16, (block, block), spec.Tokens(11), None, final_norm=spec.Norm())
    own = build(spec.Transformer(None, stack, spec.Vocabulary(tied=True))).eval()
    prompts = [[3, 4, 5, 6], [7], [8, 9]]
    for method in (Greedy(), Beam(3)):
        decoding = DecodingConfig(method, LengthLimit(0, 6))
        together = generate_batch(own, rules=GenerationRules(bos=None, eos=EOS, prefixes=prompts), decoding=decoding)
        for prompt, hypotheses in zip(prompts, together, strict=True):
            alone = generate_batch(own, rules=GenerationRules(bos=None, eos=EOS, prefixes=[prompt]), decoding=decoding)[
                0
            ]
            assert hypotheses[0].tokens == alone[0].tokens
            assert list(hypotheses[0].tokens[: len(prompt)]) == prompt
            if method == Greedy():
                flow = stream_tokens(
                    own, rules=GenerationRules(bos=None, eos=EOS, prefixes=[prompt]), decoding=decoding
                )
                assert (*prompt, *flow) == hypotheses[0].tokens


class Recorder(Tap):
    """Keeps every tensor of the cross-attention weights."""

    def __init__(self, path="", seen=None):
        self.path, self.seen = path, [] if seen is None else seen

    def replaces(self, site):
        return site == "weights"

    def __call__(self, site, tensor):
        if site == "weights" and "cross_attention" in self.path:
            self.seen.append((self.path, tensor))
        return tensor

    def at(self, place):
        return Recorder(f"{self.path}/{place}", self.seen)


@pytest.mark.parametrize("kind", ["transformer", "additive", "general"])
def test_coverage_adds_what_the_paper_says(kind):
    own, beta, penalty = build_model(kind, seed=3), 0.7, LengthPenalty(alpha=0.6)
    method = Beam(4, penalty, coverage_penalty=beta, n_best=4, rules="hugging-face-never")
    decoding = DecodingConfig(method, LengthLimit(0, 7))
    found = generate_batch(
        own, SOURCE, MASK, rules=GenerationRules(bos=BOS, eos=EOS, prefixes=[[3, 4], [3, 4, 5], [6]]), decoding=decoding
    )
    changed = False
    for row, (hypotheses, given) in enumerate(zip(found, (2, 3, 1), strict=True)):
        source = SOURCE[row : row + 1, MASK[row]]
        for one in hypotheses:
            tap = Recorder()
            own(source, torch.tensor([[BOS, *one.tokens[:-1]]]), tap=tap)
            last = tap.seen[-1][0]
            received = sum(weights[0].mean(0).sum(0) for path, weights in tap.seen if path == last)
            expected = beta * received.clamp(max=1).log().sum().item()
            plain = one.log_probability / penalty(len(one.tokens) - given)
            assert one.score == pytest.approx(plain + expected, abs=1e-3)
            changed |= abs(expected) > 0.1
    assert changed
    both = generate_batch(
        Ensemble([own, own]),
        SOURCE,
        MASK,
        rules=GenerationRules(bos=BOS, eos=EOS),
        decoding=DecodingConfig(method, LengthLimit(0, 7)),
    )
    alone = generate_batch(
        own, SOURCE, MASK, rules=GenerationRules(bos=BOS, eos=EOS), decoding=DecodingConfig(method, LengthLimit(0, 7))
    )
    assert [one[0].score for one in both] == pytest.approx([one[0].score for one in alone], abs=1e-4)
