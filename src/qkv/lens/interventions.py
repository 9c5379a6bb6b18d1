"""Taps that change what a model does: one change each, and any number of them together.

    ablate      a head's context becomes 0, its mean over another run, or what it was elsewhere in another run
    knock_out   some queries may not look at some keys; the weights are shared out among the others
    patch       query, key, value or context become those of another run
    swap_values two keys exchange what they say and are found as before

All of them work in a forward pass, in scoring and inside every kind of decoding, and leave the fused kernel in use.
Rows of a batch are treated alike, because a search moves, repeats and drops them. A place may hold "*" for any one
part: "decoder.*.cross_attention". Positions count over the steps of a decoding: the first token fed is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from qkv.errors import QkvError
from qkv.lens.trace import AttentionTrace
from qkv.tap import NO_TAP, Site, Tap, matches_place

ReplacementFunction = Callable[[Tensor, int], Tensor]
"""From what passes a site, and the position of the first query there, to what the model shall go on with."""


class Compose(Tap):
    """Several taps as one; each is given what the one before it returned."""

    def __init__(self, *taps: Tap) -> None:
        self._taps = taps

    def replaces(self, site: Site) -> bool:
        """Whether any of them replaces the site."""
        return any(tap.replaces(site) for tap in self._taps)

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        """Pass the tensor through all of them."""
        for tap in self._taps:
            tensor = tap(site, tensor)
        return tensor

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """The sum of what they add."""
        added: Tensor | None = None
        for tap in self._taps:
            if (more := tap.score_bias(query, key)) is not None:
                added = more if added is None else added + more
        return added

    def score_terms(self, **terms: object) -> None:
        """Tell all of them."""
        for tap in self._taps:
            tap.score_terms(**terms)

    def patterns(self) -> tuple[str, ...]:
        """The patterns of all of them."""
        return tuple(pattern for tap in self._taps for pattern in tap.patterns())

    def at(self, place: str) -> Compose:
        """Return all of them, seen from a part of the model."""
        return Compose(*(tap.at(place) for tap in self._taps))


class _PlaceMatcher:
    """Where a tap is, where it shall act, and which position the first query has there.

    In a self-attention the keys say how many tokens came before the queries; elsewhere they are counted, from the
    last time that a source was read.
    """

    def __init__(self, pattern: str, place: str = "", counts: dict[str, int] | None = None, keys: int = 0) -> None:
        self.pattern, self.place = pattern, place
        self.counts: dict[str, int] = {} if counts is None else counts
        self.begin, self._keys = 0, 0
        self.matches = matches_place(pattern, place)

    def at(self, part: str) -> _PlaceMatcher:
        return _PlaceMatcher(self.pattern, f"{self.place}.{part}" if self.place else part, self.counts)

    def track(self, site: Site, tensor: Tensor) -> None:
        if site == "memory":
            self.counts.clear()
        elif self.matches and site == "key":
            self._keys = tensor.shape[2]
        elif self.matches and site == "query":
            if self.place.endswith("self_attention"):
                self.begin = self._keys - tensor.shape[2]
            else:
                self.begin = self.counts.get(self.place, 0)
                self.counts[self.place] = self.begin + tensor.shape[2]


class _ReplaceTap(Tap):
    """Puts the result of a `Change` in the place of what passes one site."""

    def __init__(self, matcher: _PlaceMatcher, site: Site, function: ReplacementFunction, inner: Tap) -> None:
        self._matcher, self._site, self._function, self._inner = matcher, site, function, inner

    def replaces(self, site: Site) -> bool:
        """Whether this is the place and the site to replace."""
        return (site == self._site and self._matcher.matches) or self._inner.replaces(site)

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        """Return the replacement at the chosen place and site, and elsewhere what was given."""
        tensor = self._inner(site, tensor)
        self._matcher.track(site, tensor)
        return self._function(tensor, self._matcher.begin) if site == self._site and self._matcher.matches else tensor

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """What the inner tap adds."""
        return self._inner.score_bias(query, key)

    def score_terms(self, **terms: object) -> None:
        """Pass on how this attention forms its scores."""
        self._inner.score_terms(**terms)

    def patterns(self) -> tuple[str, ...]:
        """The pattern of this intervention, and those of the inner tap."""
        return (self._matcher.pattern, *self._inner.patterns())

    def at(self, place: str) -> _ReplaceTap:
        """Return the same intervention, seen from a part of the model."""
        return _ReplaceTap(self._matcher.at(place), self._site, self._function, self._inner.at(place))


class Intervention(_ReplaceTap):
    """Replaces what passes one site by a function of it; give another tap as `inner` to do more.

    Replacing "scores" or "weights" takes that one attention, and no other, off the fused kernel.
    """

    def __init__(self, place: str, site: Site, function: Callable[[Tensor], Tensor], inner: Tap = NO_TAP) -> None:
        super().__init__(_PlaceMatcher(place), site, lambda tensor, _: function(tensor), inner)


class _KnockOutTap(Tap):
    """Hides keys from queries by a bias."""

    def __init__(
        self, matcher: _PlaceMatcher, keys: list[int], queries: list[int] | None, heads: Sequence[int] | None
    ) -> None:
        self._matcher, self._keys, self._queries, self._heads = matcher, keys, queries, heads

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        """Follow the positions, and change nothing."""
        self._matcher.track(site, tensor)
        return tensor

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """-inf where nobody may look any more."""
        if not self._matcher.matches:
            return None
        begin, length = self._matcher.begin, query.shape[2]
        keys = [number for number in self._keys if number < key.shape[2]]
        rows = None if self._queries is None else [row - begin for row in self._queries if 0 <= row - begin < length]
        if not keys or rows == []:
            return None
        heads = None if self._heads is None else _check_heads(self._heads, query.shape[1], self._matcher.place)
        hidden = query.new_zeros(1, 1 if heads is None else query.shape[1], 1 if rows is None else length, key.shape[2])
        hidden[:, _build_index(heads or [0], 2), _build_index(rows or [0], 1), keys] = -math.inf
        return hidden

    def patterns(self) -> tuple[str, ...]:
        """The pattern of this intervention."""
        return (self._matcher.pattern,)

    def at(self, place: str) -> _KnockOutTap:
        """Return the same intervention, seen from a part of the model."""
        return _KnockOutTap(self._matcher.at(place), self._keys, self._queries, self._heads)


def knock_out(
    place: str,
    keys: Sequence[int],
    queries: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    head: int | None = None,
) -> Tap:
    """Let some queries (all unless given) not look at some keys, in some heads (all unless given).

    A query that has no key left takes nothing. Raises QkvError for positions below 0 and heads that there are not.
    """
    rows = None if queries is None else _check_positions(queries)
    return _KnockOutTap(_PlaceMatcher(place), _check_positions(keys), rows, _select_heads(heads, head))


def ablate(
    place: str,
    heads: Sequence[int] | None = None,
    by: Literal["zero", "mean", "resample"] = "zero",
    of: AttentionTrace | None = None,
    seed: int = 0,
    *,
    head: int | None = None,
) -> Tap:
    """Take from heads (all unless given) what they found out: the context of each becomes 0 or that of another run.

    by: "mean" is the mean of the head's context over all rows and queries of the run `of`; "resample" is, for each
    position, what the head took at another one of that run, drawn once by `seed`, in all heads alike.
    Raises QkvError where `of` is missing or has another shape.
    """
    heads = _select_heads(heads, head)
    if by == "zero":
        return _ReplaceTap(
            _PlaceMatcher(place), "context", lambda tensor, _: _replace(tensor, None, heads, place), NO_TAP
        )
    if of is None:
        raise QkvError(f"by={by!r} was given without `of`, the run it takes contexts from; give lens.look(...)[place]")
    context = of.context
    if by == "mean":
        mean = context.mean(dim=(0, 2), keepdim=True)
        return _ReplaceTap(
            _PlaceMatcher(place), "context", lambda tensor, _: _replace(tensor, mean, heads, place), NO_TAP
        )
    others = context.transpose(1, 2).flatten(0, 1)  # (rows * queries, heads, d_value)
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).to(others.device)

    def resample(tensor: Tensor, begin: int) -> Tensor:
        places = torch.arange(begin, begin + tensor.shape[2], device=tensor.device) % len(others)
        return _replace(tensor, others[drawn[places]].transpose(0, 1)[None], heads, place)

    return _ReplaceTap(_PlaceMatcher(place), "context", resample, NO_TAP)


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
    """Put what passed a site in another run, in its row `row`, in the place of what passes it now.

    heads: all unless given; of keys and values they are the kv_heads. positions: of queries, or of keys for "key"
    and "value"; all unless given. Raises QkvError where the other run is too short or has another shape.
    """
    heads = _select_heads(heads, head)
    if site not in ("query", "key", "value", "context"):
        raise QkvError(f"site={site!r} was given; expected query, key, value or context")
    other: Tensor = getattr(of, site)
    if not 0 <= row < len(other):
        raise QkvError(f"row={row} was given; the run to patch from has rows 0 to {len(other) - 1}")
    other = other[row : row + 1]
    wanted = None if positions is None else _check_positions(positions)

    def patch_site(tensor: Tensor, begin: int) -> Tensor:
        first, length = 0 if site in ("key", "value") else begin, tensor.shape[2]
        here = range(first, first + length) if wanted is None else [p for p in wanted if first <= p < first + length]
        if missing := [position for position in here if position >= other.shape[2]]:
            raise QkvError(
                f"{place}: {site} {missing[0]} was to be patched; the other run has {other.shape[2]} of them: "
                "name `positions` that both have"
            )
        taken = other.to(tensor)[:, :, list(here)]
        return _replace(tensor, taken, heads, place, [position - first for position in here])

    return _ReplaceTap(_PlaceMatcher(place), site, patch_site, NO_TAP)


def swap_values(
    place: str, first: int, second: int, heads: Sequence[int] | None = None, *, head: int | None = None
) -> Tap:
    """Let the keys at two positions say what the other would say, in some kv_heads (all unless given).

    Who is looked at stays as it was. In a causal self-attention the later value reaches earlier queries; step by
    step nothing is swapped before both are there.
    """
    positions, heads = _check_positions([first, second]), _select_heads(heads, head)

    def swap(tensor: Tensor, _: int) -> Tensor:
        if max(positions) >= tensor.shape[2]:
            return tensor
        return _replace(tensor, tensor[:, :, positions[::-1]], heads, place, positions)

    return _ReplaceTap(_PlaceMatcher(place), "value", swap, NO_TAP)


def _replace(
    tensor: Tensor, new: Tensor | None, heads: Sequence[int] | None, place: str, positions: list[int] | None = None
) -> Tensor:
    """A copy of tensor (rows, heads, length, d) with `new` (or 0) at some heads and positions."""
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
    """The heads that `heads` or `head` names; None for all of them."""
    if heads is not None and head is not None:
        raise QkvError(f"heads={list(heads)} and head={head} were given; expected one of the two")
    return heads if head is None else [head]


def _build_index(numbers: Sequence[int], axes: int) -> Tensor:
    """Numbers as an index whose axis stands before `axes` others."""
    return torch.tensor(list(numbers)).view(-1, *[1] * axes)


def _check_positions(numbers: Sequence[int]) -> list[int]:
    if wrong := [number for number in numbers if number < 0]:
        raise QkvError(f"position {wrong[0]} was given; positions count from 0, the first token")
    return list(dict.fromkeys(numbers))


def _check_heads(heads: Sequence[int], n_heads: int, place: str) -> list[int]:
    if wrong := [head for head in heads if not 0 <= head < n_heads]:
        raise QkvError(f"{place}: head={wrong[0]} was given; it has heads 0 to {n_heads - 1}")
    return list(heads)
