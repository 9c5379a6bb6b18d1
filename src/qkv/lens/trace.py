"""A trace of one run: scores, weights and all recorded tensors, recomputed exactly for any requested part.

A trace keeps query, key, value and context as the fused kernel had them, linear in length. Everything with an entry for
each query and key is computed from them on demand, by the same formula (`qkv.attention`), and `certify` reports how far
weights @ value is from the context that the model really used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from qkv.errors import MissingExtraError, QkvError
from qkv.lens import recompute
from qkv.lens.chunks import WeightChunks
from qkv.lens.recorder import Call
from qkv.mask import Span
from qkv.score_terms import ScoreTerms
from qkv.tap import nearest_place

if TYPE_CHECKING:
    import numpy as np

    from qkv.lens.head_reports import HeadReport

_BLOCK = 256  # rows of a matrix that are built at once
_MAX_TICKS = 60  # labels of an axis of a plot
_PRINTED_PLACES = 40


@dataclass(frozen=True, repr=False)
class AttentionTrace:
    """One attention of a trace. Several calls (step-by-step decoding) are read as one, query after query."""

    place: str
    calls: Sequence[Call]
    output_weight: Tensor | None = None
    """W_O by head, (heads, d_value, d_model); None if the model has none."""
    query_tokens: Sequence[str] = ()
    """The names of the positions of the queries; empty if unknown."""
    key_tokens: Sequence[str] = ()
    """The names of the positions of the keys; empty if unknown."""

    def __post_init__(self) -> None:
        if len({call["query"].shape[0] for call in self.calls}) > 1:
            raise QkvError(
                f"{self.place}: the steps that were recorded differ in their number of rows (a beam was reordered). "
                "Expected one hypothesis: trace the finished hypothesis with lens.look(model, source, target)"
            )

    @property
    def side(self) -> Literal["source", "target"]:
        """The side of the queries: the source in an encoder or the first encoder of a pair, else the target."""
        return "source" if self.place.partition(".")[0] in ("encoder", "source") else "target"

    @property
    def query(self) -> Tensor:
        """All queries, (batch, heads, queries, d_key)."""
        return self._concatenate("query")

    @property
    def key(self) -> Tensor:
        """The keys that were visible to the last query, (batch, kv_heads, keys, d_key)."""
        return self.calls[-1]["key"]

    @property
    def value(self) -> Tensor:
        """The values that were visible to the last query, (batch, kv_heads, keys, d_value)."""
        return self.calls[-1]["value"]

    @property
    def context(self) -> Tensor:
        """The output of the kernel, (batch, heads, queries, d_value)."""
        return self._concatenate("context")

    @property
    def score_terms(self) -> ScoreTerms:
        """The score terms of the last call: mask, bias, scale, softcap, sinks, score (see `qkv.attention.attend`)."""
        return self.calls[-1].score_terms

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return self.calls[-1]["query"].shape[1]

    @property
    def kv_heads(self) -> int:
        """The number of key-value heads; each serves heads / kv_heads adjacent query heads."""
        return self.key.shape[1]

    @property
    def queries(self) -> int:
        """The number of queries, over all calls."""
        return sum(call["query"].shape[2] for call in self.calls)

    @property
    def keys(self) -> int:
        """The number of keys of the last query."""
        return self.key.shape[2]

    @property
    def scale(self) -> float:
        """The factor of the dot product."""
        scale = self.score_terms.scale
        return float(1 / math.sqrt(self.key.shape[-1]) if scale is None else scale)

    @cached_property
    def weights(self) -> Tensor:
        """All attention weights, (batch, heads, queries, keys): each row sums to 1, to less if a sink takes a share, to
        0 if
        nothing is visible. `compute_weights` returns a part of them.
        """
        return self.compute_weights()

    @cached_property
    def scores(self) -> Tensor:
        """All scores before the softmax, (batch, heads, queries, keys); -inf where a query may not attend."""
        return self.compute_scores()

    def to_numpy(self) -> np.ndarray:
        """Return the weights as a NumPy array, (batch, heads, queries, keys)."""
        return self.weights.detach().float().cpu().numpy()

    def plot(self, head: int = 0, *, row: int = 0, ax: Any = None) -> Any:
        """Draw the weights of one head as a heat map and return the matplotlib axes.

        row: the row of the batch. ax: the axes to draw on, by default those of a new figure.
        Raises MissingExtraError without matplotlib, and QkvError for a head that does not exist.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise MissingExtraError(
                "plotting needs matplotlib, which is not installed; run: pip install 'qkv[plot]'"
            ) from error
        weights = self.compute_weights(self._check_head(head))[row].detach().float().cpu().numpy()
        ax = pyplot.subplots()[1] if ax is None else ax
        ax.imshow(weights, vmin=0.0, aspect="auto")
        ax.set(xlabel="key", ylabel="query", title=f"{self.place}, head {head}")
        for axis, labels in ((ax.xaxis, self.key_tokens), (ax.yaxis, self.query_tokens)):
            if 0 < len(labels) <= _MAX_TICKS:
                axis.set_ticks(range(len(labels)), labels, rotation=90 if axis is ax.xaxis else 0)
        return ax

    def __repr__(self) -> str:
        return (
            f"{self.place}: {self.heads} heads, {self.queries} queries x {self.keys} keys, "
            f"d_key {self.key.shape[-1]}, d_value {self.value.shape[-1]}"
        )

    def compute_scores(self, head: int | None = None, rows: Sequence[int] | None = None) -> Tensor:
        """Compute scores before the softmax, with everything added; -inf where a query may not attend.

        Returns (batch, heads, queries, keys), or (batch, queries, keys) for one head; `rows` selects queries.
        """
        return self._compute_matrix(head, rows, weights=False)

    def compute_weights(self, head: int | None = None, rows: Sequence[int] | None = None) -> Tensor:
        """Compute weights: each row sums to 1, to less if a sink takes a share, to 0 if nothing is visible.

        Returns (batch, heads, queries, keys), or (batch, queries, keys) for one head; `rows` selects queries.
        """
        return self._compute_matrix(head, rows, weights=True)

    def tile(self, head: int, rows: Span, keys: Span, logsumexp: Tensor | None = None, pool_width: int = 1) -> Tensor:
        """Compute a tile of one head's weights anywhere in the matrix, (batch, rows, keys), without the rest of its
        rows.

        rows, keys: the first index, and the one after the last. logsumexp: `AttentionStatistics.logsumexp`, (batch,
        heads,
        queries), with which nothing outside the tile is computed; without it, all scores of its rows are.
        pool_width: each entry is the maximum over this many neighbouring keys, fewer at the end, (batch, rows,
        ceil(keys / pool_width)).
        Raises QkvError for queries or keys that do not exist.
        """
        self._check_head(head)
        for name, span, size in (("queries", rows, self.queries), ("keys", keys, self.keys)):
            if not 0 <= span[0] <= span[1] <= size:
                raise QkvError(f"{self.place}: {name} {span[0]} to {span[1]} were requested; it has 0 to {size}")
        entries = -(-(keys[1] - keys[0]) // pool_width)
        parts, offset = [], 0
        for call in self.calls:
            length, width = call["query"].shape[2], call["key"].shape[2]
            begin, end = max(rows[0], offset), min(rows[1], offset + length)
            if begin < end:
                here = (begin - offset, end - offset)
                visible = (min(keys[0], width), min(keys[1], width))
                by = recompute.compute_logsumexp(call, [head], here) if logsumexp is None else None
                by = logsumexp[:, [head], begin:end] if by is None and logsumexp is not None else by
                assert by is not None
                found = recompute.compute_filled_scores(call, [head], here, visible)
                if pool_width > 1:  # the largest score has the largest weight, so few exponentials are computed
                    short = -found.shape[-1] % pool_width
                    found = torch.nn.functional.pad(found, (0, short), value=torch.finfo(found.dtype).min)
                    found = found.view(*found.shape[:-1], -1, pool_width).amax(dim=-1)
                part = recompute.normalize_scores(found, by)[:, 0]
                parts.append(torch.nn.functional.pad(part, (0, entries - part.shape[-1])))
            offset += length
        return torch.cat(parts, dim=1) if parts else self.key.new_zeros(self.key.shape[0], 0, entries)

    def output(self, head: int, rows: Sequence[int] | None = None) -> Tensor:
        """Compute what one head adds to the residual, context @ W_O of this head: (batch, queries, d_model), without
        bias.

        Raises QkvError if the model has no output projection.
        """
        context = self.context[:, self._check_head(head)]
        context = context if rows is None else context[:, list(rows)]
        return context @ self._get_output_weight()[head]

    def flow(self, head: int, rows: Sequence[int] | None = None) -> Tensor:
        """Compute how much each key contributes to each query, |weight * value @ W_O|: (batch, queries, keys).

        A large weight of a small value moves nothing [Kobayashi et al. 2020, section 2]. Without an output projection
        the norm is that of weight * value.
        """
        value = self.value[:, self._check_head(head) * self.kv_heads // self.heads]
        if self.output_weight is not None:
            value = value @ self.output_weight[head]
        norms: Tensor = torch.linalg.vector_norm(value, dim=-1)
        return self.compute_weights(head, rows) * norms[:, None, :]

    def compute_chunks(self) -> WeightChunks:
        """Return all weights in chunks of rows, for several statistics that iterate over them."""
        return WeightChunks(self.calls)

    def certify(self, chunks: WeightChunks | None = None) -> Tensor:
        """Compute the largest |weights @ value - context| of each head, (heads,), with the context of the kernel."""
        worst = torch.zeros(self.heads, dtype=torch.float64)
        for piece in self.compute_chunks() if chunks is None else chunks:
            call, weights = self.calls[piece.call], piece.weights
            value = recompute.select_kv_heads(call["value"], range(self.heads), self.heads)[:, :, : weights.shape[-1]]
            context = call["context"][:, :, slice(*piece.rows)]
            difference = (weights @ value.to(weights.dtype) - context).abs().amax(dim=(0, 2, 3))
            worst = torch.maximum(worst, difference.double().cpu())
        return worst

    def _concatenate(self, site: str) -> Tensor:
        tensors = [call[site] for call in self.calls]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=2)

    def _check_head(self, head: int) -> int:
        if not 0 <= head < self.heads:
            raise QkvError(f"{self.place}: head={head} was given; it has heads 0 to {self.heads - 1}")
        return head

    def _get_output_weight(self) -> Tensor:
        if self.output_weight is None:
            raise QkvError(f"{self.place} has no output projection; use its context instead")
        return self.output_weight

    def _compute_matrix(self, head: int | None, rows: Sequence[int] | None, weights: bool) -> Tensor:
        heads = list(range(self.heads)) if head is None else [self._check_head(head)]
        selected = list(range(self.queries)) if rows is None else [int(row) for row in rows]
        if wrong := [row for row in selected if not 0 <= row < self.queries]:
            raise QkvError(f"{self.place}: row {wrong[0]} was requested; it has queries 0 to {self.queries - 1}")
        parts: list[Tensor] = []
        order: list[int] = []
        offset = 0
        for call in self.calls:
            length = call["query"].shape[2]
            here = sorted({row - offset for row in selected if offset <= row < offset + length})
            for span in recompute.split_into_runs(here, _BLOCK):
                if weights:
                    part = recompute.compute_weights(call, heads, span)
                else:
                    part = recompute.compute_masked_scores(call, heads, span, (0, call["key"].shape[2]))
                if absent := self.keys - part.shape[-1]:
                    part = torch.nn.functional.pad(part, (0, absent), value=0.0 if weights else -math.inf)
                parts.append(part)
                order.extend(range(offset + span[0], offset + span[1]))
            offset += length
        nothing = self.key.new_zeros(self.key.shape[0], len(heads), 0, self.keys)
        matrix = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2) if parts else nothing
        if order != selected:
            index = {row: number for number, row in enumerate(order)}
            matrix = matrix[:, :, [index[row] for row in selected]]
        return matrix if head is None else matrix[:, 0]


@dataclass(frozen=True, repr=False)
class Trace:
    """The tensors of one run, by place ("decoder.3.cross_attention") and site; see `qkv.tap` for the sites.

    text, answer: the input and the output of the model; "" and None if the input was tensors.
    source_tokens, target_tokens: the names of the input positions. input: the image, audio or trajectory that was read,
    if
    any. answer_start: the position in the target of the first token of the output itself, after the begin token and the
    prompt. word_times: the time of each word of a transcript. copy_report: in words, which tokens a pointer-generator
    copied
    from the source. token_names: the names of the possible predictions.

    Example: `qkv.look(qkv.load("pronunciation"), "knight")["decoder.2.cross_attention"].weights`
    """

    html_renderer: ClassVar[Callable[[Trace], str] | None] = None
    """The display of a trace in a notebook. The page sets this, because it is in a layer above the lens."""

    calls: Mapping[str, Sequence[Call]]
    attentions: Mapping[str, AttentionTrace]
    logits: Tensor | None = None
    source: Tensor | None = None
    target: Tensor | None = None
    text: str = ""
    answer: Any = None
    source_tokens: Sequence[str] = ()
    target_tokens: Sequence[str] = ()
    input: Any = None
    answer_start: int = 1
    word_times: tuple[Any, ...] = ()
    copy_report: Sequence[str] = ()
    token_names: Callable[[Sequence[int]], list[str]] | None = None

    def __post_init__(self) -> None:
        if self.source_tokens or self.target_tokens:
            named = {
                place: replace(
                    one, query_tokens=self._tokens_of(one.side), key_tokens=self._key_tokens(place, one.side)
                )
                for place, one in self.attentions.items()
            }
            object.__setattr__(self, "attentions", named)

    def _tokens_of(self, side: str) -> Sequence[str]:
        return self.source_tokens if side == "source" else self.target_tokens

    def _key_tokens(self, place: str, side: str) -> Sequence[str]:
        return self.source_tokens if place.endswith("cross_attention") else self._tokens_of(side)

    @property
    def places(self) -> list[str]:
        """The names of all attentions, such as "decoder.3.cross_attention"."""
        return list(self.attentions)

    def __repr__(self) -> str:
        lines = [] if not self.text else [f"input:  {self.text}"]
        lines += [] if self.answer is None else [f"answer: {self.answer}"]
        for name, tokens in (("source", self.source_tokens), ("target", self.target_tokens)):
            lines += [f"{name}: {' '.join(tokens[:_PRINTED_PLACES])}"] if tokens else []
        lines.append(f"{'place':32} {'heads':>5} {'queries':>8} {'keys':>6}")
        shown = list(self)[:_PRINTED_PLACES]
        lines += [f"{one.place:32} {one.heads:5} {one.queries:8,} {one.keys:6,}" for one in shown]
        if len(self) > len(shown):
            lines.append(f"... and {len(self) - len(shown)} more")
        return "\n".join(lines)

    @property
    def heads(self) -> list[HeadReport]:
        """A report on every head of every attention: weight of the previous token, distance, entropy ..."""
        from qkv.lens.head_reports import report_heads

        return report_heads(self)

    def _repr_html_(self) -> str | None:
        return None if Trace.html_renderer is None else Trace.html_renderer(self)

    def _ipython_key_completions_(self) -> list[str]:
        return self.places

    def __getitem__(self, place: str) -> AttentionTrace:
        """Return the attention at a place, e.g. trace["decoder.3.cross_attention"]."""
        if place not in self.attentions:
            known = ", ".join(self.attentions) or "none"
            near = nearest_place(place, self.attentions)
            raise QkvError(f"there is no attention at {place!r} in this trace{near} It has: {known}")
        return self.attentions[place]

    def __iter__(self) -> Iterator[AttentionTrace]:
        return iter(self.attentions.values())

    def __len__(self) -> int:
        return len(self.attentions)

    def tensor(self, place: str, site: str) -> Tensor:
        """Return what passed a site at a place, e.g. tensor("encoder.0", "residual"); several calls are
        concatenated."""
        tensors = [call[site] for call in self.calls.get(place, ()) if site in call]
        if not tensors:
            sites = {name: _list_sites(calls) for name, calls in self.calls.items()}
            near = nearest_place(place, [name for name, known in sites.items() if site in known] or sites)
            known = sorted(f"{name or '(model)'}: {', '.join(own)}" for name, own in sites.items())
            raise QkvError(f"no {site!r} was recorded at {place!r}{near} Recorded were:\n  " + "\n  ".join(known))
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=-2)

    def certify(self) -> dict[str, Tensor]:
        """Compute the largest |weights @ value - context| by place and head: {place: (heads,)}."""
        return {attention.place: attention.certify() for attention in self}


def _list_sites(calls: Sequence[Call]) -> list[str]:
    return sorted({site for call in calls for site in (*call.tensors, *call._growing)})
