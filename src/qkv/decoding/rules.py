"""What a search needs from the thing it searches, what binds it, and what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from qkv.decoding.constraints import PhraseConstraints
from qkv.errors import DataError
from qkv.generation_rules import GenerationRules


class AutoregressiveModel(Protocol):
    """Anything that can say what comes next; every `SequenceModel` is one.

    Its state has `reorder(index)`, which picks or repeats rows by `index` (new_rows,) and returns the new state;
    the old one is not used again.
    """

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take the next tokens (rows, n); return logits or log-probabilities (rows, n, vocab) and the state after."""


@dataclass(frozen=True)
class Hypothesis:
    """A sequence that was found.

    tokens: its token ids without the begin token; with the forced prefix, and with the end token if it ended.
    score: what it was ranked by. log_probability: of its tokens, natural logarithm; a prefix that was given counts 0.
    """

    tokens: tuple[int, ...]
    score: float
    log_probability: float
    is_finished: bool


@dataclass(frozen=True)
class SearchRules:
    """The rules of one search: those of generation, and the lengths of its rows.

    max_new_tokens: the greatest number of tokens to generate for each row, the end included. min_new_tokens: the
    fewest, likewise. The rest is as in `GenerationRules`; forced tokens count in the length of an answer and not in its
    log-probability, and precede a prefix if there is one.
    """

    max_new_tokens: Sequence[int]
    bos: int | None
    eos: int | Sequence[int]
    suppress_tokens: Sequence[int] = ()
    min_new_tokens: int = 1
    prefixes: Sequence[Sequence[int]] | None = None
    device: torch.device | str = "cpu"
    forced_prefix: Sequence[int] = ()
    forced_eos: int | None = None
    begin_suppress_tokens: Sequence[int] = ()
    constraints: Sequence[PhraseConstraints] | None = None

    @classmethod
    def build(
        cls, rules: GenerationRules, max_new_tokens: Sequence[int], min_new_tokens: int, device: torch.device | str
    ) -> SearchRules:
        """Return what one search keeps to, whose rows may have `max_new_tokens` each."""
        return cls(
            max_new_tokens,
            rules.bos,
            rules.eos,
            rules.suppress_tokens,
            min_new_tokens,
            rules.prefixes,
            device,
            rules.forced_prefix,
            rules.forced_eos,
            rules.begin_suppress_tokens,
            rules.constraints,
        )

    def __post_init__(self) -> None:
        if self.constraints is not None and len(self.constraints) != len(self.max_new_tokens):
            raise DataError(
                f"constraints for {len(self.constraints)} of {len(self.max_new_tokens)} sentences; give each its "
                f"own, empty for none"
            )
        if self.prefixes is not None and len(self.prefixes) != len(self.max_new_tokens):
            raise DataError(
                f"{len(self.prefixes)} prefixes for {len(self.max_new_tokens)} sentences; give one each, empty for none"
            )
        # a prompt may hold several texts, each with its end; what an answer is forced to begin with may not
        prompts = self.bos is None or self.bos in self.eos_tokens
        for number, prefix in enumerate(() if prompts else self.prefixes or ()):
            for end in set(self.eos_tokens) & set(prefix):
                raise DataError(
                    f"prefix {number} holds the end token {end}, after which nothing can follow; "
                    "leave it out, or use score() for sequences that are whole"
                )
        if self.bos is None and not all(self.prefixes or [()]):
            raise DataError("without a begin token every sentence needs a prefix of at least one token; give either")
        if self.bos is None and self.forced_prefix:
            raise DataError(
                f"forced_prefix={list(self.forced_prefix)} was given without a begin token before it; give bos"
            )
        for end in set(self.eos_tokens) & set(self.suppress_tokens):
            raise DataError(f"the end token {end} is among suppress_tokens; take it out")

    @property
    def prompts(self) -> list[list[int]]:
        """What each sentence is fed before it is free, the begin token included."""
        begin = [] if self.bos is None else [self.bos]
        return [
            begin + [*(self.forced_prefix if prefix else ()), *prefix]
            for prefix in self.prefixes or [()] * len(self.max_new_tokens)
        ]

    @property
    def eos_tokens(self) -> tuple[int, ...]:
        """The end tokens."""
        return (self.eos,) if isinstance(self.eos, int) else tuple(self.eos)

    def is_eos(self, tokens: Tensor) -> Tensor:
        """Return which of the tokens end an answer, as bool."""
        return torch.isin(tokens, torch.tensor(self.eos_tokens, dtype=tokens.dtype, device=tokens.device))

    def forced_token(self, sentence: int, length: int) -> int | None:
        """Return the token that is forced at position `length` of a sentence's answer; None if the model may choose."""
        if length <= len(self.forced_prefix) and not (self.prefixes and self.prefixes[sentence]):
            return self.forced_prefix[length - 1]
        return self.forced_eos if length == self.max_new_tokens[sentence] else None

    def is_first_free(self, sentence: int, length: int, is_prefix_scored: bool) -> bool:
        """Return whether the token at position `length` of a sentence's answer is the first that is not forced."""
        if not (self.prefixes and self.prefixes[sentence]):
            return length == len(self.forced_prefix) + 1
        return length == (len(self.prompts[sentence]) - self.num_bos_tokens + 1 if is_prefix_scored else 1)

    @property
    def num_bos_tokens(self) -> int:
        """How many of the input tokens are not part of a hypothesis: 1 for a begin token."""
        return 0 if self.bos is None else 1

    def required_phrases(self, sentence: int) -> PhraseConstraints | None:
        """Return the phrases that the answer to a sentence must include, if any."""
        return (
            self.constraints[sentence] if self.constraints is not None and self.constraints[sentence].include else None
        )

    def mask_phrases(self, log_probs: Tensor, sentence: int, tokens: Sequence[int]) -> None:
        """Forbid, in place in `log_probs` (vocab,), what phrases forbid after `tokens`: those the answer begins with.

        An answer that does not hold all it must may not end.
        """
        if self.constraints is None:
            return
        phrases = self.constraints[sentence]
        if banned := phrases.banned_tokens(tokens):
            log_probs[banned] = -torch.inf
        if phrases.include and phrases.is_unmet(tokens):
            log_probs[list(self.eos_tokens)] = -torch.inf

    def mask_log_probs(
        self,
        log_probs: Tensor,
        sentences: Sequence[int],
        forced_tokens: Sequence[int | None],
        lengths: Sequence[int],
        is_prefix_scored: bool = False,
    ) -> None:
        """Forbid, in place in `log_probs` (sentences, ..., vocab), what may not come next in each sentence.

        forced: the prefix' token for this place, where there is one. lengths: what the next token makes the length.
        counted: whether a forced token keeps its own log-probability; it adds 0 if not.
        """
        n_generated = [
            self.forced_token(sentence, length) if token is None else token
            for sentence, token, length in zip(sentences, forced_tokens, lengths, strict=True)
        ]
        own = {}
        for place, token in enumerate(n_generated):
            if token is not None:
                keeps = is_prefix_scored and forced_tokens[place] is not None
                own[place] = log_probs[place, ..., token].clone() if keeps else 0.0
        if self.suppress_tokens:
            log_probs[..., list(self.suppress_tokens)] = -torch.inf
        if self.begin_suppress_tokens:
            opening = [
                place
                for place, (sentence, length) in enumerate(zip(sentences, lengths, strict=True))
                if self.is_first_free(sentence, length, is_prefix_scored)
            ]
            for token in self.begin_suppress_tokens:
                log_probs[opening, ..., token] = -torch.inf
        short = [place for place, length in enumerate(lengths) if length < self.min_new_tokens]
        if short:
            for end in self.eos_tokens:
                log_probs[short, ..., end] = -torch.inf
        for place, value in own.items():
            log_probs[place] = -torch.inf
            log_probs[place, ..., n_generated[place]] = value
