"""Beam search over anything that can step, under rules that are named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qkv.decoding.coverage import Coverage
from qkv.decoding.options import Beam, may_stop
from qkv.decoding.phrases import shared_out
from qkv.decoding.stepping import Constraints, Hypothesis, Stepper
from qkv.errors import DataError

DEAD = -torch.inf
_MOST_BANKS = 32


@torch.no_grad()
def beam(
    stepper: Stepper,
    state: Any,
    constraints: Constraints,
    options: Beam | None = None,
    coverage: Coverage | None = None,
) -> list[list[Hypothesis]]:
    """Search each sentence for its highest-scoring continuations; at most n_best a sentence, best first, at least one.

    `state` has one row a sentence. Sentences that are done leave the batch; no sentence changes another's result.
    A hypothesis with score -inf says that nothing was possible under the constraints. Where phrases must be held the
    beam is wider, by a hypothesis for each of their tokens, and the rules are `best`.
    """
    return _Search(stepper, constraints, options or Beam(), coverage).run(state)


class _Search:
    """The living hypotheses of all sentences that are not done, and the collected ones of all sentences.

    tokens (sentences, width, fed): what each living hypothesis was fed, the begin token included.
    living (sentences, width): their log-probabilities, highest first; -inf marks a filler.
    """

    def __init__(self, stepper: Stepper, constraints: Constraints, options: Beam, coverage: Coverage | None) -> None:
        if more := max((one.tokens for one in constraints.phrases or ()), default=0):
            # room for the banks; and the rules of programs that know no phrases say nothing of these
            options = replace(options, size=options.size + min(more, _MOST_BANKS), rules="best")
        self.stepper, self.constraints, self.options, self.coverage = stepper, constraints, options, coverage
        self.rules = options.resolved()
        self.given = constraints.given
        self.counted = self.rules.prefix == "counted"
        for prefix, longest in zip(constraints.prefixes or (), constraints.longest, strict=False):
            if self.counted and len(prefix) >= longest:
                raise DataError(
                    f"a prefix of {len(prefix)} tokens leaves no room under a greatest length of {longest}, which "
                    "counts the prefix under these rules; raise length.constant"
                )
        self.collected: list[list[Hypothesis]] = [[] for _ in self.given]
        self.sentences = list(range(len(self.given)))

    def run(self, state: Any) -> list[list[Hypothesis]]:
        log_probs, state = self._begin(state)
        while True:
            values, parents, choices = self._candidates(log_probs)
            self._collect(values, parents, choices)
            values, parents, choices = self._chosen(values, parents, choices)
            going = self._going(values)
            if not going:
                return [found[: self.options.n_best] for found in self.collected]
            state = self._move(state, going, values, parents, choices)
            logits, state = self.stepper.step(choices[going].reshape(-1, 1), state)
            if self.coverage:
                self.coverage.add()
            log_probs = torch.log_softmax(logits[:, -1].float(), -1).view(*self.living.shape, -1)

    def _begin(self, state: Any) -> tuple[Tensor, Any]:
        """Feed what all sentences are given, up to the shortest; (sentences, 1, vocab) log-probabilities come back."""
        common = min((len(given) for given in self.given), default=1)
        tokens = torch.tensor([given[:common] for given in self.given], device=self.constraints.device)
        logits, state = self.stepper.step(tokens, state)
        if self.coverage:
            self.coverage.add()
        self.tokens = tokens[:, None]
        self.living = torch.zeros(len(self.given), 1, device=tokens.device)
        if self.counted and common > 1:
            read = torch.log_softmax(logits[:, :-1].float(), -1).gather(2, tokens[:, 1:, None])
            self.living += read.sum(1)
        return torch.log_softmax(logits[:, -1:].float(), -1), state

    def _length(self, sentence: int) -> int:
        """The length, as the rules count it, that the next token gives the hypotheses of a sentence."""
        return self.tokens.shape[2] + 1 - (1 if self.counted else len(self.given[sentence]))

    def _last(self, sentence: int) -> bool:
        return self._length(sentence) >= self.constraints.longest[sentence]

    def _ended(self, choices: Tensor) -> Tensor:
        """Which of the tokens (sentences, ...) end an answer; one that a sentence is given ends none."""
        free = [self.tokens.shape[2] >= len(self.given[sentence]) for sentence in self.sentences]
        return self.constraints.ended(choices) & torch.tensor(free, device=choices.device)[:, None]

    def _candidates(self, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best 2K continuations, more with several ends: log-probability, hypothesis, token, (sentences, 2K)."""
        fed, vocab = self.tokens.shape[2], log_probs.shape[-1]
        owns = [self.given[sentence] for sentence in self.sentences]
        forced = [own[fed] if fed < len(own) else None for own in owns]
        lengths = [self._length(one) for one in self.sentences]
        self.constraints.restrict(log_probs, self.sentences, forced, lengths, self.counted)
        if self.rules.at_length == "forced":
            last = [group for group, sentence in enumerate(self.sentences) if self._last(sentence)]
            others = ~self.constraints.ended(torch.arange(vocab, device=log_probs.device))
            log_probs[last] = log_probs[last].masked_fill(others, DEAD)
        self._forbid(log_probs)
        totals = log_probs.add_(self.living[..., None]).flatten(1)
        wanted = max(2, 1 + len(self.constraints.ends)) * self.options.size  # of a hypothesis, every end may be best
        values, index = totals.topk(min(wanted, totals.shape[1]))
        if any(self.constraints.must(sentence) for sentence in self.sentences):
            more, real = self._advancing(totals, vocab)
            wanted += more.shape[1]
            real &= ~(index[:, :, None] == more[:, None]).any(1)
            values = torch.cat((values, totals.gather(1, more).masked_fill(~real, DEAD)), 1)
            values, order = values.sort(dim=1, descending=True, stable=True)
            index = torch.cat((index, more), 1).gather(1, order)
        missing = wanted - values.shape[1]  # a small vocabulary, at the first steps
        values = torch.nn.functional.pad(values, (0, missing), value=DEAD)
        index = torch.nn.functional.pad(index, (0, missing))
        return values, index // vocab, index % vocab

    def _answer(self, group: int, rank: int) -> list[int]:
        """The tokens that a living hypothesis has added to what its sentence was given."""
        tokens: list[int] = self.tokens[group, rank].tolist()[len(self.given[self.sentences[group]]) :]
        return tokens

    def _forbid(self, log_probs: Tensor) -> None:
        """What phrases forbid each living hypothesis to go on with."""
        if self.constraints.phrases is None:
            return
        for group, sentence in enumerate(self.sentences):
            if self.tokens.shape[2] >= len(self.given[sentence]):
                for rank in range(log_probs.shape[1]):
                    self.constraints.forbid(log_probs[group, rank], sentence, self._answer(group, rank))

    def _advancing(self, totals: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        """For sentences whose answers must hold phrases: what would add to these, the ends and each hypothesis' best.

        As indices (sentences, most) into hypotheses times vocabulary, and which of them are real.
        """
        found = []
        for group, sentence in enumerate(self.sentences):
            own: set[int] = set()
            if phrases := self.constraints.must(sentence):
                best = totals[group].view(-1, vocab).argmax(1).tolist()
                for rank, likely in enumerate(best):
                    wanted = phrases.adding(self._answer(group, rank))
                    own |= {rank * vocab + token for token in (likely, *wanted, *self.constraints.ends)}
            found.append(sorted(own))
        most = max(map(len, found))
        index = torch.tensor([own + [0] * (most - len(own)) for own in found], device=totals.device)
        counts = torch.tensor([len(own) for own in found], device=totals.device)
        return index, torch.arange(most, device=totals.device) < counts[:, None]

    def _chosen(self, values: Tensor, parents: Tensor, choices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which of the candidates live on: the best K that have not ended, or of each bank of phrases its best."""
        open_ = values.masked_fill(self._ended(choices), DEAD)
        kept, order = open_.topk(self.options.size)
        for group, sentence in enumerate(self.sentences):
            if phrases := self.constraints.must(sentence):
                able = [rank for rank, value in enumerate(open_[group].tolist()) if value > DEAD]
                banks = [
                    phrases.bank([*self._answer(group, int(parents[group, rank])), int(choices[group, rank])])
                    for rank in able
                ]
                own = [able[number] for number in shared_out(banks, self.options.size)]
                spare = [rank for rank in range(open_.shape[1]) if rank not in own][: self.options.size - len(own)]
                order[group] = torch.tensor(own + spare, device=order.device)
                kept[group] = open_[group, order[group]]
                kept[group, len(own) :] = DEAD
        return kept, parents.gather(1, order), choices.gather(1, order)

    def _collect(self, values: Tensor, parents: Tensor, choices: Tensor) -> None:
        """Put the candidates that ended, and at the greatest length those the rules keep, among the collected."""
        eligible = self._ended(choices)
        if self.rules.at_length == "kept":
            eligible[[group for group, sentence in enumerate(self.sentences) if self._last(sentence)]] = True
        if self.rules.counts == "best-k":
            eligible[:, self.options.size :] = False
        self.penalties = self.coverage.penalty().tolist() if self.coverage else None
        for group, rank in (eligible & (values > DEAD)).nonzero().tolist():
            self._add(group, int(parents[group, rank]), [int(choices[group, rank])], float(values[group, rank]))
        for group, sentence in enumerate(self.sentences):
            if self.rules.at_length == "kept-if-none-ended" and self._last(sentence) and not self.collected[sentence]:
                for rank in (values[group] > DEAD).nonzero().flatten().tolist()[: self.options.size]:
                    self._add(group, int(parents[group, rank]), [int(choices[group, rank])], float(values[group, rank]))

    def _add(self, group: int, parent: int, more: list[int], log_probability: float) -> None:
        sentence = self.sentences[group]
        found, size = self.collected[sentence], self.options.size
        if self.rules.holds == "first-k" and len(found) == size:
            return
        score = log_probability / self.options.length_penalty(self._length(sentence))
        if self.penalties:
            score += self.penalties[group * self.tokens.shape[1] + parent]
        tokens = (*self.tokens[group, parent].tolist()[self.constraints.hidden :], *more)
        found.append(Hypothesis(tokens, score, log_probability, tokens[-1] in self.constraints.ends))
        found.sort(key=lambda hypothesis: -hypothesis.score)
        del found[size:]

    def _going(self, values: Tensor) -> list[int]:
        """Which of the sentences go on, given the log-probabilities of their next living hypotheses."""
        going = []
        for group, (sentence, living) in enumerate(zip(self.sentences, values[:, 0].tolist(), strict=True)):
            found, length, limit = self.collected[sentence], self._length(sentence), self.constraints.longest[sentence]
            if self._last(sentence) or living == DEAD:
                if not found:
                    tokens = tuple(self.tokens[group, 0].tolist()[self.constraints.hidden :])
                    found.append(Hypothesis(tokens, DEAD, float(self.living[group, 0]), False))
            elif not may_stop(self.options, [one.score for one in found], living, length, limit):
                going.append(group)
        return going

    def _move(self, state: Any, going: list[int], values: Tensor, parents: Tensor, choices: Tensor) -> Any:
        """Keep the sentences that go on and let each hypothesis follow its parent; return the state reordered."""
        width, rows = self.tokens.shape[1], self.tokens.shape[0] * self.tokens.shape[1]
        groups = torch.tensor(going, device=values.device)
        index = (groups[:, None] * width + parents[groups]).flatten()
        self.sentences = [self.sentences[group] for group in going]
        self.living = values[groups]
        before = self.tokens.flatten(0, 1)[index].view(len(going), self.options.size, -1)
        self.tokens = torch.cat((before, choices[groups][..., None]), -1)
        if index.shape[0] == rows and torch.equal(index, torch.arange(rows, device=index.device)):
            return state
        if self.coverage:
            self.coverage.reorder(index)
        return state.reorder(index)
