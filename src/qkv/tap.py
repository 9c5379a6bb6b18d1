"""The tap: the one way to see, or to change, what flows through a model.

A tap is passed down a forward pass as one keyword. At each *site* the model hands it a tensor and goes on with
whatever the tap returns. The tap of this file, `NO_TAP`, returns what it was given; a model that nobody looks
into pays one Python call a site, and nothing at all once compiled.

    embedding     what enters the first block                       (batch, length, d_model)
    residual      what leaves a block                               (batch, length, d_model)
    query         after projection, norm and placing                (batch, heads, queries, d_key)
    key                                                             (batch, kv_heads, keys, d_key)
    value                                                           (batch, kv_heads, keys, d_value)
    scores        before the softmax, everything added              (batch, heads, queries, keys)
    weights       after the softmax                                 (batch, heads, queries, keys)
    context       weights @ value                                   (batch, heads, queries, d_value)
    output        of the attention, after W_O                       (batch, length, d_model)
    feed_forward  of the feed-forward layer                         (batch, length, d_model)
    memory        the encoder's result                              (batch, sources, d_model)
    logits        the answer                                        (batch, length, vocab)

`scores` and `weights` exist only where attention is computed step by step. A tap that *replaces* one of them
says so in `replaces`, and that attention then takes the explicit rendering; a tap that only reads them has no need
to: `score_terms` tells it how the scores come from query and key, so it can compute them afterwards, exactly.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

from qkv.errors import QkvError

if TYPE_CHECKING:
    from torch import Tensor

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
    """Sees nothing and changes nothing; the base of every tap that does."""

    def replaces(self, site: Site) -> bool:
        """Whether this tap replaces the tensors of `site` ("scores" and "weights" cost the fused kernel)."""
        return False

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        """Receive the tensor at `site`; return what the model shall go on with."""
        return tensor

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Return what is added to the scores of query and key as a bias, -inf to hide; None for nothing.

        It broadcasts to (batch, heads, queries, keys). Unlike a replacement of "scores", it stays on the fused kernel.
        """
        return None

    def score_terms(self, **terms: Any) -> None:
        """Receive how this attention forms its scores: mask, bias, scale, softcap, sinks, score (see `attend`)."""

    def patterns(self) -> tuple[str, ...]:
        """Return the place patterns that this tap acts on, so that one that matches no place can be refused."""
        return ()

    def at(self, place: str) -> Tap:
        """Return the tap for a part of the model, e.g. tap.at("decoder").at("3").at("self_attention")."""
        return self


NO_TAP = Tap()


def matches_place(pattern: str, place: str) -> bool:
    """Return whether a pattern names a place; "*" stands for any one part, as in "decoder.*.cross_attention"."""
    names, parts = pattern.split("."), place.split(".")
    return len(names) == len(parts) and all(name in ("*", part) for name, part in zip(names, parts, strict=True))


def check_patterns(tap: Tap, places: Iterable[str]) -> None:
    """Raise QkvError for a pattern of a tap that matches no place of a model: it would silently change nothing."""
    known = list(places)
    for pattern in tap.patterns():
        if not any(matches_place(pattern, place) for place in known):
            raise QkvError(
                f"{pattern!r} matches no place of this model{nearest_place(pattern, known)} qkv.look(model, "
                f"text).places "
                "lists the attentions"
            )


def nearest_place(pattern: str, places: Iterable[str]) -> str:
    """Return "; did you mean ...?" for the known place that a misspelled one resembles most; "." without any."""
    near = difflib.get_close_matches(pattern, list(places), n=1, cutoff=0.0)
    return f"; did you mean {near[0]!r}?" if near else "."
