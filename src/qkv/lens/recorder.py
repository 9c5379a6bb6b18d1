"""The tap that records the tensors of a `Trace`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qkv.score_terms import ScoreTerms
from qkv.tap import NO_TAP, Site, Tap

# Tensors with an entry for each query and key: quadratic in length, so they are recomputed on demand, never kept.
_QUADRATIC = ("scores", "weights")


@dataclass
class _GrowingTensor:
    """A tensor that grows along its keys from step to step; earlier steps used a prefix of it."""

    tensor: Tensor

    def has_prefix(self, shorter: Tensor) -> bool:
        longer = self.tensor
        if longer.shape[:2] != shorter.shape[:2] or longer.shape[3:] != shorter.shape[3:]:
            return False
        if longer.shape[2] < shorter.shape[2]:
            return False
        beginning = longer[:, :, : shorter.shape[2]]
        same_storage = beginning.data_ptr() == shorter.data_ptr() and beginning.stride() == shorter.stride()
        return same_storage or torch.equal(beginning, shorter)


@dataclass
class Call:
    """One call at one place: its tensors by site and, for an attention, its score terms."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    recorded_terms: ScoreTerms | None = None
    _growing: dict[str, tuple[_GrowingTensor, int]] = field(default_factory=dict)

    @property
    def score_terms(self) -> ScoreTerms:
        """The score terms; those of a plain scaled dot product if none were recorded."""
        return ScoreTerms() if self.recorded_terms is None else self.recorded_terms

    def __getitem__(self, site: str) -> Tensor:
        if site in self._growing:
            grown, length = self._growing[site]
            return grown.tensor[:, :, :length]
        return self.tensors[site]

    def __contains__(self, site: str) -> bool:
        return site in self.tensors or site in self._growing

    def get_full(self, site: str) -> Tensor:
        """Return the tensor including what later calls appended to it, which they share."""
        return self._growing[site][0].tensor if site in self._growing else self.tensors[site]

    def record(self, site: str, tensor: Tensor, before: Call | None) -> None:
        """Keep a reference; one tensor serves all steps of decoding whose keys (or values) only grow."""
        if site not in ("key", "value"):
            self.tensors[site] = tensor
            return
        grown = _GrowingTensor(tensor)
        if before is not None and site in before and grown.has_prefix(before[site]):
            grown = before._growing[site][0]
            grown.tensor = tensor
        self._growing[site] = (grown, tensor.shape[2])


class Recorder(Tap):
    """A tap that keeps a reference to every tensor, by place; it changes nothing and keeps the fused kernel.

    Several calls at one place, as in step-by-step decoding, are kept in order. inner: an edit; the record contains the
    tensors that the model continued with. sites: the sites to keep, by default all.
    """

    def __init__(self, inner: Tap = NO_TAP, sites: Collection[Site] | None = None) -> None:
        self.calls: dict[str, list[Call]] = {}
        self._inner, self._sites = inner, sites
        self._place = ""

    def replaces(self, site: Site) -> bool:
        """Return whether the inner tap replaces the site: recording replaces nothing."""
        return self._inner.replaces(site)

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        """Keep a reference to the tensor and return it, unless the inner tap replaces it."""
        tensor = self._inner(site, tensor)
        if site not in _QUADRATIC and (self._sites is None or site in self._sites):
            kept = tensor.detach() if tensor.requires_grad else tensor
            self._current_call(site).record(site, kept, self._previous_call())
        return tensor

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Return the bias of the inner tap, which becomes a part of the recorded bias."""
        return self._inner.score_bias(query, key)

    def score_terms(self, terms: ScoreTerms) -> None:
        """Keep how this attention forms its scores."""
        self._current_call("terms").recorded_terms = terms
        self._inner.score_terms(terms)

    def check_applied(self, *, positions: bool = True) -> None:
        """Raise QkvError if the inner tap has found nothing to change."""
        self._inner.check_applied(positions=positions)

    def at(self, place: str) -> Recorder:
        """Return the recorder for a part of the model; it shares the record with this one."""
        part = Recorder(self._inner.at(place), self._sites)
        part.calls = self.calls
        part._place = f"{self._place}.{place}" if self._place else place
        return part

    def _current_call(self, site: str) -> Call:
        """Return the current call at this place: a new one if this site has already passed in the last."""
        calls = self.calls.setdefault(self._place, [])
        if not calls or (site in calls[-1] if site != "terms" else calls[-1].recorded_terms is not None):
            calls.append(Call())
        return calls[-1]

    def _previous_call(self) -> Call | None:
        calls = self.calls[self._place]
        return calls[-2] if len(calls) > 1 else None
