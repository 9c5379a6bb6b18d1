"""The tap: the one way to observe, or to change, the tensors inside a model.

A tap is passed down a forward pass as one keyword argument. At each *site* the model hands it a tensor and continues
with whatever the tap returns. `NO_TAP` returns its argument, so a model without a tap pays for one Python call at each
site, and for nothing at all once it is compiled.

    embedding     the input of the first block                      (batch, length, d_model)
    residual      the output of a block                             (batch, length, d_model)
    query         after projection, norm and position encoding      (batch, heads, queries, d_key)
    key                                                             (batch, kv_heads, keys, d_key)
    value                                                           (batch, kv_heads, keys, d_value)
    scores        before the softmax, with mask and bias            (batch, heads, queries, keys)
    weights       after the softmax                                 (batch, heads, queries, keys)
    context       weights @ value                                   (batch, heads, queries, d_value)
    output        of the attention, after W_O                       (batch, length, d_model)
    feed_forward  the output of the feed-forward layer              (batch, length, d_model)
    memory        the output of the encoder                         (batch, sources, d_model)
    logits        the output of the model                           (batch, length, vocab)

`scores` and `weights` exist only where attention is computed step by step. A tap that *replaces* one of them says so
in `replaces`, and that attention is then computed without the fused kernel. A tap that only reads them need not:
`score_terms` says how the scores follow from query and key, so that they can be recomputed exactly afterwards.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

    from qkv.score_terms import ScoreTerms

Site = Literal[
    "embedding",
    "residual",
    "query",
    "key",
    "value",
    "scores",
    "weights",
    "context",
    "output",
    "feed_forward",
    "memory",
    "logits",
]
SITES: tuple[str, ...] = get_args(Site)


class Tap:
    """The base class of all taps, which changes nothing and records nothing."""

    def replaces(self, site: Site) -> bool:
        """Return whether this tap replaces the tensors of `site` ("scores" and "weights" cost the fused kernel)."""
        return False

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        """Receive the tensor at `site` and return the one that the model continues with."""
        return tensor

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Return a bias to add to the scores of query and key, -inf to hide a key; None for none.

        It broadcasts to (batch, heads, queries, keys). Unlike a replacement of "scores", it keeps the fused kernel.
        """
        return None

    def score_terms(self, terms: ScoreTerms) -> None:
        """Receive how this attention forms its scores: mask, bias, scale, softcap, sinks, score (see `attend`)."""

    def check_applied(self, *, positions: bool = True) -> None:
        """Raise QkvError if this tap has not changed everything that it was meant to change since the last such check.

        An edit with a misspelled place would otherwise change nothing, and look as if it had no effect.
        positions: whether to check token positions too, which is possible only after the whole input has passed.
        """

    def at(self, place: str) -> Tap:
        """Return the tap for a part of the model, e.g. tap.at("decoder").at("3").at("self_attention")."""
        return self


NO_TAP = Tap()


def matches_place(pattern: str, place: str) -> bool:
    """Return whether a pattern names a place; "*" stands for any one part, as in "decoder.*.cross_attention"."""
    names, parts = pattern.split("."), place.split(".")
    return len(names) == len(parts) and all(name in ("*", part) for name, part in zip(names, parts, strict=True))


def nearest_place(pattern: str, places: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known place that is most similar to a misspelled one; "." without any."""
    near = difflib.get_close_matches(pattern, list(places), n=1, cutoff=0.0)
    return f"; did you mean {near[0]!r}?" if near else "."
