"""Marian (Junczys-Dowmunt et al. 2018) as transformers keeps it: the models of OPUS-MT."""

from __future__ import annotations

from typing import Any

from qkv import spec
from qkv.pretrained.families.bart import SHARED, WAVES, side, stack
from qkv.pretrained.family import Config, Family, Table

_TABLE: Table = {**SHARED, **WAVES, **side("encoder", "last"), **side("decoder", "last")}
_APART: Table = {
    **{name: target for name, target in _TABLE.items() if name != "shared"},
    "decoder.embed_tokens": "decoder.embedding.tokens",
}


def _marian(config: Config) -> spec.Transformer:
    sides: dict[str, Any] = {"positions": spec.Sinusoidal("halves")}
    sources, targets = config["vocab_size"], config.get("decoder_vocab_size") or config["vocab_size"]
    return spec.Transformer(
        stack(config, "encoder", "post", sources, **sides),
        stack(config, "decoder", "post", targets, **sides),
        spec.Vocabulary(bias=True),
        shared_embedding=_shared(config),
    )


def _shared(config: Config) -> bool:
    return bool(config.get("share_encoder_decoder_embeddings", True))


FAMILIES = (
    Family(
        "Marian",
        ("marian",),
        _marian,
        lambda config: _TABLE if _shared(config) else _APART,
        zeros=("answer.bias",),
        prefix="model.",
    ),
)
