"""What the answers of a model must keep to, whoever made the model. This file needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class GenerationRules:
    """What generated answers must keep to, in the words of Hugging Face's GenerationConfig.

    bos: the token that the decoder is fed first; None where the first token of a prefix takes its place. eos: the end
    token, or several of which any ends an answer. suppress_tokens: tokens that no answer may contain. forced_prefix:
    tokens that every answer begins with, such as that of a language. forced_eos: the token that stands at the greatest
    length. begin_suppress_tokens: tokens that may not come first after all that an answer is forced to begin with.
    prefixes: tokens that the answer of each row is forced to begin with; the prompts of a model without an encoder.
    constraints: what the answer of each row must contain or may not contain (`qkv.decoding.constraints`).
    """

    bos: int | None
    eos: int | tuple[int, ...]
    suppress_tokens: tuple[int, ...] = ()
    forced_prefix: tuple[int, ...] = ()
    forced_eos: int | None = None
    begin_suppress_tokens: tuple[int, ...] = ()
    prefixes: Sequence[Sequence[int]] | None = None
    constraints: Sequence[Any] | None = None

    @property
    def eos_tokens(self) -> tuple[int, ...]:
        """The end tokens."""
        return (self.eos,) if isinstance(self.eos, int) else tuple(self.eos)

    def select_rows(self, rows: Sequence[int]) -> GenerationRules:
        """Return the rules of some rows."""
        prefixes = None if self.prefixes is None else [self.prefixes[row] for row in rows]
        constraints = None if self.constraints is None else [self.constraints[row] for row in rows]
        return replace(self, prefixes=prefixes, constraints=constraints)

    def to_json(self) -> dict[str, Any]:
        """Return the rules that hold for every row, as a card keeps them."""
        return {field.name: getattr(self, field.name) for field in fields(self)[:6]}
