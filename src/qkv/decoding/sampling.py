"""One token after another, without looking back: greedy decoding, sampling and the stream of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkv.decoding.config import Sample
from qkv.decoding.rules import AutoregressiveModel, Hypothesis, SearchRules

TokenSelector = Callable[[Tensor], Tensor]
"""From log-probabilities (rows, vocab) to tokens (rows,)."""


@dataclass(frozen=True)
class Step:
    """One token that one row took. row counts sentence by sentence, all draws of the first sentence first."""

    row: int
    token: int
    log_probability: float


def greedy_search(model: AutoregressiveModel, state: Any, rules: SearchRules) -> list[Hypothesis]:
    """Take the most probable token at every step; one hypothesis a sentence."""
    return _collect_hypotheses(generate_steps(model, state, rules, select_most_probable), rules, 1)


def sample(
    model: AutoregressiveModel,
    state: Any,
    rules: SearchRules,
    config: Sample | None = None,
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Draw n_best continuations of every sentence, in the order they were drawn.

    Scores are the log-probabilities under the model itself, before temperature, top_k and top_p.
    """
    config = config or Sample()
    steps = generate_steps(model, state, rules, make_sampler(config, generator), config.n_best)
    found = _collect_hypotheses(steps, rules, config.n_best)
    return [found[first : first + config.n_best] for first in range(0, len(found), config.n_best)]


def select_most_probable(log_probs: Tensor) -> Tensor:
    """Select the most probable token of each row, as greedy decoding does."""
    return log_probs.argmax(-1)


def make_sampler(config: Sample, generator: torch.Generator | None = None) -> TokenSelector:
    """Build the function that samples the next token of each row."""

    def choose(log_probs: Tensor) -> Tensor:
        probabilities = torch.softmax(filter_logits(log_probs, config), -1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    return choose


def filter_logits(logits: Tensor, config: Sample) -> Tensor:
    """Return the logits (rows, vocab) after temperature, top_k and top_p; tokens that cannot be drawn have -inf."""
    logits = logits / config.temperature
    if 0 < config.top_k < logits.shape[-1]:
        weakest = logits.topk(config.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < weakest, -torch.inf)
    if config.top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        # A token stays if those before it do not reach top_p by themselves, so the first always stays.
        unneeded = probabilities.cumsum(-1) - probabilities >= config.top_p
        unneeded[..., 0] = False
        logits = logits.masked_fill(torch.zeros_like(unneeded).scatter(-1, order, unneeded), -torch.inf)
    return logits


@torch.no_grad()
def generate_steps(
    model: AutoregressiveModel, state: Any, rules: SearchRules, select_tokens: TokenSelector, n_best: int = 1
) -> Iterator[list[Step]]:
    """Yield, step by step, the next token of each unfinished row; forced prefixes are not yielded.

    `state` has one row for each sentence, from which `copies` rows continue. Rows that are done leave the batch.
    """
    given = rules.prompts
    common = min((len(one) for one in given), default=1)
    tokens = torch.tensor([one[:common] for one in given], device=rules.device)
    logits, state = model.step(tokens, state)
    rows = list(range(len(given) * n_best))
    written: list[list[int]] = [[] for _ in rows]
    index = torch.arange(len(rows), device=tokens.device) // n_best
    fed = common
    if n_best > 1:
        state, logits = state.reorder(index), logits[index]
    while True:
        log_probs = torch.log_softmax(logits[:, -1].float(), -1)
        owns = [given[row // n_best] for row in rows]
        forced = [own[fed] if fed < len(own) else None for own in owns]
        rules.mask_log_probs(log_probs, [row // n_best for row in rows], forced, [fed + 1 - len(own) for own in owns])
        for place, (row, held) in enumerate(zip(rows, forced, strict=True)):
            if held is None:
                rules.mask_phrases(log_probs[place], row // n_best, written[row])
        chosen = select_tokens(log_probs)
        values = log_probs.gather(1, chosen[:, None])[:, 0].tolist()
        taken = [Step(row, token, value) for row, token, value in zip(rows, chosen.tolist(), values, strict=True)]
        yield [one for one, held in zip(taken, forced, strict=True) if held is None]
        for one, held in zip(taken, forced, strict=True):
            if held is None:
                written[one.row].append(one.token)
        fed += 1
        staying = []
        for place, (one, held) in enumerate(zip(taken, forced, strict=True)):
            sentence = one.row // n_best
            ended = one.token in rules.eos_tokens and held is None
            if not ended and fed - len(given[sentence]) < rules.max_new_tokens[sentence]:
                staying.append(place)
        if not staying:
            return
        if len(staying) < len(rows):
            index = torch.tensor(staying, device=tokens.device)
            rows, chosen, state = [rows[place] for place in staying], chosen[index], state.reorder(index)
        logits, state = model.step(chosen[:, None], state)


def _collect_hypotheses(steps: Iterator[list[Step]], rules: SearchRules, n_best: int) -> list[Hypothesis]:
    rows = len(rules.max_new_tokens) * n_best
    given = rules.prompts
    tokens = [given[row // n_best][rules.num_bos_tokens :] for row in range(rows)]
    sums = [0.0] * rows
    for step in steps:
        for one in step:
            tokens[one.row].append(one.token)
            sums[one.row] += one.log_probability
    return [
        Hypothesis(tuple(own), total, total, bool(own) and own[-1] in rules.eos_tokens)
        for own, total in zip(tokens, sums, strict=True)
    ]
