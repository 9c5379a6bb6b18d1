"""Generation rules of published models: the tokens that outputs begin and end with, and those they must not contain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qkv.errors import CheckpointError
from qkv.generation_rules import GenerationRules


def read_generation_rules(fields: Mapping[str, Any], *, has_encoder: bool) -> GenerationRules:
    """Read the generation rules from generation_config.json, or from config.json in its place, in transformers' words.

    has_encoder: whether an encoder reads the input, so that the decoder needs a start token.
    Raises CheckpointError for a rule that is not a token id, or that forbids a sequence of tokens.
    """
    begin = None
    if has_encoder:
        begin = fields.get("decoder_start_token_id")
        begin = fields.get("bos_token_id") if begin is None else begin
    forbidden = fields.get("bad_words_ids") or ()
    if any(len(word) != 1 for word in forbidden):
        raise CheckpointError(
            f"bad_words_ids={forbidden!r} forbids a word of several tokens; expected words of one token each"
        )
    suppressed = (*(word[0] for word in forbidden), *(fields.get("suppress_tokens") or ()))
    last = tuple(_parse_token_ids(fields, "forced_eos_token_id"))
    return GenerationRules(
        None if begin is None else next(iter(_validate_token_ids("decoder_start_token_id", [begin]))),
        tuple(_parse_token_ids(fields, "eos_token_id")),
        tuple(sorted(set(_validate_token_ids("bad_words_ids", suppressed)))),
        (*_parse_token_ids(fields, "forced_bos_token_id"), *_parse_forced_decoder_ids(fields)),
        last[0] if last else None,
        tuple(_validate_token_ids("begin_suppress_tokens", fields.get("begin_suppress_tokens") or ())),
    )


def _parse_token_ids(fields: Mapping[str, Any], name: str) -> Iterator[int]:
    """Yield the one or more tokens that a rule names."""
    given = fields.get(name)
    return _validate_token_ids(name, given if isinstance(given, list) else [] if given is None else [given])


def _parse_forced_decoder_ids(fields: Mapping[str, Any]) -> Iterator[int]:
    """Yield the tokens, given with their positions, that start an output, up to one that is left open (a language)."""
    for place, (number, token) in enumerate(fields.get("forced_decoder_ids") or (), start=1):
        if number != place or token is None:
            return
        yield from _validate_token_ids("forced_decoder_ids", [token])


def _validate_token_ids(name: str, values: Any) -> Iterator[int]:
    for token in values:
        if type(token) is not int or token < 0:
            raise CheckpointError(f"{name}={token!r} was given; expected the number of a token: download it again")
        yield token
