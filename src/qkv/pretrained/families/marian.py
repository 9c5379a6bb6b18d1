"""Marian (Junczys-Dowmunt et al. 2018): the models of OPUS-MT as transformers keeps them, and Marian's own files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml
from torch import Tensor

from qkv import spec
from qkv.errors import CheckpointError
from qkv.pretrained.families.bart import SHARED, WAVES, side, stack
from qkv.pretrained.families.common import activation, only
from qkv.pretrained.family import Config, Family, Table, WholeFile
from qkv.pretrained.operations import longer, shaped, transposed
from qkv.pretrained.weights import Weights
from qkv.pretrained.weights.marian import SETTINGS

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


# Marian's own files. Their decoder begins with a vector of zeros that is no token's; here it is a token after the
# others, which no answer holds.

_END, _UNKNOWN = 0, 1
"""The numbers that every vocabulary of Marian gives them."""
_ALWAYS: Config = {
    "type": "transformer",
    "tied-embeddings-all": True,
    "transformer-preprocess": "",
    "transformer-postprocess": "dan",
    "transformer-postprocess-top": "",
    "transformer-ffn-depth": 2,
    "transformer-no-projection": False,
    "transformer-pool": False,
    "transformer-tied-layers": [],
    "transformer-train-position-embeddings": False,
    "right-left": False,
}
"""What is known of settings that change the result: add and normalise after each part, tie all embeddings."""


def _own(config: Config) -> spec.Transformer:
    for field, value in _ALWAYS.items():
        only(config, field, value)
    sources, targets = config["dim-vocabs"]
    only({"dim-vocabs": config["dim-vocabs"]}, "dim-vocabs", [sources, sources])
    width, heads = config["dim-emb"], config["transformer-heads"]
    attention = spec.Attention(heads, width // heads)
    feed_forward = spec.FeedForward(
        config["transformer-dim-ffn"], activation(config.get("transformer-ffn-activation", "relu"))
    )
    block = spec.Block(attention, feed_forward, norm=spec.Norm(eps=1e-6), norm_at="post")
    past: spec.Attention | spec.Recurrence = replace(attention, causal=True)
    if _recurrent(config):
        only(config, "dec-cell", "ssru")
        past = spec.Recurrence()
    decoding = replace(block, self_attention=past, cross_attention=attention)
    whole = spec.Stack(
        width,
        (block,) * config["enc-depth"],
        spec.Tokens(targets + 1, scale=True),
        spec.Sinusoidal("tensor2tensor"),
    )
    answers = spec.Vocabulary(bias=not config.get("output-omit-bias", False))
    return spec.Transformer(whole, replace(whole, blocks=(decoding,) * config["dec-depth"]), answers, True)


def _recurrent(config: Config) -> bool:
    kind = config.get("transformer-decoder-autoreg", "self-attention")
    if kind not in ("self-attention", "rnn"):
        raise CheckpointError(f"the decoder takes its past along by {kind!r}; expected 'self-attention' or 'rnn'")
    return bool(kind == "rnn")


def _own_table(config: Config) -> Table:
    table: dict[str, Any] = {
        "Wemb": longer("encoder.embedding.tokens.weight", 1),
        "decoder_ff_logit_out_b": longer("answer.bias", 1, fill=-1e4),
    }
    parts = {"self": "self_attention", "context": "cross_attention"}
    for name in ("encoder", "decoder"):
        theirs, ours = f"{name}_l{{n}}_", f"{name}.blocks.{{n}}."
        table |= _normed(f"{theirs}ffn_ffn", f"{ours}feed_forward")
        table |= _linear(f"{theirs}ffn", {"1": "widen", "2": "narrow"}, f"{ours}feed_forward")
        for part, target in parts.items():
            table |= _normed(f"{theirs}{part}_Wo", f"{ours}{target}")
            linear = {"q": "query", "k": "key", "v": "value", "o": "output"}
            table |= _linear(f"{theirs}{part}", linear, f"{ours}{target}")
        table |= _normed(f"{theirs}rnn_ffn", f"{ours}self_attention")
        table |= _linear(f"{theirs}rnn", {"": "value", "f": "forget"}, f"{ours}self_attention")
    return table


def _linear(theirs: str, parts: Mapping[str, str], ours: str) -> Iterator[tuple[str, Any]]:
    for letter, part in parts.items():
        yield f"{theirs}_W{letter}", transposed(f"{ours}.{part}.weight")
        yield f"{theirs}_b{letter}", shaped(f"{ours}.{part}.bias", (1, -1))


def _normed(theirs: str, ours: str) -> Iterator[tuple[str, Any]]:
    yield f"{theirs}_ln_scale", shaped(f"{ours}_residual.last.weight", (1, -1))
    yield f"{theirs}_ln_bias", shaped(f"{ours}_residual.last.bias", (1, -1))


class _Counted(Mapping[str, Tensor]):
    """A file's tensors with blocks that count from 0, without what its quantised products were scaled by."""

    def __init__(self, stored: Weights) -> None:
        self._stored = stored
        self._names = {
            re.sub(r"(?<=coder_l)\d+", lambda number: str(int(number[0]) - 1), name): name
            for name in stored
            if not name.endswith("_QuantMultA")
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _settled(stored: Weights) -> tuple[Config, Mapping[str, Tensor]] | None:
    """The model in a file of Marian's, whose settings are YAML inside. Raises CheckpointError if they are not."""
    if SETTINGS not in stored.metadata:
        return None
    try:
        says = yaml.safe_load(stored.metadata[SETTINGS])
        begin = int(says["dim-vocabs"][-1])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{stored.path}: its settings ({SETTINGS}) are no YAML with dim-vocabs ({error}); convert the model again"
        ) from error
    rules = {
        "decoder_start_token_id": begin,
        "pad_token_id": begin,
        "eos_token_id": _END,
        "bad_words_ids": [[_UNKNOWN], [begin]],
        "tokenizer_class": "MarianTokenizer",  # a source ends with the end token, which their files do not say
    }
    return {**says, "model_type": "marian_own", **rules}, _Counted(stored)


FILES: tuple[WholeFile, ...] = (_settled,)
FAMILIES = (
    Family(
        "Marian",
        ("marian",),
        _marian,
        lambda config: _TABLE if _shared(config) else _APART,
        zeros=("answer.bias",),
        prefix="model.",
    ),
    Family("Marian's own", ("marian_own",), _own, _own_table),
)
