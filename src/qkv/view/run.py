"""One run of a model as the page shows it: its trace, the names of its tokens, and explanations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv import lens
from qkv.errors import QkvError
from qkv.lens import Explanation, Trace
from qkv.view import attention as attentions
from qkv.view import overview
from qkv.view.axes import Axis, build_text_axis
from qkv.view.blocks import Blocks
from qkv.view.overview import StatisticsCache

TokenDecoder = Callable[[list[int]], list[str]]
"""Returns the display strings of token ids, as `Tokenizer.tokens` does."""

Edit = dict[str, Any]
"""A change of a run, as the page describes it: see `qkv.view.run_edits`."""

_TOP_K = 5
_N_ALIGNMENT_HEADS = 2  # heads of cross-attention whose mean weights are the alignment


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis of a beam: its text, the names of its tokens, its scores, and its (source, target) links."""

    text: str
    tokens: tuple[str, ...]
    score: float
    log_probability: float
    alignment: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Run:
    """The content of the page for one run, which is one row of the batch in a trace.

    source, target: the labels of the axes, by default token ids. token_decoder: names the predicted tokens, as the
    target tokenizer's `tokens` does; they are ids without it. name: that of the model. answer: its whole answer.
    answer_start: the position in the target of the first token of the answer itself, after a prompt if there is one.
    summary: the spec in words. explanations: why each token of the answer was predicted. edits: the changes made.
    code: the Python that repeats the run. target_probabilities: for a text that was read and not continued, the
    probability of each token after the first, (queries - 1,); the trace's logits may then be those of its last queries
    only. statistics: those of long heads, which take a while to compute and are kept for later requests.
    """

    trace: Trace
    source: Axis | None = None
    target: Axis | None = None
    token_decoder: TokenDecoder | None = None
    name: str = ""
    answer: str = ""
    answer_start: int = 1
    summary: tuple[str, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    target_probabilities: Tensor | None = None
    edits: tuple[Edit, ...] = ()
    code: str = ""
    row: int = 0
    statistics: StatisticsCache = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        _check_axis_length(self.source, self.trace.source, "source")
        _check_axis_length(self.target, self.trace.target, "target")

    @torch.no_grad()
    def to_json(
        self, blocks: Blocks, *, label: str | None = None, contexts: bool = True, long: bool = False
    ) -> dict[str, Any]:
        """Describe the run for the page, with its tensors in `blocks`, and with or without the contexts of the model.

        label: the name to show, if not the whole name.
        long: heads are described by overviews and statistics alone, as many heads as take a few seconds.
        """
        return {
            "long": long,
            "name": self.name if label is None else label,
            "path": self.name,
            "summary": list(self.summary),
            "axes": {
                name: axis.to_json(blocks)
                for name, axis in (("source", self._axis("source")), ("target", self._axis("target")))
                if axis is not None
            },
            "answers": self._predictions(),
            "answer_start": self.answer_start,
            "attentions": overview.overviews_to_json(self.trace, self.row, blocks, self.statistics)
            if long
            else attentions.attentions_to_json(self.trace, self.row, blocks, contexts),
            "hypotheses": [
                {
                    "text": one.text,
                    "tokens": list(one.tokens),
                    "score": _finite_or_none(one.score),
                    "log_probability": _finite_or_none(one.log_probability),
                    "alignment": [list(link) for link in one.alignment],
                }
                for one in self.hypotheses
            ],
            "alignment": None if long else self._alignment(blocks),
            "explanations": [self._explanation_to_json(one) for one in self.explanations],
            "edits": list(self.edits),
            "code": self.code,
        }

    def tokens(self, side: str) -> list[str]:
        """Return the names of the tokens of "source" or "target"."""
        axis = self._axis(side)
        return [] if axis is None else list(axis.tokens)

    def _axis(self, side: str) -> Axis | None:
        given: Axis | None = getattr(self, side)
        numbers: Tensor | None = getattr(self.trace, side)
        if given is not None or numbers is None:
            return given
        if not numbers.is_floating_point():
            return build_text_axis([str(number) for number in numbers[self.row].tolist()])
        lengths = [one.keys for one in self.trace if one.side == side]
        return build_text_axis([str(number + 1) for number in range(lengths[0] if lengths else 0)])

    def _predictions(self) -> list[dict[str, Any]]:
        """Return for each position the token of the answer, its probability, and the most probable tokens."""
        if self.trace.logits is None:
            return []
        if self.target_probabilities is not None:
            return self._reading_predictions(self.target_probabilities, self.trace.logits[self.row])
        logits = self.trace.logits[self.row].float()
        probabilities = (logits if logits.dim() == 2 else logits[None]).softmax(dim=-1)
        chosen = probabilities.argmax(dim=-1).tolist()
        if logits.dim() == 2 and self.trace.target is not None and not self.trace.target.is_floating_point():
            chosen[:-1] = self.trace.target[self.row, 1:].tolist()
        top = probabilities.topk(min(_TOP_K, probabilities.shape[-1]), dim=-1)
        answers = []
        for position, number in enumerate(chosen):
            numbers = [number, *top.indices[position].tolist()]
            shares = [probabilities[position, item].item() for item in numbers]
            pairs = [[string, share] for string, share in zip(self._decode_tokens(numbers), shares, strict=True)]
            answers.append({"chosen": pairs[0], "best": pairs[1:]})
        return answers

    def _reading_predictions(self, target_probabilities: Tensor, logits: Tensor) -> list[dict[str, Any]]:
        """Return the same for a text that was only read: its tokens, and the most probable ones at the last
        positions."""
        names = self.tokens("target")
        answers: list[dict[str, Any]] = [
            {"chosen": [name, share], "best": []}
            for name, share in zip(names[1:], target_probabilities.tolist(), strict=True)
        ]
        top = logits.float().softmax(dim=-1).topk(min(_TOP_K, logits.shape[-1]), dim=-1)
        best = [
            [list(pair) for pair in zip(self._decode_tokens(numbers), shares, strict=True)]
            for numbers, shares in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        answers.append({"chosen": best[-1][0], "best": []})
        for answer, likeliest in zip(answers[-len(best) :], best, strict=True):
            answer["best"] = likeliest
        return answers

    def _decode_tokens(self, ids: list[int]) -> list[str]:
        return self.token_decoder(ids) if self.token_decoder is not None else [str(item) for item in ids]

    def _alignment(self, blocks: Blocks) -> dict[str, Any] | None:
        """Align target and source tokens by the heads of cross-attention that look most like an alignment."""
        cross_attentions = [one for one in self.trace if one.place.endswith("cross_attention")]
        if not cross_attentions or self.trace.target is None or len(self.trace.target) > 1:
            return None
        heads = lens.find_best_heads([self.trace], n_heads=_N_ALIGNMENT_HEADS)
        found = lens.align(self.trace, [head for head, _ in heads])
        return {
            "heads": [[place, head, round(score, 4)] for (place, head), score in heads],
            "weights": blocks.add(found.weights, "float32"),
            "links": sorted(map(list, found.links)),
            "omitted": found.find_omitted(),
            "repeated": found.find_repeated(),
        }

    def _explanation_to_json(self, explanation: Explanation) -> dict[str, Any]:
        return explanation_to_json(explanation, self._decode_tokens([explanation.token])[0])


def shorten_names(names: Sequence[str]) -> list[str]:
    """Shorten the paths of models to as many of their last parts as distinguish them."""
    parts = [Path(name).parts for name in names]
    for count in range(1, max(map(len, parts), default=0)):
        short = ["/".join(one[-count:]) for one in parts]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def explanation_to_json(explanation: Explanation, token: str) -> dict[str, Any]:
    """Describe for the page why a token was predicted."""
    return {
        "position": explanation.position,
        "token": token,
        "p": explanation.probability,
        "effects": [
            {
                "side": one.side,
                "key": one.position,
                "p_without": one.probability_without,
                "by_match": one.probability_without_match,
                "by_content": one.probability_without_content,
                "heads": [[head.place, head.head, head.probability] for head in one.heads],
            }
            for one in explanation.effects
        ],
    }


def _check_axis_length(axis: Axis | None, numbers: Tensor | None, side: str) -> None:
    if axis is None or (numbers is not None and numbers.is_floating_point()):
        return  # an image or audio: the number of its positions is unknown here
    expected = 0 if numbers is None else numbers.shape[1]
    if len(axis.tokens) != expected:
        raise QkvError(
            f"{side}: {len(axis.tokens)} strings were given for a trace of {expected} tokens; "
            "give one string for each token id, <s> and </s> included"
        )


def _finite_or_none(value: float) -> float | None:
    return value if torch.isfinite(torch.tensor(value)) else None
