"""Encoder-decoders in the manner of BART: one embedding for both sides and the answer, sublayers as in 2017."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qkv import spec
from qkv.pretrained.families.common import activation, only
from qkv.pretrained.family import Config, Family, Table
from qkv.pretrained.operations import ignored, rows_from, shaped

_SUBLAYERS = {"self_attn": "self_attention", "encoder_attn": "cross_attention"}
_PARTS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}


def side(name: str, norm: str) -> dict[str, str]:
    """The table of one side's blocks. norm: where in a `Residual` the norms stand ("before", "last")."""
    theirs, ours = f"{name}.layers.{{n}}.", f"{name}.blocks.{{n}}."
    table = {
        f"{theirs}fc1": f"{ours}feed_forward.widen",
        f"{theirs}fc2": f"{ours}feed_forward.narrow",
        f"{theirs}final_layer_norm": f"{ours}feed_forward_residual.{norm}",
    }
    for attention, at in _SUBLAYERS.items():
        if name == "encoder" and at == "cross_attention":
            continue
        table[f"{theirs}{attention}_layer_norm"] = f"{ours}{at}_residual.{norm}"
        table |= {f"{theirs}{attention}.{part}": f"{ours}{at}.{target}" for part, target in _PARTS.items()}
    return table


SHARED: Table = {
    "shared": "encoder.embedding.tokens",
    "encoder.embed_tokens": "encoder.embedding.tokens",
    "decoder.embed_tokens": "decoder.embedding.tokens",
    "lm_head.weight": "answer.vectors",
    "final_logits_bias": shaped("answer.bias", (1, -1)),
    "encoder.version": ignored(),
    "decoder.version": ignored(),
}
"""One embedding, under all of its names, and what is added to the scores."""
_LEARNED: Table = {
    f"{name}.embed_positions": rows_from(2, f"{name}.embedding.positions") for name in ("encoder", "decoder")
}
_READ: Table = {f"{name}.layernorm_embedding": f"{name}.embedding.norm" for name in ("encoder", "decoder")}
_FINAL: Table = {f"{name}.layer_norm": f"{name}.final_norm" for name in ("encoder", "decoder")}
WAVES: Table = {f"{name}.embed_positions": ignored() for name in ("encoder", "decoder")}
"""Older files hold the sinusoids, which are computed here."""

_BART: Table = {**SHARED, **_LEARNED, **_READ, **side("encoder", "last"), **side("decoder", "last")}
_PRE: Table = {**SHARED, **_FINAL, **side("encoder", "before"), **side("decoder", "before")}


def stack(config: Config, name: str, norm_at: str, vocab: int, **more: Any) -> spec.Stack:
    """The encoder or decoder of a configuration that names its sizes as BART's does."""
    only(config, "tie_word_embeddings", True)
    decodes, width = name == "decoder", config["d_model"]
    attention = spec.Attention(config[f"{name}_attention_heads"], width // config[f"{name}_attention_heads"])
    block = spec.Block(
        replace(attention, causal=decodes),
        spec.FeedForward(config[f"{name}_ffn_dim"], activation(config.get("activation_function", "gelu"))),
        attention if decodes else None,
        norm_at=norm_at,  # type: ignore[arg-type]
    )
    reads = spec.Tokens(vocab, scale=config.get("scale_embedding", False))
    return spec.Stack(width, (block,) * config[f"{name}_layers"], reads, **more)


def _transformer(config: Config, norm_at: str, **more: Any) -> spec.Transformer:
    encoder, decoder = (stack(config, name, norm_at, config["vocab_size"], **more) for name in ("encoder", "decoder"))
    return spec.Transformer(encoder, decoder, spec.Vocabulary(bias=True), shared_embedding=True)


def _bart(config: Config) -> spec.Transformer:
    positions = spec.Learned(config.get("max_position_embeddings", 1024))
    return _transformer(config, "post", positions=positions, embed_norm=spec.Norm())


def _mbart(config: Config) -> spec.Transformer:
    positions = spec.Learned(config.get("max_position_embeddings", 1024))
    return _transformer(config, "pre", positions=positions, embed_norm=spec.Norm(), final_norm=spec.Norm())


def _m2m100(config: Config) -> spec.Transformer:
    """Positions count from the one after the padding token's number, as in fairseq."""
    config = {"activation_function": "relu", "scale_embedding": True, **config}
    positions = spec.Sinusoidal("tensor2tensor", start=config.get("pad_token_id", 1) + 1)
    found = _transformer(config, "pre", positions=positions, final_norm=spec.Norm())
    return replace(found, answers=spec.Vocabulary())


_M2M100: Table = {**_PRE, **WAVES}

_BIAS = ("answer.bias",)
FAMILIES = (
    Family("BART", ("bart",), _bart, lambda config: _BART, zeros=_BIAS, prefix="model."),
    Family("mBART", ("mbart",), _mbart, lambda config: {**_PRE, **_LEARNED, **_READ}, zeros=_BIAS, prefix="model."),
    Family("M2M100", ("m2m_100",), _m2m100, lambda config: _M2M100, prefix="model."),
)
