"""Laws of decoding, on a tiny language model whose every sequence can be listed."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv import config
from qkv.decoding import (
    BEAM_RULES,
    FAIRSEQ_RULES,
    TENSOR2TENSOR_RULES,
    Beam,
    BeamRules,
    DecodingConfig,
    Ensemble,
    Greedy,
    Hypothesis,
    LengthLimit,
    LengthPenalty,
    Sample,
    SearchRules,
    generate_all,
    generate_batch,
    run_beam_search,
    score,
    stream_tokens,
)
from qkv.decoding.sampling import filter_logits
from qkv.errors import ConfigError, DataError, VocabularyError
from qkv.generation_rules import GenerationRules
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap

BOS, EOS = 0, 1


@dataclass
class PairState:
    rows: Tensor  # (rows, vocab): what the source adds
    last: Tensor  # (rows, 2): the last two tokens
    length: int

    def reorder(self, index: Tensor) -> PairState:
        return PairState(self.rows[index], self.last[index], self.length)


class Pairs(SequenceModel):
    """Predicts the next token from the last two, the place (so that nothing ties) and the sum of the source, if any."""

    def __init__(self, seed: int = 0, vocab: int = 5, sharpness: float = 1.5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.vocab = vocab
        self.table = sharpness * torch.randn(vocab, vocab, vocab, generator=generator)
        self.by_source = sharpness * torch.randn(7, vocab, generator=generator)
        self.by_place = torch.randn(200, vocab, generator=generator)
        self.dropout = torch.nn.Dropout(0.5)
        self.rows_stepped: list[int] = []
        self.eval()

    def encode(self, source, source_mask=None, tap=NO_TAP):
        return self.by_source[(source if source_mask is None else source * source_mask).sum(1) % 7]

    def start(self, memory, rows):
        memory = torch.zeros(rows, self.vocab) if memory is None else memory
        return PairState(memory, torch.zeros(len(memory), 2, dtype=torch.int64), 0)

    def step(self, tokens, state, tap=NO_TAP):
        self.rows_stepped.append(len(tokens))
        history = torch.cat((state.last, tokens), 1)
        pairs = self.table[history[:, 1:-1], history[:, 2:]]
        places = self.by_place[state.length : state.length + tokens.shape[1]]
        logits = self.dropout(pairs + places + state.rows[:, None])
        return tap("logits", logits), PairState(state.rows, history[:, -2:], state.length + tokens.shape[1])

    def forward(self, source=None, target=None, source_mask=None, target_mask=None, tap=NO_TAP):
        state = self.start(None if source is None else self.encode(source, source_mask), len(target))
        return self.step(target, state, tap)[0]


def make_sources(rows: int = 3) -> Tensor:
    return torch.arange(2, 2 + rows)[:, None]


def run_decoding(
    model: SequenceModel, method: Beam | Greedy | Sample, longest: int = 6, rows: int = 3, least: int = 1, **more
):
    decoding = DecodingConfig(method, LengthLimit(0, longest, least))
    return generate_batch(
        model,
        make_sources(rows),
        rules=GenerationRules(bos=BOS, eos=EOS, suppress_tokens=(BOS,), prefixes=more.pop("prefixes", None)),
        decoding=decoding,
        **more,
    )


def enumerate_finished(
    model: SequenceModel, source: Tensor, longest: int, vocab: int = 5
) -> dict[tuple[int, ...], float]:
    """The log-probability of every sequence that ends within `longest` tokens."""
    inner = [token for token in range(vocab) if token not in (BOS, EOS)]
    targets = [(*start, EOS) for length in range(longest) for start in itertools.product(inner, repeat=length)]
    values = score(model, targets, source.expand(len(targets), -1), bos=BOS)
    return {target: sum(value) for target, value in zip(targets, values, strict=True)}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.sampled_from([-0.7, 0.0, 0.6, 1.0, 1.7]), st.sampled_from(["wu", "power"]))
def test_a_beam_that_holds_everything_finds_the_best_of_all_sequences(seed, alpha, rule):
    model, penalty = Pairs(seed), LengthPenalty(rule, alpha)
    found = run_decoding(model, Beam(size=200, length_penalty=penalty, n_best=5), longest=5, rows=2)
    for source, hypotheses in zip(make_sources(2), found, strict=True):
        truth = enumerate_finished(model, source, longest=5)
        ranked = sorted(truth, key=lambda tokens: -truth[tokens] / penalty(len(tokens)))
        assert [one.tokens for one in hypotheses] == ranked[:5]
        for one in hypotheses:
            assert one.is_finished
            assert one.log_probability == pytest.approx(truth[one.tokens], abs=1e-4)
            assert one.score == pytest.approx(one.log_probability / penalty(len(one.tokens)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    size=st.integers(1, 4),
    alpha=st.sampled_from([-0.5, 0.0, 0.6, 1.0, 2.0]),
    rule=st.sampled_from(["wu", "power"]),
    data=st.data(),
)
def test_stopping_at_the_bound_loses_nothing(seed, size, alpha, rule, data):
    n_best = data.draw(st.integers(1, size))
    model = Pairs(seed)
    options = Beam(size, LengthPenalty(rule, alpha), n_best=n_best)
    early = run_decoding(model, options, longest=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qkv.decoding.beam_search.can_stop", lambda *_: False)
        full = run_decoding(model, options, longest=12)
    for quick, whole in zip(early, full, strict=True):
        assert [one.tokens for one in quick] == [one.tokens for one in whole]


def test_the_bound_saves_steps_and_the_guess_can_lose():
    """Hugging Face's default stop returns less than the best it could have had, for some model; the bound never."""
    lost = 0
    for seed in range(40):
        model, penalty = Pairs(seed, sharpness=1.0), LengthPenalty("power", 1.0)
        guess = run_decoding(model, Beam(2, penalty, rules="hugging-face"), longest=12)
        sure = run_decoding(model, Beam(2, penalty, rules="hugging-face-never"), longest=12)
        for one, other in zip(guess, sure, strict=True):
            assert one[0].score <= other[0].score + 1e-6
            lost += one[0].score < other[0].score - 1e-6
    assert lost > 0
    model = Pairs(3)
    run_decoding(model, Beam(2, LengthPenalty(alpha=0.0)), longest=100)
    assert len(model.rows_stepped) < 50


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), rules=st.sampled_from(["fairseq", "hugging-face-early-stopping"]))
def test_a_beam_of_one_is_greedy(seed, rules):
    model = Pairs(seed)
    greedy, narrow = run_decoding(model, Greedy()), run_decoding(model, Beam(1, LengthPenalty(alpha=0.0), rules=rules))
    best = run_decoding(
        model, Beam(1, LengthPenalty(alpha=0.0), rules=replace(BEAM_RULES["best"], candidates="best-2k"))
    )
    for one, other, wider in zip(greedy, narrow, best, strict=True):
        if one[0].is_finished:
            assert one[0].tokens == other[0].tokens
            assert one[0].log_probability == pytest.approx(other[0].log_probability, abs=1e-4)
            assert wider[0].score >= one[0].log_probability - 1e-4
        elif rules != "fairseq":
            assert one[0].tokens == other[0].tokens


METHODS = [Greedy(), *(Beam(3, LengthPenalty("wu", 0.8), n_best=3, rules=name) for name in BEAM_RULES)]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("prefixes", [None, [[], [2, 3], [4], [], [2, 2, 2], [3]]], ids=["free", "prefixes"])
def test_batch_mates_do_not_matter(method, prefixes):
    model = Pairs(11, vocab=6)
    together = run_decoding(model, method, longest=7, rows=6, prefixes=prefixes)
    for number, source in enumerate(make_sources(6)):
        alone = generate_batch(
            model,
            source[None],
            rules=GenerationRules(
                bos=BOS, eos=EOS, suppress_tokens=(BOS,), prefixes=None if prefixes is None else [prefixes[number]]
            ),
            decoding=DecodingConfig(method, LengthLimit(0, 7)),
        )[0]
        assert [one.tokens for one in alone] == [one.tokens for one in together[number]]
        assert [one.score for one in alone] == pytest.approx([one.score for one in together[number]], abs=1e-5)


@pytest.mark.parametrize("method", [*METHODS, Sample(n_best=2)], ids=str)
def test_prefixes_are_kept_and_scores_are_those_of_forced_scoring(method):
    model, prefixes = Pairs(5, vocab=6), [[2, 3], [], [4]]
    found = run_decoding(model, method, longest=6, prefixes=prefixes)
    for source, prefix, hypotheses in zip(make_sources(), prefixes, found, strict=True):
        if not isinstance(method, Sample):
            scores = [one.score for one in hypotheses]
            assert scores == sorted(scores, reverse=True)
            assert len({one.tokens for one in hypotheses}) == len(hypotheses)
        for one in hypotheses:
            assert list(one.tokens[: len(prefix)]) == prefix
            assert one.is_finished == (one.tokens[-1] == EOS)
            assert BOS not in one.tokens
            values = score(model, [one.tokens], source[None], bos=BOS)[0]
            counted = isinstance(method, Beam) and method.resolve_rules().prefix == "scored"
            free = values if counted else values[len(prefix) :]
            assert len(free) <= 6
            assert one.log_probability == pytest.approx(sum(free), abs=1e-4)
            if isinstance(method, Beam):
                assert one.score == pytest.approx(one.log_probability / method.length_penalty(len(free)), abs=1e-4)


def test_without_a_begin_token_the_prefix_begins():
    model, decoding = Pairs(7), DecodingConfig(Greedy(), LengthLimit(0, 6))
    with_bos = generate_batch(model, rules=GenerationRules(bos=BOS, eos=EOS, prefixes=[[2, 3], [4]]), decoding=decoding)
    without = generate_batch(
        model, rules=GenerationRules(bos=None, eos=EOS, prefixes=[[BOS, 2, 3], [BOS, 4]]), decoding=decoding
    )
    assert [(BOS, *one[0].tokens) for one in with_bos] == [one[0].tokens for one in without]
    whole = score(model, [one[0].tokens for one in with_bos], bos=BOS)
    assert score(model, [one[0].tokens for one in without], bos=None) == whole


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_prompt_may_hold_ends_and_goes_on_after_them(method):
    """Of each prompt alone, fed at once; and the shorter ones free while a longer one is still fed, ends and all."""
    model, decoding = Pairs(3, vocab=6), DecodingConfig(method, LengthLimit(0, 12))
    prompts = [[2, EOS], [3], [EOS, 2, EOS, EOS, 4, EOS, 3], [4, EOS, 2, 5]]
    together = generate_batch(model, rules=GenerationRules(bos=None, eos=EOS, prefixes=prompts), decoding=decoding)
    for prompt, found in zip(prompts, together, strict=True):
        [alone] = generate_batch(model, rules=GenerationRules(bos=None, eos=EOS, prefixes=[prompt]), decoding=decoding)
        assert [one.tokens for one in alone] == [one.tokens for one in found]
        assert list(found[0].tokens[: len(prompt)]) == prompt and len(found[0].tokens) > len(prompt)
        assert found[0].is_finished == (found[0].tokens[-1] == EOS)


def test_a_long_prompt_is_not_fed_token_by_token_beside_a_short_one():
    model, decoding = Pairs(3, vocab=6), DecodingConfig(Greedy(), LengthLimit(0, 5))
    prompts = [[2, 3], [4] * 40, [3] * 37, [5, 2, 3]]
    found = generate_all(model, None, rules=GenerationRules(bos=None, eos=EOS, prefixes=prompts), decoding=decoding)
    assert len(model.rows_stepped) <= 2 * 5 + 3 + 1
    for prompt, own in zip(prompts, found, strict=True):
        assert (
            own[0].tokens
            == generate_batch(model, rules=GenerationRules(bos=None, eos=EOS, prefixes=[prompt]), decoding=decoding)[0][
                0
            ].tokens
        )


def test_the_least_length_is_kept_and_the_greatest_grows_with_the_source():
    model = Pairs(0)
    model.by_source[:, EOS] += 20
    for method in (Greedy(), Beam(2), Sample()):
        assert all(len(one[0].tokens) == 4 for one in run_decoding(model, method, longest=6, least=4))
    model.by_source[:, EOS] -= 60
    source, mask = torch.tensor([[2, 3, 4], [2, 0, 0]]), torch.tensor([[True, True, True], [True, False, False]])
    decoding = DecodingConfig(Greedy(), LengthLimit(2, 1))
    found = generate_batch(model, source, mask, rules=GenerationRules(bos=BOS, eos=EOS), decoding=decoding)
    assert [len(one[0].tokens) for one in found] == [7, 3]
    assert not found[0][0].is_finished


def test_what_happens_at_the_greatest_length():
    model = Pairs(0, vocab=12)
    model.by_source[:, EOS] -= 60
    for at_length, ended in (("forced", True), ("kept", False), ("kept-if-none-ended", False)):
        rules = BeamRules("best-2k", "best-k", "bound", at_length)
        found = run_decoding(model, Beam(2, rules=rules, n_best=2), longest=4)
        assert {len(one.tokens) for hypotheses in found for one in hypotheses} == {4}
        assert {one.is_finished for hypotheses in found for one in hypotheses} == {ended}
    model.by_source[:, EOS] += 61
    mixed = {}
    for at_length in ("kept", "kept-if-none-ended"):
        rules = BeamRules("best-2k", "best-k", "k-bound", at_length)
        found = run_decoding(model, Beam(3, rules=rules, n_best=3), longest=4, rows=6)
        mixed[at_length] = [len({one.is_finished for one in hypotheses}) == 2 for hypotheses in found]
    assert any(mixed["kept"]) and not any(mixed["kept-if-none-ended"])


# Two published searches written down a second time, for one sentence, in plain Python.


def extend_beams(model: SequenceModel, source: Tensor, living: list[tuple[tuple[int, ...], float]], keep: int):
    """The `keep` best continuations of (tokens, log-probability), best first."""
    results = []
    for tokens, log_probability in living:
        logits = model(source[None], torch.tensor([[BOS, *tokens]]))[0, -1]
        for token, value in enumerate(torch.log_softmax(logits, -1).tolist()):
            if token != BOS:
                results.append(((*tokens, token), log_probability + value))
    return sorted(results, key=lambda one: -one[1])[:keep]


def search_like_fairseq(model, source, size, penalty, greatest):
    living, finished = [((), 0.0)], []
    for place in range(greatest + 1):
        if place == greatest:
            ranked = [one for one in extend_beams(model, source, living, 10**6) if one[0][-1] == EOS]
        else:
            ranked = extend_beams(model, source, living, 2 * size)
        for tokens, log_probability in ranked[:size]:
            if tokens[-1] == EOS and len(finished) < size:
                finished.append((tokens, log_probability / len(tokens) ** penalty))
        if len(finished) == size:
            break
        living = [one for one in ranked if one[0][-1] != EOS][:size]
    return sorted(finished, key=lambda one: -one[1])


def search_like_tensor2tensor(model, source, size, alpha, greatest):
    def divisor(length):
        return ((5 + length) / 6) ** alpha

    living, finished = [((), 0.0)], []
    for place in range(greatest):
        ranked = extend_beams(model, source, living, 2 * size)
        living = [one for one in ranked if one[0][-1] != EOS][:size]
        finished += [(tokens, value / divisor(place + 1)) for tokens, value in ranked if tokens[-1] == EOS]
        finished = sorted(finished, key=lambda one: -one[1])[:size]
        if finished and finished[0][1] > living[0][1] / divisor(greatest):
            break
    return finished or [(tokens, value / divisor(greatest)) for tokens, value in living]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 1.8])
def test_the_rules_of_fairseq_and_tensor2tensor(size, alpha):
    for seed in range(4):
        model = Pairs(seed, vocab=12, sharpness=1.0)
        model.by_source[:, EOS] += 1.0
        model.table[..., EOS] -= seed
        options = Beam(size, LengthPenalty("power", alpha), n_best=size, rules="fairseq")
        found = run_decoding(model, options, longest=8, rows=3)
        for source, hypotheses in zip(make_sources(3), found, strict=True):
            truth = search_like_fairseq(model, source, size, alpha, greatest=7)
            assert [one.tokens for one in hypotheses] == [tokens for tokens, _ in truth]
            assert [one.score for one in hypotheses] == pytest.approx([value for _, value in truth], abs=1e-4)
        found = run_decoding(model, Beam(size, LengthPenalty("wu", alpha), rules="tensor2tensor"), longest=7, rows=3)
        for source, hypotheses in zip(make_sources(3), found, strict=True):
            tokens, value = search_like_tensor2tensor(model, source, size, alpha, greatest=7)[0]
            assert hypotheses[0].tokens == tokens
            assert hypotheses[0].score == pytest.approx(value, abs=1e-4)


def test_the_rules_differ():
    """Otherwise the tests above would show nothing."""
    results = {}
    for name in BEAM_RULES:
        found = []
        for seed in range(12):
            model = Pairs(seed, vocab=12, sharpness=0.7)
            model.by_source[:, EOS] += 2.0 - seed / 3
            options = Beam(3, LengthPenalty("power", 1.5), n_best=3, rules=name)
            found += [[one.tokens for one in hypotheses] for hypotheses in run_decoding(model, options, longest=12)]
        results[name] = found
    for one, other in itertools.combinations(results, 2):
        assert results[one] != results[other], (one, other)


def test_sentences_that_are_done_leave_the_batch():
    for method in (Greedy(), Beam(2, LengthPenalty(alpha=0.0))):
        model = Pairs(1)
        model.by_source[:, EOS] += 2
        run_decoding(model, method, longest=40, rows=6)
        assert model.rows_stepped[0] == 6
        assert model.rows_stepped[-1] < model.rows_stepped[1]
        assert model.rows_stepped[1:] == sorted(model.rows_stepped[1:], reverse=True)


def test_an_ensemble_of_one_model_is_the_model_and_of_two_lies_between():
    one, other = Pairs(1), Pairs(2)
    for average in ("probabilities", "log-probabilities"):
        for method in (Greedy(), Beam(3, n_best=2)):
            alone, doubled = run_decoding(one, method), run_decoding(Ensemble([one, one], average), method)
            for single, double in zip(alone, doubled, strict=True):
                assert [best.tokens for best in single] == [best.tokens for best in double]
                assert [best.score for best in single] == pytest.approx([best.score for best in double], abs=1e-5)
        both = Ensemble([one, other], average)
        target = torch.tensor([[BOS, 2, 3]])
        parts = [torch.log_softmax(model(make_sources(1), target), -1) for model in (one, other)]
        if average == "probabilities":
            mean = (parts[0].exp() + parts[1].exp()) / 2
        else:
            mean = (parts[0] + parts[1]).exp().sqrt()
        expected = mean / mean.sum(-1, keepdim=True)
        torch.testing.assert_close(both(make_sources(1), target).exp(), expected)
        torch.testing.assert_close(both.step(target, both.start(both.encode(make_sources(1)), 1))[0].exp(), expected)
    with pytest.raises(VocabularyError, match=r"\[5, 6\]"):
        run_decoding(Ensemble([Pairs(1), Pairs(1, vocab=6)]), Greedy())


@pytest.mark.parametrize("method", [Greedy(), Sample(top_k=3, temperature=0.8)], ids=str)
def test_a_stream_is_the_same_answer_token_by_token(method):
    model, decoding = Pairs(4), DecodingConfig(method, LengthLimit(0, 9))
    for row in make_sources(5):
        flow = stream_tokens(
            model,
            row[None],
            rules=GenerationRules(bos=BOS, eos=EOS, prefixes=[[2]]),
            decoding=decoding,
            generator=torch.Generator().manual_seed(8),
        )
        whole = generate_batch(
            model,
            row[None],
            rules=GenerationRules(bos=BOS, eos=EOS, prefixes=[[2]]),
            decoding=decoding,
            generator=torch.Generator().manual_seed(8),
        )
        assert (2, *flow) == whole[0][0].tokens


def test_sampling_draws_each_token_as_often_as_it_should():
    model, count = Pairs(6), 4000
    options = Sample(temperature=1.5, top_k=3, top_p=0.99, n_best=count)
    found = run_decoding(model, options, longest=1, rows=1, generator=torch.Generator().manual_seed(1))[0]
    logits = model(make_sources(1), torch.tensor([[BOS]]))[:, -1]
    logits[:, BOS] = -torch.inf
    expected = torch.softmax(filter_logits(logits, options), -1)[0] * count
    drawn = torch.bincount(torch.tensor([one.tokens[0] for one in found]), minlength=5)
    possible = expected > 0
    assert drawn[~possible].sum() == 0 and 1 < possible.sum() < 5
    statistic = ((drawn - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < 10.83  # chance of 0.001 at one degree of freedom, less at two
    again = run_decoding(model, options, longest=1, rows=1, generator=torch.Generator().manual_seed(1))[0]
    assert again == found


def test_many_sources_come_back_in_their_order():
    model = Pairs(9)
    given = [[2], [3, 4, 2], [], [4, 4], [2, 3, 4, 2], [3]]
    decoding = DecodingConfig(Beam(2), LengthLimit(1, 4))
    found = generate_all(model, given, rules=GenerationRules(bos=BOS, eos=EOS), decoding=decoding, batch_tokens=12)
    for own, hypotheses in zip(given, found, strict=True):
        source = torch.tensor([own], dtype=torch.int64)
        alone = generate_batch(model, source, rules=GenerationRules(bos=BOS, eos=EOS), decoding=decoding)[0]
        assert [one.tokens for one in alone] == [one.tokens for one in hypotheses]
    assert max(model.rows_stepped) <= 12
    assert generate_all(model, [], rules=GenerationRules(bos=BOS, eos=EOS)) == []


def test_dropout_is_off_meanwhile_and_the_model_is_left_as_it_was():
    model = Pairs(2)
    quiet = run_decoding(model.eval(), Greedy())
    assert run_decoding(model.train(), Greedy()) == quiet
    assert model.training


class Plus(Tap):
    """Adds to one token's logit."""

    def __call__(self, site, tensor):
        return tensor + 100 * torch.nn.functional.one_hot(torch.tensor(3), 5) if site == "logits" else tensor


@pytest.mark.parametrize("method", [Greedy(), Beam(2), Sample()], ids=str)
def test_a_tap_changes_every_step(method):
    found = run_decoding(Pairs(2), method, longest=4, tap=Plus())
    assert all(set(one[0].tokens[:3]) == {3} for one in found)


def test_a_search_needs_nothing_but_step():
    class Counter:
        """Prefers the token after the last; its state is the number of steps."""

        def step(self, tokens, state):
            return 5.0 * torch.nn.functional.one_hot((tokens + 1) % 5, 5), state

    class Nothing:
        def reorder(self, index):
            return self

    found = run_beam_search(Counter(), Nothing(), SearchRules([6, 2], bos=2, eos=1), Beam(2, LengthPenalty(alpha=0.0)))
    assert found[0][0].tokens == (3, 4, 0, 1)
    assert found[1][0].tokens[-1] == 1 and len(found[1][0].tokens) <= 2


def test_impossible_constraints_give_a_hypothesis_all_the_same():
    class Never:
        def step(self, tokens, state):
            logits = torch.zeros(*tokens.shape, 5)
            logits[..., EOS] = -torch.inf
            return logits, state

        def reorder(self, index):
            return self

    found = run_beam_search(Never(), Never(), SearchRules([3], BOS, EOS), Beam(2))
    assert found == [[Hypothesis(found[0][0].tokens, -math.inf, found[0][0].log_probability, False)]]
    assert len(found[0][0].tokens) == 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Beam(size=0), "size=0"),
        (lambda: Beam(size=2, n_best=3), "n_best=3: expected between 1 and size=2"),
        (lambda: Beam(coverage_penalty=-1.0), "coverage_penalty=-1.0"),
        (lambda: Beam(rules="fairsec"), "fairseq"),
        (lambda: Sample(temperature=0.0), "temperature=0.0"),
        (lambda: Sample(top_k=-1, top_p=0.0), "top_p=0.0"),
        (lambda: LengthPenalty(alpha=math.nan), "alpha=nan"),
        (lambda: LengthLimit(0, 0), "room"),
        (lambda: LengthLimit(-1.0, 5, 0), "min_new_tokens=0"),
        (
            lambda: list(
                stream_tokens(
                    Pairs(), make_sources(1), rules=GenerationRules(bos=0, eos=1), decoding=DecodingConfig(Beam())
                )
            ),
            "greedy",
        ),
        (lambda: run_decoding(Pairs(), Beam(coverage_penalty=0.2)), "no cross-attention"),
    ],
)
def test_options_that_cannot_be_are_named(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: run_decoding(Pairs(), Greedy(), prefixes=[[2]]), "1 prefixes for 3 sentences"),
        (lambda: run_decoding(Pairs(), Greedy(), prefixes=[[2], [EOS], []]), "prefix 1 holds the end token"),
        (lambda: generate_batch(Pairs(), rules=GenerationRules(bos=None, eos=EOS, prefixes=[[2], []])), "begin token"),
        (lambda: generate_batch(Pairs(), rules=GenerationRules(bos=0, eos=EOS)), "neither source nor prefixes"),
        (
            lambda: generate_batch(
                Pairs(), rules=GenerationRules(bos=0, eos=EOS, suppress_tokens=[EOS], prefixes=[[]])
            ),
            "suppress_tokens",
        ),
        (lambda: run_decoding(Pairs(), Beam(rules=FAIRSEQ_RULES), longest=2, prefixes=[[2, 3], [], []]), "no room"),
        (lambda: score(Pairs(), [[2]], make_sources(2), bos=0), "1 targets for 2 sources"),
        (lambda: score(Pairs(), [[]], bos=None), "empty target"),
        (lambda: list(stream_tokens(Pairs(), make_sources(2), rules=GenerationRules(bos=0, eos=1))), "2 sources"),
    ],
)
def test_inputs_that_cannot_be_are_named(make, says):
    with pytest.raises(DataError, match=says):
        make()


def test_options_are_read_without_torch_and_come_back_the_same():
    for decoding in (
        DecodingConfig(),
        DecodingConfig(Greedy()),
        DecodingConfig(Sample(0.5)),
        DecodingConfig(Beam(rules=TENSOR2TENSOR_RULES)),
    ):
        assert config.from_dict(DecodingConfig, config.to_dict(decoding)) == decoding
    code = "import sys, qkv.decoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
