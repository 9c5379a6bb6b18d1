"""Taps that change what a model does: one edit each, and any number of them together.

    ablate      replaces a head's context by 0, by its mean over another run, or by contexts of another run
    knock_out   hides some keys from some queries; the softmax distributes the weight over the other keys
    patch       replaces query, key, value or context by those of another run
    swap_values exchanges the values of two keys and keeps the weights

All of them work in a forward pass, in scoring and in every decoding method, and keep the fused kernel. They treat the
rows of a batch alike, because a search reorders, repeats and drops rows. A place may contain "*" for any one part, as
in
"decoder.*.cross_attention". Positions are counted over the steps of decoding, from 0 for the first token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from qkv.errors import QkvError
from qkv.lens.trace import AttentionTrace
from qkv.score_terms import ScoreTerms
from qkv.tap import NO_TAP, Site, Tap, matches_place, nearest_place

ReplacementFunction = Callable[[Tensor, int], Tensor]
"""Maps the tensor at a site and the position of its first query to the tensor that the model continues with."""


_POSITION_NAMES = {"query": "query position", "key": "key position"}


class Compose(Tap):
    """Several taps as one; each receives what the previous one returned."""

    def __init__(self, *taps: Tap) -> None:
        self._taps = taps

    def replaces(self, site: Site) -> bool:
        """Return whether any of them replaces the site."""
        return any(tap.replaces(site) for tap in self._taps)

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        """Pass the tensor through all of them."""
        for tap in self._taps:
            tensor = tap(site, tensor)
        return tensor

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Return the sum of their biases."""
        added: Tensor | None = None
        for tap in self._taps:
            if (more := tap.score_bias(query, key)) is not None:
                added = more if added is None else added + more
        return added

    def score_terms(self, terms: ScoreTerms) -> None:
        """Pass the terms on to all of them."""
        for tap in self._taps:
            tap.score_terms(terms)

    def check_applied(self, *, positions: bool = True) -> None:
        """Raise QkvError if one of them has found nothing to change."""
        for tap in self._taps:
            tap.check_applied(positions=positions)

    def at(self, place: str) -> Compose:
        """Return all of them for a part of the model."""
        return Compose(*(tap.at(place) for tap in self._taps))


@dataclass
class _Edit:
    """The target of an edit and what has passed it, which its taps for all parts of the model share.

    positions: the token positions that it names, by the site that they count ("query" or "key").
    passed: the sites that have passed each place. lengths: the most queries and keys where the edit applies.
    counts: how many queries have passed each place other than a self-attention since the source was encoded.
    """

    pattern: str
    site: Site
    positions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    passed: dict[str, set[str]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def check_applied(self, positions: bool) -> None:
        """Raise QkvError if something has passed, but nothing that this edit changes."""
        places = [place for place, sites in self.passed.items() if self.site in sites]
        is_missing = bool(self.passed) and not any(matches_place(self.pattern, place) for place in places)
        lengths = dict(self.lengths)
        if positions or is_missing:  # the next run is checked separately
            self.passed.clear()
            self.lengths.clear()
        if is_missing:
            raise QkvError(
                f"an edit of {self.site} was given for {self.pattern!r}, but no {self.site} passes there"
                f"{nearest_place(self.pattern, places)} qkv.look(model, text).places lists the attentions"
            )
        for site, length in lengths.items() if positions else ():
            if beyond := [number for number in self.positions.get(site, ()) if number >= length]:
                raise QkvError(
                    f"{_POSITION_NAMES[site]} {beyond[0]} was given for {self.pattern!r}; expected a position from 0 "
                    f"to {length - 1}"
                )


class _PlaceTracker:
    """A tracker that determines whether an edit applies at one place, and the position of the first query there.

    In a self-attention, keys and queries determine how many tokens came before; elsewhere the queries are counted,
    starting
    when a source is encoded.
    """

    def __init__(self, edit: _Edit, place: str = "") -> None:
        self.edit, self.place = edit, place
        self.begin, self._keys = 0, 0
        self.matches = matches_place(edit.pattern, place)

    def at(self, part: str) -> _PlaceTracker:
        return _PlaceTracker(self.edit, f"{self.place}.{part}" if self.place else part)

    def track(self, site: Site, tensor: Tensor) -> None:
        edit = self.edit
        edit.passed.setdefault(self.place, set()).add(site)
        if site == "memory":
            edit.counts.clear()
        elif self.matches and site == "key":
            self._keys = tensor.shape[2]
            edit.lengths["key"] = max(edit.lengths.get("key", 0), self._keys)
        elif self.matches and site == "query":
            if self.place.endswith("self_attention"):
                self.begin = self._keys - tensor.shape[2]
            else:
                self.begin = edit.counts.get(self.place, 0)
                edit.counts[self.place] = self.begin + tensor.shape[2]
            edit.lengths["query"] = max(edit.lengths.get("query", 0), self.begin + tensor.shape[2])


class _ReplaceTap(Tap):
    """A tap that replaces the tensor at one site by a function of it."""

    def __init__(self, tracker: _PlaceTracker, function: ReplacementFunction, inner: Tap = NO_TAP) -> None:
        self._tracker, self._function, self._inner = tracker, function, inner

    def replaces(self, site: Site) -> bool:
        """Return whether the site is the one to replace, at this place."""
        return self._applies(site) or self._inner.replaces(site)

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        """Return the replacement at the chosen place and site, and elsewhere the tensor itself."""
        tensor = self._inner(site, tensor)
        self._tracker.track(site, tensor)
        return self._function(tensor, self._tracker.begin) if self._applies(site) else tensor

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Return the bias of the inner tap."""
        return self._inner.score_bias(query, key)

    def score_terms(self, terms: ScoreTerms) -> None:
        """Pass the terms on to the inner tap."""
        self._inner.score_terms(terms)

    def check_applied(self, *, positions: bool = True) -> None:
        """Raise QkvError if this edit, or the inner tap, has found nothing to change."""
        self._inner.check_applied(positions=positions)
        self._tracker.edit.check_applied(positions)

    def at(self, place: str) -> _ReplaceTap:
        """Return the same edit for a part of the model."""
        return _ReplaceTap(self._tracker.at(place), self._function, self._inner.at(place))

    def _applies(self, site: Site) -> bool:
        return site == self._tracker.edit.site and self._tracker.matches


class Intervention(_ReplaceTap):
    """A tap that replaces the tensor at one site by a function of it, after the tap `inner`.

    Replacing "scores" or "weights" takes only that attention off the fused kernel.

    Example: `Intervention("decoder.1", "residual", lambda hidden: 0.5 * hidden)`
    """

    def __init__(self, place: str, site: Site, function: Callable[[Tensor], Tensor], inner: Tap = NO_TAP) -> None:
        super().__init__(_PlaceTracker(_Edit(place, site)), lambda tensor, _: function(tensor), inner)


class _KnockOutTap(Tap):
    """A tap that hides keys from queries by a bias."""

    def __init__(self, tracker: _PlaceTracker, heads: Sequence[int] | None) -> None:
        self._tracker, self._heads = tracker, heads

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        """Track the positions, and return the tensor unchanged."""
        self._tracker.track(site, tensor)
        return tensor

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Return -inf for the hidden keys of each query."""
        if not self._tracker.matches:
            return None
        positions, begin, length = self._tracker.edit.positions, self._tracker.begin, query.shape[2]
        keys = [number for number in positions["key"] if number < key.shape[2]]
        queries = positions.get("query")
        rows = None if queries is None else [row - begin for row in queries if 0 <= row - begin < length]
        if not keys or rows == []:
            return None
        heads = None if self._heads is None else _check_heads(self._heads, query.shape[1], self._tracker.place)
        hidden = query.new_zeros(1, 1 if heads is None else query.shape[1], 1 if rows is None else length, key.shape[2])
        hidden[:, _build_index(heads or [0], 2), _build_index(rows or [0], 1), keys] = -math.inf
        return hidden

    def check_applied(self, *, positions: bool = True) -> None:
        """Raise QkvError if nothing was hidden."""
        self._tracker.edit.check_applied(positions)

    def at(self, place: str) -> _KnockOutTap:
        """Return the same edit for a part of the model."""
        return _KnockOutTap(self._tracker.at(place), self._heads)


def knock_out(
    place: str,
    keys: Sequence[int],
    queries: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    head: int | None = None,
) -> Tap:
    """Hide some keys from some queries, in some heads (by default from all queries and in all heads).

    The context of a query without any key is 0. Raises QkvError for negative positions, for no key at all and, once
    the model has run, for a place, a head or a position that does not exist.
    """
    positions = {"key": _check_positions(keys)}
    if queries is not None:
        positions["query"] = _check_positions(queries)
    return _KnockOutTap(_PlaceTracker(_Edit(place, "query", positions)), _select_heads(heads, head))


def ablate(
    place: str,
    heads: Sequence[int] | None = None,
    by: Literal["zero", "mean", "resample"] = "zero",
    of: AttentionTrace | None = None,
    seed: int = 0,
    *,
    head: int | None = None,
) -> Tap:
    """Replace the context of heads (by default all) by 0 or by contexts of another run.

    by: "mean" uses the mean of the head's context over all rows and queries of the run `of`; "resample" uses, for each
    position, the context of a random position of that run, drawn once with `seed`, the same for all heads.
    Raises QkvError if `of` is missing or has another shape and, once the model has run, for a place or a head that
    does not exist.

    Example: `qkv.look(model, "knight", edits=[qkv.ablate("decoder.1.cross_attention", head=0)])`
    """
    heads = _select_heads(heads, head)
    tracker = _PlaceTracker(_Edit(place, "context"))
    if by == "zero":
        return _ReplaceTap(tracker, lambda tensor, _: _replace(tensor, None, heads, place))
    if of is None:
        raise QkvError(f"by={by!r} was given without `of`, the run to take contexts from; give lens.look(...)[place]")
    context = of.context
    if by == "mean":
        mean = context.mean(dim=(0, 2), keepdim=True)
        return _ReplaceTap(tracker, lambda tensor, _: _replace(tensor, mean, heads, place))
    others = context.transpose(1, 2).flatten(0, 1)  # (rows * queries, heads, d_value)
    permutation = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).to(others.device)

    def resample(tensor: Tensor, begin: int) -> Tensor:
        places = torch.arange(begin, begin + tensor.shape[2], device=tensor.device) % len(others)
        return _replace(tensor, others[permutation[places]].transpose(0, 1)[None], heads, place)

    return _ReplaceTap(tracker, resample)


def patch(
    place: str,
    site: Literal["query", "key", "value", "context"],
    of: AttentionTrace,
    *,
    heads: Sequence[int] | None = None,
    head: int | None = None,
    positions: Sequence[int] | None = None,
    row: int = 0,
) -> Tap:
    """Replace the tensor at a site by that of another run, from its row `row`.

    heads: by default all; for keys and values they are the kv_heads. positions: of queries, or of keys for "key" and
    "value"; by default all. Raises QkvError if the other run is too short or has another shape and, once the model has
    run,
    for a place, a head or a position that does not exist.
    """
    heads = _select_heads(heads, head)
    if site not in ("query", "key", "value", "context"):
        raise QkvError(f"site={site!r} was given; expected query, key, value or context")
    other: Tensor = getattr(of, site)
    if not 0 <= row < len(other):
        raise QkvError(f"row={row} was given; the run to patch from has rows 0 to {len(other) - 1}")
    other = other[row : row + 1]
    selected = None if positions is None else _check_positions(positions)
    counted = "key" if site in ("key", "value") else "query"

    def patch_site(tensor: Tensor, begin: int) -> Tensor:
        first, length = 0 if counted == "key" else begin, tensor.shape[2]
        here: Sequence[int] = range(first, first + length)
        if selected is not None:
            here = [position for position in selected if position in here]
        if missing := [position for position in here if position >= other.shape[2]]:
            raise QkvError(
                f"{place}: {site} {missing[0]} was to be patched; the other run has {other.shape[2]} of them: "
                "name `positions` that both have"
            )
        new = other.to(tensor)[:, :, list(here)]
        return _replace(tensor, new, heads, place, [position - first for position in here])

    return _ReplaceTap(_PlaceTracker(_Edit(place, site, {counted: selected or []})), patch_site)


def swap_values(
    place: str, first: int, second: int, heads: Sequence[int] | None = None, *, head: int | None = None
) -> Tap:
    """Exchange the values of the keys at two positions, in some kv_heads (by default in all).

    The weights stay unchanged. In a causal self-attention the later value thereby reaches earlier queries; during
    decoding,
    nothing is swapped before both keys exist. Raises QkvError for negative positions and, once the model has run, for a
    place, a head or a position that does not exist.
    """
    positions, heads = _check_positions([first, second]), _select_heads(heads, head)

    def swap(tensor: Tensor, _: int) -> Tensor:
        if max(positions) >= tensor.shape[2]:
            return tensor
        return _replace(tensor, tensor[:, :, positions[::-1]], heads, place, positions)

    return _ReplaceTap(_PlaceTracker(_Edit(place, "value", {"key": positions})), swap)


def _replace(
    tensor: Tensor, new: Tensor | None, heads: Sequence[int] | None, place: str, positions: list[int] | None = None
) -> Tensor:
    """Copy a tensor (rows, heads, length, d) with `new` (or 0) at some heads and positions."""
    chosen = list(range(tensor.shape[1])) if heads is None else _check_heads(heads, tensor.shape[1], place)
    where = list(range(tensor.shape[2])) if positions is None else positions
    if new is not None and (new.shape[1] != tensor.shape[1] or new.shape[3] != tensor.shape[3]):
        raise QkvError(
            f"{place}: {new.shape[1]} heads of {new.shape[3]} numbers were to replace {tensor.shape[1]} of "
            f"{tensor.shape[3]}; take them from a run of the same model, and from the same place"
        )
    changed = tensor.clone()
    changed[:, _build_index(chosen, 1), where] = 0.0 if new is None else new.to(tensor)[:, chosen]
    return changed


def _select_heads(heads: Sequence[int] | None, head: int | None) -> Sequence[int] | None:
    """Return the heads that `heads` or `head` selects; None for all of them."""
    if heads is not None and head is not None:
        raise QkvError(f"heads={list(heads)} and head={head} were given; expected one of the two")
    return heads if head is None else [head]


def _build_index(numbers: Sequence[int], axes: int) -> Tensor:
    """Build an index whose axis is followed by `axes` others."""
    return torch.tensor(list(numbers)).view(-1, *[1] * axes)


def _check_positions(numbers: Sequence[int]) -> list[int]:
    if not numbers:
        raise QkvError("no position was given; expected at least one, counted from 0, the first token")
    if wrong := [number for number in numbers if number < 0]:
        raise QkvError(f"position {wrong[0]} was given; positions count from 0, the first token")
    return list(dict.fromkeys(numbers))


def _check_heads(heads: Sequence[int], n_heads: int, place: str) -> list[int]:
    if wrong := [head for head in heads if not 0 <= head < n_heads]:
        raise QkvError(f"{place}: head={wrong[0]} was given; it has heads 0 to {n_heads - 1}")
    return list(heads)
