"""Beam search over anything that can step, under rules that are named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qkv.decoding.config import Beam, can_stop
from qkv.decoding.constraints import allocate_beam
from qkv.decoding.coverage import Coverage
from qkv.decoding.rules import AutoregressiveModel, Hypothesis, SearchRules
from qkv.errors import DataError

NEG_INF = -torch.inf
_MAX_EXTRA_HYPOTHESES = 32


@torch.no_grad()
def run_beam_search(
    model: AutoregressiveModel,
    state: Any,
    rules: SearchRules,
    config: Beam | None = None,
    coverage: Coverage | None = None,
) -> list[list[Hypothesis]]:
    """Return the highest-scoring continuations of each sentence: at least one and at most n_best, best first.

    `state` has one row for each sentence. Sentences that are done leave the batch; no sentence changes another's
    result. A hypothesis with score -inf means that no answer satisfies the constraints. Where answers
    must include phrases, the beam is wider, by a hypothesis for each of their tokens, and the rules are `best`.
    """
    return _BeamSearch(model, rules, config or Beam(), coverage).run(state)


class _BeamSearch:
    """The living hypotheses of all sentences that are not done, and the collected ones of all sentences.

    tokens (sentences, width, fed): what each living hypothesis was fed, the begin token included.
    living (sentences, width): their log-probabilities, highest first; -inf marks a filler.
    """

    def __init__(
        self, model: AutoregressiveModel, generation_rules: SearchRules, config: Beam, coverage: Coverage | None
    ) -> None:
        if more := max((one.num_included_tokens for one in generation_rules.constraints or ()), default=0):
            # room for the banks; and the rules of programs that know no phrases say nothing of these
            config = replace(config, size=config.size + min(more, _MAX_EXTRA_HYPOTHESES), rules="best")
        self.model, self.generation_rules, self.config, self.coverage = model, generation_rules, config, coverage
        self.beam_rules = config.resolve_rules()
        self.prompts = generation_rules.prompts
        self.is_prefix_scored = self.beam_rules.prefix == "scored"
        for prefix, longest in zip(generation_rules.prefixes or (), generation_rules.max_new_tokens, strict=False):
            if self.is_prefix_scored and len(prefix) >= longest:
                raise DataError(
                    f"a prefix of {len(prefix)} tokens leaves no room under a greatest length of {longest}, which "
                    "counts the prefix under these rules; raise length.constant"
                )
        self.finished: list[list[Hypothesis]] = [[] for _ in self.prompts]
        self.sentences = list(range(len(self.prompts)))

    def run(self, state: Any) -> list[list[Hypothesis]]:
        log_probs, state = self._prefill(state)
        while True:
            values, parents, choices = self._rank_candidates(log_probs)
            self._collect_finished(values, parents, choices)
            values, parents, choices = self._select_survivors(values, parents, choices)
            going = self._unfinished_sentences(values)
            if not going:
                return [found[: self.config.n_best] for found in self.finished]
            state = self._advance(state, going, values, parents, choices)
            logits, state = self.model.step(choices[going].reshape(-1, 1), state)
            if self.coverage:
                self.coverage.update()
            log_probs = torch.log_softmax(logits[:, -1].float(), -1).view(*self.log_probabilities.shape, -1)

    def _prefill(self, state: Any) -> tuple[Tensor, Any]:
        """Feed what all sentences are given, up to the shortest; (sentences, 1, vocab) log-probabilities come back."""
        common = min((len(given) for given in self.prompts), default=1)
        tokens = torch.tensor([given[:common] for given in self.prompts], device=self.generation_rules.device)
        logits, state = self.model.step(tokens, state)
        if self.coverage:
            self.coverage.update()
        self.tokens = tokens[:, None]
        self.log_probabilities = torch.zeros(len(self.prompts), 1, device=tokens.device)
        if self.is_prefix_scored and common > 1:
            read = torch.log_softmax(logits[:, :-1].float(), -1).gather(2, tokens[:, 1:, None])
            self.log_probabilities += read.sum(1)
        return torch.log_softmax(logits[:, -1:].float(), -1), state

    def _length(self, sentence: int) -> int:
        """Return the length, as the rules count it, of the hypotheses of a sentence after the next token."""
        return self.tokens.shape[2] + 1 - (1 if self.is_prefix_scored else len(self.prompts[sentence]))

    def _is_last_step(self, sentence: int) -> bool:
        return self._length(sentence) >= self.generation_rules.max_new_tokens[sentence]

    def _is_end(self, tokens: Tensor) -> Tensor:
        """Return which of the tokens (sentences, ...) end an answer; a token of a forced prefix ends none."""
        free = [self.tokens.shape[2] >= len(self.prompts[sentence]) for sentence in self.sentences]
        return self.generation_rules.is_eos(tokens) & torch.tensor(free, device=tokens.device)[:, None]

    def _rank_candidates(self, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best 2K continuations, more with several end tokens: (sentences, 2K) each."""
        fed, vocab = self.tokens.shape[2], log_probs.shape[-1]
        owns = [self.prompts[sentence] for sentence in self.sentences]
        forced = [own[fed] if fed < len(own) else None for own in owns]
        lengths = [self._length(one) for one in self.sentences]
        self.generation_rules.mask_log_probs(log_probs, self.sentences, forced, lengths, self.is_prefix_scored)
        if self.beam_rules.at_max_length == "forced":
            last = [group for group, sentence in enumerate(self.sentences) if self._is_last_step(sentence)]
            others = ~self.generation_rules.is_eos(torch.arange(vocab, device=log_probs.device))
            log_probs[last] = log_probs[last].masked_fill(others, NEG_INF)
        self._mask_phrases(log_probs)
        totals = log_probs.add_(self.log_probabilities[..., None]).flatten(1)
        n_candidates = (
            max(2, 1 + len(self.generation_rules.eos_tokens)) * self.config.size
        )  # of a hypothesis, every end may be best
        values, index = totals.topk(min(n_candidates, totals.shape[1]))
        if any(self.generation_rules.required_phrases(sentence) for sentence in self.sentences):
            more, real = self._advancing_candidates(totals, vocab)
            n_candidates += more.shape[1]
            real &= ~(index[:, :, None] == more[:, None]).any(1)
            values = torch.cat((values, totals.gather(1, more).masked_fill(~real, NEG_INF)), 1)
            values, order = values.sort(dim=1, descending=True, stable=True)
            index = torch.cat((index, more), 1).gather(1, order)
        missing = n_candidates - values.shape[1]  # a small vocabulary, at the first steps
        values = torch.nn.functional.pad(values, (0, missing), value=NEG_INF)
        index = torch.nn.functional.pad(index, (0, missing))
        return values, index // vocab, index % vocab

    def _generated_tokens(self, group: int, rank: int) -> list[int]:
        """Return the tokens that an unfinished hypothesis has generated after the prefix of its sentence."""
        tokens: list[int] = self.tokens[group, rank].tolist()[len(self.prompts[self.sentences[group]]) :]
        return tokens

    def _mask_phrases(self, log_probs: Tensor) -> None:
        """Mask the tokens with which each unfinished hypothesis would complete an excluded phrase."""
        if self.generation_rules.constraints is None:
            return
        for group, sentence in enumerate(self.sentences):
            if self.tokens.shape[2] >= len(self.prompts[sentence]):
                for rank in range(log_probs.shape[1]):
                    self.generation_rules.mask_phrases(
                        log_probs[group, rank], sentence, self._generated_tokens(group, rank)
                    )

    def _advancing_candidates(self, totals: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
        """Return candidates for required phrases: tokens that advance one, end tokens, and the likeliest tokens.

        As indices (sentences, most) into hypotheses times vocabulary, and which of them are real.
        """
        found = []
        for group, sentence in enumerate(self.sentences):
            own: set[int] = set()
            if phrases := self.generation_rules.required_phrases(sentence):
                best = totals[group].view(-1, vocab).argmax(1).tolist()
                for rank, likely in enumerate(best):
                    advancing = phrases.advancing_tokens(self._generated_tokens(group, rank))
                    own |= {rank * vocab + token for token in (likely, *advancing, *self.generation_rules.eos_tokens)}
            found.append(sorted(own))
        most = max(map(len, found))
        index = torch.tensor([own + [0] * (most - len(own)) for own in found], device=totals.device)
        counts = torch.tensor([len(own) for own in found], device=totals.device)
        return index, torch.arange(most, device=totals.device) < counts[:, None]

    def _select_survivors(self, values: Tensor, parents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which candidates are kept: the best K that have not ended, or the best of each bank of phrases."""
        open_ = values.masked_fill(self._is_end(tokens), NEG_INF)
        kept, order = open_.topk(self.config.size)
        for group, sentence in enumerate(self.sentences):
            if phrases := self.generation_rules.required_phrases(sentence):
                able = [rank for rank, value in enumerate(open_[group].tolist()) if value > NEG_INF]
                banks = [
                    phrases.find_bank(
                        [*self._generated_tokens(group, int(parents[group, rank])), int(tokens[group, rank])]
                    )
                    for rank in able
                ]
                own = [able[number] for number in allocate_beam(banks, self.config.size)]
                spare = [rank for rank in range(open_.shape[1]) if rank not in own][: self.config.size - len(own)]
                order[group] = torch.tensor(own + spare, device=order.device)
                kept[group] = open_[group, order[group]]
                kept[group, len(own) :] = NEG_INF
        return kept, parents.gather(1, order), tokens.gather(1, order)

    def _collect_finished(self, values: Tensor, parents: Tensor, tokens: Tensor) -> None:
        """Put the candidates that ended, and at the greatest length those the rules keep, among the collected."""
        eligible = self._is_end(tokens)
        if self.beam_rules.at_max_length == "kept":
            eligible[[group for group, sentence in enumerate(self.sentences) if self._is_last_step(sentence)]] = True
        if self.beam_rules.candidates == "best-k":
            eligible[:, self.config.size :] = False
        self.penalties = self.coverage.penalty().tolist() if self.coverage else None
        for group, rank in (eligible & (values > NEG_INF)).nonzero().tolist():
            self._add_finished(group, int(parents[group, rank]), [int(tokens[group, rank])], float(values[group, rank]))
        for group, sentence in enumerate(self.sentences):
            if (
                self.beam_rules.at_max_length == "kept-if-none-ended"
                and self._is_last_step(sentence)
                and not self.finished[sentence]
            ):
                for rank in (values[group] > NEG_INF).nonzero().flatten().tolist()[: self.config.size]:
                    self._add_finished(
                        group, int(parents[group, rank]), [int(tokens[group, rank])], float(values[group, rank])
                    )

    def _add_finished(self, group: int, parent: int, more: list[int], log_probability: float) -> None:
        sentence = self.sentences[group]
        found, size = self.finished[sentence], self.config.size
        if self.beam_rules.finished_pool == "first-k" and len(found) == size:
            return
        score = log_probability / self.config.length_penalty(self._length(sentence))
        if self.penalties:
            score += self.penalties[group * self.tokens.shape[1] + parent]
        tokens = (*self.tokens[group, parent].tolist()[self.generation_rules.num_bos_tokens :], *more)
        found.append(Hypothesis(tokens, score, log_probability, tokens[-1] in self.generation_rules.eos_tokens))
        found.sort(key=lambda hypothesis: -hypothesis.score)
        del found[size:]

    def _unfinished_sentences(self, values: Tensor) -> list[int]:
        """Return which sentences are unfinished, given the log-probabilities of their next unfinished hypotheses."""
        going = []
        for group, (sentence, living) in enumerate(zip(self.sentences, values[:, 0].tolist(), strict=True)):
            found, length, limit = (
                self.finished[sentence],
                self._length(sentence),
                self.generation_rules.max_new_tokens[sentence],
            )
            if self._is_last_step(sentence) or living == NEG_INF:
                if not found:
                    tokens = tuple(self.tokens[group, 0].tolist()[self.generation_rules.num_bos_tokens :])
                    found.append(Hypothesis(tokens, NEG_INF, float(self.log_probabilities[group, 0]), False))
            elif not can_stop(self.config, [one.score for one in found], living, length, limit):
                going.append(group)
        return going

    def _advance(self, state: Any, unfinished: list[int], values: Tensor, parents: Tensor, tokens: Tensor) -> Any:
        """Keep the unfinished sentences, let each hypothesis follow its parent, and return the reordered state."""
        width, rows = self.tokens.shape[1], self.tokens.shape[0] * self.tokens.shape[1]
        groups = torch.tensor(unfinished, device=values.device)
        index = (groups[:, None] * width + parents[groups]).flatten()
        self.sentences = [self.sentences[group] for group in unfinished]
        self.log_probabilities = values[groups]
        before = self.tokens.flatten(0, 1)[index].view(len(unfinished), self.config.size, -1)
        self.tokens = torch.cat((before, tokens[groups][..., None]), -1)
        if index.shape[0] == rows and torch.equal(index, torch.arange(rows, device=index.device)):
            return state
        if self.coverage:
            self.coverage.reorder(index)
        return state.reorder(index)
