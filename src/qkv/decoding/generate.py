"""From a source to its hypotheses, with any `SequenceModel`: the one way that validation, tests and users decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qkv.cache import Memory
from qkv.decoding.beam_search import run_beam_search
from qkv.decoding.config import Beam, DecodingConfig, Greedy, Sample
from qkv.decoding.coverage import Coverage, CrossAttentionTap
from qkv.decoding.rules import Hypothesis, SearchRules
from qkv.decoding.sampling import generate_steps, greedy_search, make_sampler, sample, select_most_probable
from qkv.errors import ConfigError, DataError
from qkv.generation_rules import GenerationRules
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap


@torch.no_grad()
def generate_batch(
    model: SequenceModel,
    source: Tensor | None = None,
    source_mask: Tensor | None = None,
    *,
    rules: GenerationRules,
    decoding: DecodingConfig | None = None,
    generator: torch.Generator | None = None,
    tap: Tap = NO_TAP,
) -> list[list[Hypothesis]]:
    """Find the answers to a batch; for every sentence its hypotheses, best first, at least one.

    source (batch, sources), source_mask the same, True = a real token; None for a model without an encoder, whose
    prompts are the prefixes of the rules. generator: for sampling. tap: sees and changes every step. Dropout is off
    meanwhile. Raises DataError for rules that contradict themselves, ConfigError for a decoding that cannot keep to
    them.
    """
    decoding = decoding or DecodingConfig()
    method = decoding.method
    if not isinstance(method, Beam) and any(one.include for one in rules.constraints or ()):
        raise ConfigError(
            [f"method={method}: an answer that must contain phrases is found by a beam search; use a beam"]
        )
    with _evaluation_mode(model):
        stepper, state, longest, mask = _start_generation(model, source, source_mask, decoding, rules, tap)
        search = SearchRules.build(rules, longest, decoding.length.min_new_tokens, _get_device(model))
        if isinstance(method, Greedy):
            return [[hypothesis] for hypothesis in greedy_search(stepper, state, search)]
        if isinstance(method, Sample):
            return sample(stepper, state, search, method, generator)
        if not method.coverage_penalty:
            return run_beam_search(stepper, state, search, method)
        if mask is None:
            raise ConfigError(
                [f"coverage_penalty={method.coverage_penalty}: this model reads no source to cover; expected 0"]
            )
        watch = CrossAttentionTap(tap)
        coverage = Coverage(method.coverage_penalty, watch.received, mask)
        return run_beam_search(_TappedModel(model, watch), state, search, method, coverage)


def generate_all(
    model: SequenceModel,
    sources: Sequence[Sequence[int]] | None,
    *,
    rules: GenerationRules,
    decoding: DecodingConfig | None = None,
    generator: torch.Generator | None = None,
    batch_tokens: int = 4096,
    tap: Tap = NO_TAP,
) -> list[list[Hypothesis]]:
    """Find the answers to any number of sources, given as token ids; one in, one out, in the order given.

    A model without an encoder is given None, and continues the prefixes of the rules. Sources of like length are
    decoded together, as many as have `batch_tokens` tokens, padding and beams included. Prompts whose
    lengths differ by more than an answer may have are not: the rest of the longer one would be processed token by
    token, along with the answers of the shorter.
    """
    decoding = decoding or DecodingConfig()
    method = decoding.method
    width = method.size if isinstance(method, Beam) else method.n_best if isinstance(method, Sample) else 1
    given = sources if sources is not None else rules.prefixes or ()
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
        results = generate_batch(
            model,
            source,
            mask,
            rules=rules.select_rows(numbers),
            decoding=decoding,
            generator=generator,
            tap=tap,
        )
        found.update(zip(numbers, results, strict=True))
    return [found[number] for number in range(len(given))]


@torch.no_grad()
def stream_tokens(
    model: SequenceModel,
    source: Tensor | None = None,
    *,
    rules: GenerationRules,
    decoding: DecodingConfig | None = None,
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
    rules = rules if rules.prefixes is not None or source is None else replace(rules, prefixes=[()])
    if source is not None and source.shape[0] != 1:
        raise DataError(f"a stream was given {source.shape[0]} sources; it has one answer, give one")
    choose = make_sampler(method, generator) if isinstance(method, Sample) else select_most_probable
    with _evaluation_mode(model):
        stepper, state, longest, _ = _start_generation(model, source, None, decoding, rules, tap)
        search = SearchRules.build(rules, longest, decoding.length.min_new_tokens, _get_device(model))
        for step in generate_steps(stepper, state, search, choose):
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
    """Return the log-probability of every token of given targets, as `Hypothesis.tokens` has them (no begin token).

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
    tap.check_applied(positions=False)  # rows may be of any length
    values = torch.log_softmax(logits.float(), -1).gather(2, true[..., None])[..., 0]
    return [row[: len(one) - 1] for row, one in zip(values.tolist(), whole, strict=True)]


class _TappedModel:
    """A model with a tap on it, as a stepper."""

    def __init__(self, model: SequenceModel, tap: Tap) -> None:
        self.model, self.tap = model, tap
        self._checked = False

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        answer = self.model.step(tokens, state, self.tap)
        if not self._checked:  # after the first step, every place has been passed: fail now rather than at the end
            self.tap.check_applied(positions=False)
            self._checked = True
        return answer


def _start_generation(
    model: SequenceModel,
    source: Tensor | None,
    source_mask: Tensor | None,
    decoding: DecodingConfig,
    rules: GenerationRules,
    tap: Tap,
) -> tuple[_TappedModel, Any, list[int], Tensor | None]:
    """Read the source: the stepper, its state, the greatest length for each sentence, and the mask of the source."""
    if source is None:
        prefixes = rules.prefixes
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
    """Return rows of tokens as a tensor (rows, longest) padded with 0, and a mask, False for padding."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]
