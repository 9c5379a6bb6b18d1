"""From a source to its hypotheses, with any `SequenceModel`: the one way that validation, tests and users decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qkv.cache import Memory
from qkv.decoding.beam_search import run_beam_search
from qkv.decoding.config import Beam, DecodingConfig, Greedy, Sample
from qkv.decoding.constraints import PhraseConstraints
from qkv.decoding.coverage import Coverage, CrossAttentionTap
from qkv.decoding.rules import GenerationRules, Hypothesis
from qkv.decoding.sampling import generate_steps, greedy_search, make_sampler, sample, select_most_probable
from qkv.errors import ConfigError, DataError
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap

Prefixes = Sequence[Sequence[int]]


@torch.no_grad()
def generate_batch(
    model: SequenceModel,
    source: Tensor | None = None,
    source_mask: Tensor | None = None,
    *,
    bos: int | None,
    eos: int | Sequence[int],
    decoding: DecodingConfig | None = None,
    suppress_tokens: Sequence[int] = (),
    forced_prefix: Sequence[int] = (),
    forced_eos: int | None = None,
    begin_suppress_tokens: Sequence[int] = (),
    prefixes: Prefixes | None = None,
    constraints: Sequence[PhraseConstraints] | None = None,
    generator: torch.Generator | None = None,
    tap: Tap = NO_TAP,
) -> list[list[Hypothesis]]:
    """Find the answers to a batch; for every sentence its hypotheses, best first, at least one.

    source (batch, sources), source_mask the same, True = a real token; None for a model without an encoder, whose
    prompts are the prefixes. bos, eos: begin and end token; never: tokens not to be generated; first, last: what an
    answer has to begin with, and to have at the greatest length; never_first: what may not come right after `first`;
    phrases: what each answer must and must not hold (see `Constraints`). generator: for sampling. tap: sees and changes
    every step. Dropout is off meanwhile. Raises DataError, ConfigError.
    """
    decoding = decoding or DecodingConfig()
    method = decoding.method
    if not isinstance(method, Beam) and any(one.include for one in constraints or ()):
        raise ConfigError([f"method={method}: an answer that must hold phrases is found by a beam search; use a beam"])
    with _evaluation_mode(model):
        stepper, state, longest, mask = _start_generation(model, source, source_mask, decoding, prefixes, tap)
        least = decoding.length.min_new_tokens
        rules = GenerationRules(
            longest,
            bos,
            eos,
            suppress_tokens,
            least,
            prefixes,
            _get_device(model),
            forced_prefix,
            forced_eos,
            begin_suppress_tokens,
            constraints,
        )
        if isinstance(method, Greedy):
            return [[hypothesis] for hypothesis in greedy_search(stepper, state, rules)]
        if isinstance(method, Sample):
            return sample(stepper, state, rules, method, generator)
        if not method.coverage_penalty:
            return run_beam_search(stepper, state, rules, method)
        if mask is None:
            raise ConfigError(
                [f"coverage_penalty={method.coverage_penalty}: this model reads no source to cover; expected 0"]
            )
        watch = CrossAttentionTap(tap)
        coverage = Coverage(method.coverage_penalty, watch.received, mask)
        return run_beam_search(_TappedModel(model, watch), state, rules, method, coverage)


def generate_all(
    model: SequenceModel,
    sources: Sequence[Sequence[int]] | None,
    *,
    bos: int | None,
    eos: int | Sequence[int],
    decoding: DecodingConfig | None = None,
    suppress_tokens: Sequence[int] = (),
    forced_prefix: Sequence[int] = (),
    forced_eos: int | None = None,
    begin_suppress_tokens: Sequence[int] = (),
    prefixes: Prefixes | None = None,
    constraints: Sequence[PhraseConstraints] | None = None,
    generator: torch.Generator | None = None,
    batch_tokens: int = 4096,
    tap: Tap = NO_TAP,
) -> list[list[Hypothesis]]:
    """Find the answers to any number of sources, given as token ids; one in, one out, in the order given.

    A model without an encoder is given None and prefixes instead, which it goes on from. Sources of like length are
    decoded together, as many as have `budget` tokens, padding and beams included. Prompts that differ by more tokens
    than an answer may have are not: the longer one would be fed the rest token by token, beside answers.
    """
    decoding = decoding or DecodingConfig()
    method = decoding.method
    width = method.size if isinstance(method, Beam) else method.n_best if isinstance(method, Sample) else 1
    given = sources if sources is not None else prefixes or ()
    order = sorted(range(len(given)), key=lambda number: -len(given[number]))
    found: dict[int, list[Hypothesis]] = {}
    device = _get_device(model)
    while order:
        longest = max(1, len(given[order[0]]))
        rows = max(1, batch_tokens // (longest * width))
        if sources is None:
            shortest = longest - decoding.length.max_new_tokens(longest)
            rows = min(rows, sum(len(given[number]) >= shortest for number in order))
        numbers, order = order[:rows], order[rows:]
        source, mask = (None, None) if sources is None else _pad([sources[one] for one in numbers], device)
        own = [prefixes[number] for number in numbers] if prefixes is not None else None
        held = [constraints[number] for number in numbers] if constraints is not None else None
        results = generate_batch(
            model, source, mask, bos=bos, eos=eos, decoding=decoding, suppress_tokens=suppress_tokens,
            forced_prefix=forced_prefix, forced_eos=forced_eos,
            begin_suppress_tokens=begin_suppress_tokens, prefixes=own, constraints=held, generator=generator, tap=tap,
        )  # fmt: skip
        found.update(zip(numbers, results, strict=True))
    return [found[number] for number in range(len(given))]


@torch.no_grad()
def stream_tokens(
    model: SequenceModel,
    source: Tensor | None = None,
    *,
    bos: int | None,
    eos: int | Sequence[int],
    decoding: DecodingConfig | None = None,
    suppress_tokens: Sequence[int] = (),
    forced_prefix: Sequence[int] = (),
    forced_eos: int | None = None,
    begin_suppress_tokens: Sequence[int] = (),
    prefix: Sequence[int] = (),
    generator: torch.Generator | None = None,
    tap: Tap = NO_TAP,
) -> Iterator[int]:
    """Yield the tokens of one answer as they are found, the end token last if there is one; the prefix is not yielded.

    source (1, sources). The method is greedy or one draw; beam search cannot stream, for it may still change its mind.
    """
    decoding = decoding or DecodingConfig(Greedy())
    method = decoding.method
    if isinstance(method, Beam) or (isinstance(method, Sample) and method.n_best > 1):
        problem = f"method={method}: a stream is one answer that never changes; use greedy, or sample with n_best 1"
        raise ConfigError([problem])
    if source is not None and source.shape[0] != 1:
        raise DataError(f"a stream was given {source.shape[0]} sources; it has one answer, give one")
    choose = make_sampler(method, generator) if isinstance(method, Sample) else select_most_probable
    with _evaluation_mode(model):
        stepper, state, longest, _ = _start_generation(model, source, None, decoding, [prefix], tap)
        least = decoding.length.min_new_tokens
        rules = GenerationRules(
            longest,
            bos,
            eos,
            suppress_tokens,
            least,
            [prefix],
            _get_device(model),
            forced_prefix,
            forced_eos,
            begin_suppress_tokens,
        )
        for step in generate_steps(stepper, state, rules, choose):
            for taken in step:
                yield taken.token


@torch.no_grad()
def score(
    model: SequenceModel,
    targets: Sequence[Sequence[int]],
    source: Tensor | None = None,
    source_mask: Tensor | None = None,
    *,
    bos: int | None,
    tap: Tap = NO_TAP,
) -> list[list[float]]:
    """The log-probability of every token of given targets, as `Hypothesis.tokens` has them (no begin token).

    Without a begin token (bos None) the first token of a target is taken as given and has no entry.
    """
    begin = [] if bos is None else [bos]
    whole = [begin + list(target) for target in targets]
    if source is not None and source.shape[0] != len(whole):
        raise DataError(f"{len(whole)} targets for {source.shape[0]} sources; give one each")
    if not all(whole):
        raise DataError("an empty target without a begin token has nothing to score; give bos or drop the line")
    device = _get_device(model)
    read, _ = _pad([one[:-1] for one in whole], device)
    true, mask = _pad([one[1:] for one in whole], device)
    if not true.shape[1]:
        return [[] for _ in whole]
    with _evaluation_mode(model):
        logits = model(source, read, source_mask, mask, tap)
    values = torch.log_softmax(logits.float(), -1).gather(2, true[..., None])[..., 0]
    return [row[: len(one) - 1] for row, one in zip(values.tolist(), whole, strict=True)]


class _TappedModel:
    """A model with a tap on it, as a stepper."""

    def __init__(self, model: SequenceModel, tap: Tap) -> None:
        self.model, self.tap = model, tap

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.model.step(tokens, state, self.tap)


def _start_generation(
    model: SequenceModel,
    source: Tensor | None,
    source_mask: Tensor | None,
    decoding: DecodingConfig,
    prefixes: Prefixes | None,
    tap: Tap,
) -> tuple[_TappedModel, Any, list[int], Tensor | None]:
    """Read the source: the stepper, its state, the greatest length for each sentence, and the mask of the source."""
    if source is None:
        if prefixes is None:
            raise DataError("neither source nor prefixes were given; without a source, give each row a prefix")
        longest = [decoding.length.max_new_tokens(len(prefix)) for prefix in prefixes]
        return _TappedModel(model, tap), model.start(None, len(prefixes)), longest, None
    memory = model.encode(source, source_mask, tap)
    length, mask = source.shape[1], source_mask
    if isinstance(memory, Memory):  # of a sound, which is longer than what is remembered of it
        length, mask = memory.states.shape[1], memory.mask
    mask = torch.ones(len(source), length, dtype=torch.bool, device=source.device) if mask is None else mask
    state = model.start(memory, source.shape[0])
    return _TappedModel(model, tap), state, [decoding.length.max_new_tokens(int(n)) for n in mask.sum(1).tolist()], mask


@contextmanager
def _evaluation_mode(model: SequenceModel) -> Iterator[None]:
    """Turn dropout off, and leave the model as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _get_device(model: SequenceModel) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of tokens as a tensor (rows, longest) padded with 0, and which of it is real."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]
