"""Rules for the outputs of a model, whatever its source. This module needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class GenerationRules:
    """Rules for generated outputs, in the words of Hugging Face's GenerationConfig.

    bos: the first token of the decoder's input; None where the first token of a prefix takes its place. eos: the end
    token, or several, any of which ends an output. suppress_tokens: tokens that no output may contain. forced_prefix:
    tokens that every output begins with, such as that of a language. forced_eos: the token at the maximum length.
    begin_suppress_tokens: tokens that may not come first after the forced tokens.
    prefixes: for each row, tokens that its output is forced to begin with; the prompts of a model without an encoder.
    constraints: for each row, what its output must or must not contain (`qkv.decoding.constraints`).
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
        """Return the rules that apply to every row, as a model card stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)[:6]}
