"""Which source tokens a hypothesis has attended to, for the coverage penalty of Wu et al. 2016."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from qkv.errors import ConfigError
from qkv.score_terms import ScoreTerms
from qkv.tap import NO_TAP, Site, Tap

ReceivedAttention = dict[str, tuple[str, Tensor]]

_WITHIN_MODEL = re.compile(r"\.(decoder|head)\..*")
"""The part of a path within its model; the rest names the model of an ensemble."""


class CrossAttentionTap(Tap):
    """A tap that keeps the attention that each source token receives in the last cross-attention of each model.

    Reading the weights takes the cross-attention, and nothing else, off the fused kernel.
    inner: a tap that is applied first.
    received: by model, the place of that attention and the weights (rows, sources), averaged over heads and summed
        over queries, since it was last cleared.
    """

    def __init__(self, inner: Tap = NO_TAP, path: str = "", received: ReceivedAttention | None = None) -> None:
        self.inner, self.path = inner, path
        self.received: ReceivedAttention = {} if received is None else received

    def replaces(self, site: Site) -> bool:
        return (site == "weights" and self._is_cross_attention) or self.inner.replaces(site)

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        tensor = self.inner(site, tensor)
        if site == "weights" and self._is_cross_attention:
            received = tensor.float().mean(1).sum(1)
            model = _WITHIN_MODEL.sub("", self.path)
            place, before = self.received.get(model, (self.path, None))
            # A model may look one query at a time, which adds up; but a later block replaces an earlier one.
            if place == self.path and before is not None:
                received = received + before
            self.received[model] = self.path, received
        return tensor

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        return self.inner.score_bias(query, key)

    def score_terms(self, terms: ScoreTerms) -> None:
        self.inner.score_terms(terms)

    def check_applied(self, *, positions: bool = True) -> None:
        self.inner.check_applied(positions=positions)

    def at(self, place: str) -> CrossAttentionTap:
        return CrossAttentionTap(self.inner.at(place), f"{self.path}.{place}", self.received)

    @property
    def _is_cross_attention(self) -> bool:
        return self.path.endswith(".cross_attention")


class Coverage:
    """The attention that each source token has received so far, for every unfinished hypothesis: (rows, sources).

    latest: the `received` of a `CrossAttentionTap`. Padding counts as covered.
    """

    def __init__(self, beta: float, latest: ReceivedAttention, source_mask: Tensor) -> None:
        self.beta, self.latest = beta, latest
        self.received = (~source_mask).to(torch.float32)

    def update(self) -> None:
        """Add the attention of the last step."""
        if not self.latest:
            raise ConfigError(
                [f"coverage_penalty={self.beta}: this model has no cross-attention to take it from; expected 0"]
            )
        self.received = self.received + torch.stack([received for _, received in self.latest.values()]).mean(0)
        self.latest.clear()

    def reorder(self, index: Tensor) -> None:
        """Reorder the hypotheses as the search does."""
        self.received = self.received[index]

    def penalty(self) -> Tensor:
        """Return beta * sum over sources of log(min(received, 1)) (Wu et al. 2016, eq. 14), (rows,)."""
        tiny = torch.finfo(torch.float32).tiny
        return self.beta * self.received.clamp(tiny, 1.0).log().sum(-1)
