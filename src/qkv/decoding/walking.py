"""One token after another, without looking back: greedy decoding, sampling and the stream of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkv.decoding.options import Sample
from qkv.decoding.stepping import Constraints, Hypothesis, Stepper

Choose = Callable[[Tensor], Tensor]
"""From log-probabilities (rows, vocab) to tokens (rows,)."""


@dataclass(frozen=True)
class Taken:
    """One token that one row took. row counts sentence by sentence, all draws of the first sentence first."""

    row: int
    token: int
    log_probability: float


def greedy(stepper: Stepper, state: Any, constraints: Constraints) -> list[Hypothesis]:
    """Take the most probable token at every step; one hypothesis a sentence."""
    return _gather(walk(stepper, state, constraints, most_probable), constraints, 1)


def sample(
    stepper: Stepper,
    state: Any,
    constraints: Constraints,
    options: Sample | None = None,
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Draw n_best continuations of every sentence, in the order they were drawn.

    Scores are the log-probabilities under the model itself, before temperature, top_k and top_p.
    """
    options = options or Sample()
    steps = walk(stepper, state, constraints, drawn(options, generator), options.n_best)
    found = _gather(steps, constraints, options.n_best)
    return [found[first : first + options.n_best] for first in range(0, len(found), options.n_best)]


def most_probable(log_probs: Tensor) -> Tensor:
    """The choice of greedy decoding."""
    return log_probs.argmax(-1)


def drawn(options: Sample, generator: torch.Generator | None = None) -> Choose:
    """The choice of sampling."""

    def choose(log_probs: Tensor) -> Tensor:
        probabilities = torch.softmax(narrowed(log_probs, options), -1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    return choose


def narrowed(logits: Tensor, options: Sample) -> Tensor:
    """Logits (rows, vocab) after temperature, top_k and top_p; what cannot be drawn is -inf."""
    logits = logits / options.temperature
    if 0 < options.top_k < logits.shape[-1]:
        weakest = logits.topk(options.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < weakest, -torch.inf)
    if options.top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        # A token stays if those before it do not reach top_p by themselves, so the first always stays.
        unneeded = probabilities.cumsum(-1) - probabilities >= options.top_p
        unneeded[..., 0] = False
        logits = logits.masked_fill(torch.zeros_like(unneeded).scatter(-1, order, unneeded), -torch.inf)
    return logits


@torch.no_grad()
def walk(
    stepper: Stepper, state: Any, constraints: Constraints, choose: Choose, copies: int = 1
) -> Iterator[list[Taken]]:
    """Yield, step by step, what each row that is not done takes; forced prefixes are not yielded.

    `state` has one row a sentence; `copies` rows walk on from it. Rows that are done leave the batch.
    """
    given = constraints.given
    common = min((len(one) for one in given), default=1)
    tokens = torch.tensor([one[:common] for one in given], device=constraints.device)
    logits, state = stepper.step(tokens, state)
    rows = list(range(len(given) * copies))
    written: list[list[int]] = [[] for _ in rows]
    index = torch.arange(len(rows), device=tokens.device) // copies
    fed = common
    if copies > 1:
        state, logits = state.reorder(index), logits[index]
    while True:
        log_probs = torch.log_softmax(logits[:, -1].float(), -1)
        owns = [given[row // copies] for row in rows]
        forced = [own[fed] if fed < len(own) else None for own in owns]
        constraints.restrict(log_probs, [row // copies for row in rows], forced, [fed + 1 - len(own) for own in owns])
        for place, (row, held) in enumerate(zip(rows, forced, strict=True)):
            if held is None:
                constraints.forbid(log_probs[place], row // copies, written[row])
        chosen = choose(log_probs)
        values = log_probs.gather(1, chosen[:, None])[:, 0].tolist()
        taken = [Taken(row, token, value) for row, token, value in zip(rows, chosen.tolist(), values, strict=True)]
        yield [one for one, held in zip(taken, forced, strict=True) if held is None]
        for one, held in zip(taken, forced, strict=True):
            if held is None:
                written[one.row].append(one.token)
        fed += 1
        staying = []
        for place, (one, held) in enumerate(zip(taken, forced, strict=True)):
            sentence = one.row // copies
            ended = one.token in constraints.ends and held is None
            if not ended and fed - len(given[sentence]) < constraints.longest[sentence]:
                staying.append(place)
        if not staying:
            return
        if len(staying) < len(rows):
            index = torch.tensor(staying, device=tokens.device)
            rows, chosen, state = [rows[place] for place in staying], chosen[index], state.reorder(index)
        logits, state = stepper.step(chosen[:, None], state)


def _gather(steps: Iterator[list[Taken]], constraints: Constraints, copies: int) -> list[Hypothesis]:
    rows = len(constraints.longest) * copies
    given = constraints.given
    tokens = [given[row // copies][constraints.hidden :] for row in range(rows)]
    sums = [0.0] * rows
    for step in steps:
        for one in step:
            tokens[one.row].append(one.token)
            sums[one.row] += one.log_probability
    return [
        Hypothesis(tuple(own), total, total, bool(own) and own[-1] in constraints.ends)
        for own, total in zip(tokens, sums, strict=True)
    ]
