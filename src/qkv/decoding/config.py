"""How to decode, said in words; free of torch, so that a recipe can be read without it.

"Beam 5" alone defines nothing: programs differ in when an ended hypothesis counts, when the search may stop and
what happens at the greatest length. `BeamRules` names these choices, and `RULES` holds those of the programs that
published results are usually made with.

Lengths count generated tokens, the end token included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qkv.errors import ConfigError

BeamRulesName = Literal[
    "best", "fairseq", "tensor2tensor", "hugging-face", "hugging-face-early-stopping", "hugging-face-never"
]


@dataclass(frozen=True)
class BeamRules:
    """The choices of a beam search of size K in which programs differ.

    Each step extends the K unfinished hypotheses by every token and ranks the results by log-probability. The best K
    results without an end token are the next unfinished hypotheses. The fields say what happens to the others.

    candidates: "best-k" collects the finished hypotheses among the best K results; "best-2k" those among the best 2K.
    finished_pool: "best-k" keeps the K collected hypotheses with the highest scores; "first-k" keeps the first K.
    stopping: when the search of a sentence stops. "bound": no unfinished hypothesis can, at any length up to the
        maximum, score higher than the n_best-th collected one (this is exact, because log-probabilities are never
        positive). "k-bound": the same for the K-th collected one. "k-heuristic": K hypotheses are collected, and the
        best unfinished one would not score higher than the last of them if it ended now. "k-ended": K are collected.
    at_max_length: "forced" ends the unfinished hypotheses with the probability of the end token; "kept" returns them
        without an end token along with the finished ones; "kept-if-none-ended" does so only without a finished one.
    prefix: a forced prefix is "unscored" and counts neither in the score nor in the length, or it is "scored" as if the
        model had generated it.
    """

    candidates: Literal["best-k", "best-2k"] = "best-2k"
    finished_pool: Literal["best-k", "first-k"] = "best-k"
    stopping: Literal["bound", "k-bound", "k-heuristic", "k-ended"] = "bound"
    at_max_length: Literal["forced", "kept", "kept-if-none-ended"] = "forced"
    prefix: Literal["unscored", "scored"] = "unscored"


BEST_RULES = BeamRules()
"""Returns the best of all it collected or could still have reached from what it holds."""

FAIRSEQ_RULES = BeamRules("best-k", "first-k", "k-ended", "forced", "scored")
"""fairseq's SequenceGenerator (Ott et al. 2019). Goes with LengthPenalty("power", lenpen), pad in `never`, and
Length(max_len_a, max_len_b + 1, least=2), for its --max-len-b leaves out the end and its --min-len is 1."""

TENSOR2TENSOR_RULES = BeamRules("best-2k", "best-k", "bound", "kept-if-none-ended", "unscored")
"""tensor2tensor's beam_search (Vaswani et al. 2018), for a batch of one. Goes with LengthPenalty("wu", alpha) and
Length(1, 50). With n_best > 1 it waits for all K: stops="k-bound". Hypotheses that never ended come back in its
order, with their normalised score where tensor2tensor reports the plain log-probability."""

HUGGING_FACE_RULES = BeamRules("best-k", "best-k", "k-heuristic", "kept", "unscored")
"""transformers' generate(num_beams=K) with early_stopping=False, its default. Goes with LengthPenalty("power",
length_penalty) and Length(0, max_new_tokens)."""

HUGGING_FACE_EARLY_STOPPING_RULES = BeamRules("best-k", "best-k", "k-ended", "kept", "unscored")
"""The same with early_stopping=True."""

HUGGING_FACE_NEVER_RULES = BeamRules("best-k", "best-k", "k-bound", "kept", "unscored")
"""The same with early_stopping="never"."""

BEAM_RULES: dict[BeamRulesName, BeamRules] = {
    "best": BEST_RULES,
    "fairseq": FAIRSEQ_RULES,
    "tensor2tensor": TENSOR2TENSOR_RULES,
    "hugging-face": HUGGING_FACE_RULES,
    "hugging-face-early-stopping": HUGGING_FACE_EARLY_STOPPING_RULES,
    "hugging-face-never": HUGGING_FACE_NEVER_RULES,
}


@dataclass(frozen=True)
class LengthPenalty:
    """What a hypothesis' log-probability is divided by; alpha 0 leaves it alone.

    "wu": ((5 + length) / 6) ** alpha (Wu et al. 2016, eq. 14); "power": length ** alpha, so that "power" with
    alpha 1 is the mean per token.
    """

    rule: Literal["wu", "power"] = "wu"
    alpha: float = 0.6

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ConfigError([f"alpha={self.alpha}: expected a finite number; 0 turns the length penalty off"])

    def __call__(self, length: int) -> float:
        """Return the divisor for a hypothesis of `length` tokens, at least 1."""
        divisor: float = ((5 + length) / 6 if self.rule == "wu" else length) ** self.alpha
        return divisor


@dataclass(frozen=True)
class LengthLimit:
    """How long a result may be: up to factor * source tokens + constant, never under `least`, the end included.

    For a decoder alone, what it continues from is the source.
    """

    factor: float = 1.0
    constant: int = 50
    min_new_tokens: int = 1

    def __post_init__(self) -> None:
        problems = []
        if not (math.isfinite(self.factor) and self.factor >= 0):
            problems.append(f"factor={self.factor}: expected a finite number of at least 0")
        if self.constant < 0 or (self.factor == 0 and self.constant == 0):
            problems.append(f"constant={self.constant}: expected room for at least one token")
        if self.min_new_tokens < 1:
            problems.append(f"min_new_tokens={self.min_new_tokens}: expected at least 1, for the end token counts")
        if problems:
            raise ConfigError(problems)

    def max_new_tokens(self, source_tokens: int) -> int:
        """Return the greatest length of an answer, from the number of tokens of the source."""
        return max(1, self.min_new_tokens, int(self.factor * source_tokens + self.constant))


@dataclass(frozen=True)
class Greedy:
    """The most probable token at every step."""


@dataclass(frozen=True)
class Sample:
    """A draw at every step: logits / temperature, then only the top_k best tokens, then of these only the fewest
    best whose probabilities reach top_p (Holtzman et al. 2020); 0 and 1.0 turn the two off. n_best draws a sentence.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    n_best: int = 1

    def __post_init__(self) -> None:
        problems = []
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            problems.append(f"temperature={self.temperature}: expected above 0; for no chance at all use greedy")
        if self.top_k < 0:
            problems.append(f"top_k={self.top_k}: expected at least 1, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p}: expected above 0 and at most 1, where 1 means all tokens")
        if self.n_best < 1:
            problems.append(f"n_best={self.n_best}: expected at least 1")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Beam:
    """Beam search. score = log-probability / length_penalty(length) + coverage penalty.

    size: the number of unfinished hypotheses at a time (K).
    length_penalty: the number that the log-probability is divided by.
    coverage_penalty: beta of the coverage penalty of Wu et al. 2016, eq. 14, on the cross-attention weights of the last
        block, averaged over heads; it is used to rank finished hypotheses, and 0 turns it off.
    n_best: the number of results, best first.
    rules: a name in `BEAM_RULES`, or a `BeamRules`.
    """

    size: int = 4
    length_penalty: LengthPenalty = LengthPenalty()
    coverage_penalty: float = 0.0
    n_best: int = 1
    rules: BeamRulesName | BeamRules = "best"

    def __post_init__(self) -> None:
        problems = []
        if self.size < 1:
            problems.append(f"size={self.size}: expected at least 1")
        if not 1 <= self.n_best <= max(1, self.size):
            problems.append(f"n_best={self.n_best}: expected between 1 and size={self.size}")
        if not (math.isfinite(self.coverage_penalty) and self.coverage_penalty >= 0):
            problems.append(f"coverage_penalty={self.coverage_penalty}: expected a finite number of at least 0")
        if not isinstance(self.rules, BeamRules) and self.rules not in BEAM_RULES:
            problems.append(f"rules={self.rules!r}: expected one of {', '.join(BEAM_RULES)}, or BeamRules")
        if problems:
            raise ConfigError(problems)

    def resolve_rules(self) -> BeamRules:
        """Return the rules that `rules` names."""
        return self.rules if isinstance(self.rules, BeamRules) else BEAM_RULES[self.rules]


@dataclass(frozen=True)
class DecodingConfig:
    """How a model's answer is found; saved with a model as its default."""

    method: Beam | Greedy | Sample = Beam()
    length: LengthLimit = LengthLimit()


def can_stop(config: Beam, scores: Sequence[float], best_log_probability: float, length: int, max_length: int) -> bool:
    """Return whether the rules end the search of one sentence.

    scores: those of the collected hypotheses, best first. living: the log-probability of the best unfinished
    hypothesis, which has `length` tokens and may have up to `limit`.
    """
    stops = config.resolve_rules().stopping
    n_wanted = config.n_best if stops == "bound" else config.size
    if len(scores) < n_wanted:
        return False
    if stops == "k-ended":
        return True
    # A penalty rises or falls all the way with length, so the best future is at one of the two ends; what the
    # tokens to come add to the log-probability is at most 0, and so is the coverage penalty.
    reachable = best_log_probability / config.length_penalty(length)
    if stops != "k-heuristic":
        reachable = max(reachable, best_log_probability / config.length_penalty(max_length))
    return scores[n_wanted - 1] >= reachable


@dataclass(frozen=True)
class RolloutConfig:
    """How an agent chooses its actions.

    context_length: the number of most recent steps that the model reads.
    action_selection: "greedy" takes the most probable action; "sample" draws one from the model's distribution.
        Continuous actions are always the ones that the model predicts.
    """

    context_length: int = 20
    action_selection: Literal["greedy", "sample"] = "greedy"

    def __post_init__(self) -> None:
        if self.context_length < 1:
            raise ConfigError([f"context_length={self.context_length}: expected at least 1 step"])
