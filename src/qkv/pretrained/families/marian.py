"""Marian (Junczys-Dowmunt et al. 2018): OPUS-MT models in the format of transformers, and Marian's own files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml
from torch import Tensor

from qkv import spec
from qkv.errors import CheckpointError
from qkv.pretrained.conversions import append_rows, reshape, transpose
from qkv.pretrained.families.bart import SHARED_TABLE, SINUSOIDAL_TABLE, build_block_table, build_stack
from qkv.pretrained.families.common import parse_activation, require
from qkv.pretrained.family import Family, HFConfig, SingleFileReader, WeightTable
from qkv.pretrained.weights import LazyWeights
from qkv.pretrained.weights.marian import SETTINGS_KEY

_TABLE: WeightTable = {
    **SHARED_TABLE,
    **SINUSOIDAL_TABLE,
    **build_block_table("encoder", "last"),
    **build_block_table("decoder", "last"),
}
_UNTIED_TABLE: WeightTable = {
    **{name: target for name, target in _TABLE.items() if name != "shared"},
    "decoder.embed_tokens": "decoder.embedding.tokens",
}


def _build_marian(config: HFConfig) -> spec.Transformer:
    sides: dict[str, Any] = {"positions": spec.Sinusoidal("halves")}
    sources, targets = config["vocab_size"], config.get("decoder_vocab_size") or config["vocab_size"]
    return spec.Transformer(
        build_stack(config, "encoder", "post", sources, **sides),
        build_stack(config, "decoder", "post", targets, **sides),
        spec.Vocabulary(bias=True),
        shared_embedding=_has_shared_embedding(config),
    )


def _has_shared_embedding(config: HFConfig) -> bool:
    return bool(config.get("share_encoder_decoder_embeddings", True))


# Marian's own files. Their decoder starts with a vector of zeros that belongs to no token; here it is an extra last
# token, which no output contains.

_EOS, _UNK = 0, 1
"""The indices that every vocabulary of Marian uses for them."""
_REQUIRED_SETTINGS: HFConfig = {
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
"""Supported values of settings that change the result: add and normalise after each sublayer, tie all embeddings."""


def _build_native(config: HFConfig) -> spec.Transformer:
    for field, value in _REQUIRED_SETTINGS.items():
        require(config, field, value)
    sources, targets = config["dim-vocabs"]
    require({"dim-vocabs": config["dim-vocabs"]}, "dim-vocabs", [sources, sources])
    width, heads = config["dim-emb"], config["transformer-heads"]
    attention = spec.Attention(heads, width // heads)
    feed_forward = spec.FeedForward(
        config["transformer-dim-ffn"], parse_activation(config.get("transformer-ffn-activation", "relu"))
    )
    block = spec.Block(attention, feed_forward, norm=spec.Norm(eps=1e-6), norm_at="post")
    past: spec.Attention | spec.SSRU = replace(attention, causal=True)
    if _is_recurrent(config):
        require(config, "dec-cell", "ssru")
        past = spec.SSRU()
    decoding = replace(block, self_attention=past, cross_attention=attention)
    whole = spec.Stack(
        width,
        (block,) * config["enc-depth"],
        spec.Tokens(targets + 1, scale=True),
        spec.Sinusoidal("tensor2tensor"),
    )
    answers = spec.Vocabulary(bias=not config.get("output-omit-bias", False))
    return spec.Transformer(whole, replace(whole, blocks=(decoding,) * config["dec-depth"]), answers, True)


def _is_recurrent(config: HFConfig) -> bool:
    kind = config.get("transformer-decoder-autoreg", "self-attention")
    if kind not in ("self-attention", "rnn"):
        raise CheckpointError(f"the decoder's autoregressive attention is {kind!r}; expected 'self-attention' or 'rnn'")
    return bool(kind == "rnn")


def _build_native_table(config: HFConfig) -> WeightTable:
    table: dict[str, Any] = {
        "Wemb": append_rows("encoder.embedding.tokens.weight", 1),
        "decoder_ff_logit_out_b": append_rows("head.bias", 1, fill_value=-1e4),
    }
    parts = {"self": "self_attention", "context": "cross_attention"}
    for name in ("encoder", "decoder"):
        theirs, ours = f"{name}_l{{n}}_", f"{name}.blocks.{{n}}."
        table |= _iter_norm_entries(f"{theirs}ffn_ffn", f"{ours}feed_forward")
        table |= _iter_linear_entries(f"{theirs}ffn", {"1": "up_proj", "2": "down_proj"}, f"{ours}feed_forward")
        for part, target in parts.items():
            table |= _iter_norm_entries(f"{theirs}{part}_Wo", f"{ours}{target}")
            linear = {"q": "query", "k": "key", "v": "value", "o": "output"}
            table |= _iter_linear_entries(f"{theirs}{part}", linear, f"{ours}{target}")
        table |= _iter_norm_entries(f"{theirs}rnn_ffn", f"{ours}self_attention")
        table |= _iter_linear_entries(f"{theirs}rnn", {"": "value", "f": "forget"}, f"{ours}self_attention")
    return table


def _iter_linear_entries(theirs: str, parts: Mapping[str, str], ours: str) -> Iterator[tuple[str, Any]]:
    for letter, part in parts.items():
        yield f"{theirs}_W{letter}", transpose(f"{ours}.{part}.weight")
        yield f"{theirs}_b{letter}", reshape(f"{ours}.{part}.bias", (1, -1))


def _iter_norm_entries(theirs: str, ours: str) -> Iterator[tuple[str, Any]]:
    yield f"{theirs}_ln_scale", reshape(f"{ours}_residual.last.weight", (1, -1))
    yield f"{theirs}_ln_bias", reshape(f"{ours}_residual.last.bias", (1, -1))


class _ZeroBasedWeights(Mapping[str, Tensor]):
    """The tensors of a file with block indices from 0, without the multipliers of its quantised products."""

    def __init__(self, file_weights: LazyWeights) -> None:
        self._file_weights = file_weights
        self._names = {
            re.sub(r"(?<=coder_l)\d+", lambda number: str(int(number[0]) - 1), name): name
            for name in file_weights
            if not name.endswith("_QuantMultA")
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._file_weights[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _read_native(file_weights: LazyWeights) -> tuple[HFConfig, Mapping[str, Tensor]] | None:
    """Read the model in one of Marian's files, whose settings are YAML inside. Raises CheckpointError otherwise."""
    if SETTINGS_KEY not in file_weights.metadata:
        return None
    try:
        says = yaml.safe_load(file_weights.metadata[SETTINGS_KEY])
        begin = int(says["dim-vocabs"][-1])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{file_weights.path}: its settings ({SETTINGS_KEY}) are not YAML with dim-vocabs ({error}); convert the "
            f"model again"
        ) from error
    rules = {
        "decoder_start_token_id": begin,
        "pad_token_id": begin,
        "eos_token_id": _EOS,
        "bad_words_ids": [[_UNK], [begin]],
        "tokenizer_class": "MarianTokenizer",  # a source ends with the end token, although the files do not say so
    }
    return {**says, "model_type": "marian_native", **rules}, _ZeroBasedWeights(file_weights)


SINGLE_FILE_READERS: tuple[SingleFileReader, ...] = (_read_native,)
FAMILIES = (
    Family(
        "Marian",
        ("marian",),
        _build_marian,
        lambda config: _TABLE if _has_shared_embedding(config) else _UNTIED_TABLE,
        zero_suffixes=("head.bias",),
        base_model_prefix="model.",
    ),
    Family("Marian (native)", ("marian_native",), _build_native, _build_native_table),
)
