"""Explanations of a prediction: how one token's probability changes when other tokens are hidden.

A weight says where a model attends, not what that does (Jain & Wallace 2019, section 4). Here tokens are removed one
at a time, and the model predicts again. Each removal is one row of a batch: `n` tokens cost 3 n rows, and the heads of
one token as many rows as there are heads on its side; the source is encoded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from qkv.errors import QkvError
from qkv.lens.recorder import Recorder
from qkv.lens.tracing import build_trace
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Site, Tap

Side = Literal["source", "past"]
RemovalKind = Literal["edge", "match", "content"]


@dataclass(frozen=True)
class HeadEffect:
    """The probability when a single head may not attend to a token."""

    place: str
    head: int
    probability: float


@dataclass(frozen=True)
class TokenEffect:
    """The effect of one token on a prediction: the probability of the prediction after each kind of removal.

    side: a token of the source, or of the target so far. without: no attention of the decoder may attend to it.
    match: it is matched like any other token, because its key is the mean of the others. content: it is matched as
    before
    and contributes what any other would, because its value is the mean of theirs. heads: by head, the most important
    first;
    empty by default.
    """

    side: Side
    position: int
    token: int
    probability_without: float
    probability_without_match: float
    probability_without_content: float
    heads: tuple[HeadEffect, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Why `token` was predicted at `position`: its probability, and the tokens it depends on, the most important first.

    passes: the number of forward passes of the decoder, each with a batch of rows.
    """

    position: int
    token: int
    probability: float
    effects: tuple[TokenEffect, ...]
    forward_passes: int

    def to_lines(self, source: Sequence[str] | None, target: Sequence[str]) -> list[str]:
        """Describe the explanation in words, one line per token, with the tokens' names."""
        found = []
        for reason in self.effects:
            names = target if reason.side == "past" or source is None else source
            line = (
                f"{names[reason.position]!r} ({reason.side} {reason.position}): {self.probability:.2f} -> "
                f"{reason.probability_without:.2f} without it; its match {reason.probability_without_match:.2f}, "
                f"its content {reason.probability_without_content:.2f}"
            )
            if reason.heads:
                first = reason.heads[0]
                line += f"; most by {first.place} head {first.head} ({first.probability:.2f})"
            found.append(line)
        return found


@dataclass(frozen=True)
class _Removal:
    kind: RemovalKind
    side: Side
    position: int
    place: str | None = None
    head: int = 0


class _RemovalTap(Tap):
    """A tap that removes something else from each row of a batch; for one pass, in which rows keep their order."""

    def __init__(self, removals: Sequence[_Removal], place: str = "") -> None:
        self._removals, self._place = removals, place
        side = {"cross_attention": "source", "self_attention": "past"}.get(place.rpartition(".")[2])
        self._active = [
            (row, one)
            for row, one in enumerate(removals)
            if one.side == side and not place.startswith("encoder") and one.place in (None, place)
        ]

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        means = {"key": "match", "value": "content"}.get(site)
        chosen = [(row, one.position) for row, one in self._active if one.kind == means]
        if not chosen:
            return tensor
        rows, positions = torch.tensor(chosen, device=tensor.device).unbind(dim=1)
        own = tensor[rows, :, positions]
        others = (tensor[rows].sum(dim=2) - own) / max(1, tensor.shape[2] - 1)
        changed = tensor.clone()
        changed[rows, :, positions] = others
        return changed

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        chosen = [(row, one) for row, one in self._active if one.kind == "edge"]
        if not chosen:
            return None
        hidden = query.new_zeros(query.shape[0], query.shape[1], 1, key.shape[2])
        for row, one in chosen:
            heads = slice(None) if one.place is None else slice(one.head, one.head + 1)
            hidden[row, heads, 0, one.position] = -math.inf
        return hidden

    def at(self, place: str) -> _RemovalTap:
        return _RemovalTap(self._removals, f"{self._place}.{place}" if self._place else place)


class _Prediction:
    """A prediction of a model that is repeated with something removed."""

    def __init__(self, model: SequenceModel, source: Tensor | None, prefix: Tensor, batch_size: int) -> None:
        self.model, self.prefix, self.batch_size, self.forward_passes = model, prefix, batch_size, 0
        self.memory = None if source is None else model.encode(source)

    def compute_log_probabilities(self, rows: int, tap: Tap) -> Tensor:
        """Compute the log-probabilities (rows, vocab) of the next token."""
        start = self.model.start(self.memory, 1)
        state = start.reorder(torch.zeros(rows, dtype=torch.int64, device=self.prefix.device))
        logits, _ = self.model.step(self.prefix.expand(rows, -1), state, tap)
        self.forward_passes += 1
        return torch.log_softmax(logits[:, -1].float(), dim=-1)

    def compute_probabilities_without(self, removals: Sequence[_Removal], token: int) -> list[float]:
        """Compute the token's probability after each removal."""
        found: list[float] = []
        for begin in range(0, len(removals), self.batch_size):
            part = removals[begin : begin + self.batch_size]
            found += self.compute_log_probabilities(len(part), _RemovalTap(part))[:, token].exp().tolist()
        return found


@torch.no_grad()
def explain(
    model: SequenceModel,
    source: Tensor | Sequence[int] | None,
    target: Tensor | Sequence[int],
    position: int,
    *,
    token: int | None = None,
    heads: int = 3,
    batch_size: int = 64,
) -> Explanation:
    """Rank the tokens of the source and of the target so far by the effect of their removal on one prediction.

    source, target: the token ids of one sequence, or (1, length); `target` with its begin token. position: of the
    predicted token in `target`; its length means the next token. token: the prediction to explain, by default the token
    at `position` or the most probable next one. heads: for how many of the most important tokens to measure each head.
    rows: the batch size.
    Call model.eval() first. Raises QkvError for a position that does not exist, and SpecError for a model that predicts
    no sequence.
    """
    device = next(model.parameters()).device
    read = None if source is None else _to_row(source, device)
    whole = _to_row(target, device)
    if not 1 <= position <= whole.shape[1]:
        raise QkvError(
            f"position={position} was given; expected 1 to {whole.shape[1]}: the begin token at 0 is not predicted, "
            f"and {whole.shape[1]} means the token after the last"
        )
    question = _Prediction(model, read, whole[:, :position], batch_size)
    recorder = Recorder(NO_TAP)
    before = question.compute_log_probabilities(1, recorder)[0]
    if token is None:
        token = int(whole[0, position]) if position < whole.shape[1] else int(before.argmax())
    trace = build_trace(recorder, model)
    lengths: dict[Side, int] = {}
    for attention in trace:
        lengths["source" if attention.place.endswith("cross_attention") else "past"] = attention.keys
    tokens = [(side, number) for side, length in lengths.items() for number in range(length)]
    every: tuple[RemovalKind, ...] = ("edge", "match", "content")
    found = question.compute_probabilities_without([_Removal(means, *one) for one in tokens for means in every], token)
    numbers: dict[Side, list[int]] = {"past": whole[0].tolist(), "source": [] if read is None else read[0].tolist()}
    reasons = [
        TokenEffect(
            side, number, int(numbers[side][number]), found[3 * place], found[3 * place + 1], found[3 * place + 2]
        )
        for place, (side, number) in enumerate(tokens)
    ]
    reasons.sort(key=lambda reason: reason.probability_without)
    questions = [
        _Removal("edge", reason.side, reason.position, attention.place, head)
        for reason in reasons[:heads]
        for attention in trace
        if attention.place.endswith("cross_attention") == (reason.side == "source")
        for head in range(attention.heads)
    ]
    by_head: dict[tuple[Side, int], list[HeadEffect]] = {}
    for removal, probability in zip(questions, question.compute_probabilities_without(questions, token), strict=True):
        assert removal.place is not None
        own = by_head.setdefault((removal.side, removal.position), [])
        own.append(HeadEffect(removal.place, removal.head, probability))
    for number, reason in enumerate(reasons[:heads]):
        effects = sorted(by_head[reason.side, reason.position], key=lambda effect: effect.probability)
        reasons[number] = replace(reason, heads=tuple(effects))
    return Explanation(position, token, float(before[token].exp()), tuple(reasons), question.forward_passes)


def _to_row(values: Tensor | Sequence[int], device: torch.device) -> Tensor:
    row = torch.as_tensor(values, device=device)
    row = row[None] if row.dim() == 1 else row
    if len(row) != 1 or row.numel() == 0:
        raise QkvError(f"tokens of shape {tuple(row.shape)} were given; one sequence with at least one was expected")
    return row
