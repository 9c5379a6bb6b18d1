"""Encoder-decoders like BART: one embedding for both sides and the output, sublayers as in the 2017 Transformer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qkv import spec
from qkv.pretrained.conversions import ignore, reshape, skip_rows
from qkv.pretrained.families.common import parse_activation, require
from qkv.pretrained.family import Family, HFConfig, WeightTable

_SUBLAYERS = {"self_attn": "self_attention", "encoder_attn": "cross_attention"}
_PARTS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}


def build_block_table(side: str, norm_position: str) -> dict[str, str]:
    """Build the table for the blocks of one side. norm_position: where the norms of a `Residual` are ("before",
    "last").
    """
    theirs, ours = f"{side}.layers.{{n}}.", f"{side}.blocks.{{n}}."
    table = {
        f"{theirs}fc1": f"{ours}feed_forward.up_proj",
        f"{theirs}fc2": f"{ours}feed_forward.down_proj",
        f"{theirs}final_layer_norm": f"{ours}feed_forward_residual.{norm_position}",
    }
    for attention, at in _SUBLAYERS.items():
        if side == "encoder" and at == "cross_attention":
            continue
        table[f"{theirs}{attention}_layer_norm"] = f"{ours}{at}_residual.{norm_position}"
        table |= {f"{theirs}{attention}.{part}": f"{ours}{at}.{target}" for part, target in _PARTS.items()}
    return table


SHARED_TABLE: WeightTable = {
    "shared": "encoder.embedding.tokens",
    "encoder.embed_tokens": "encoder.embedding.tokens",
    "decoder.embed_tokens": "decoder.embedding.tokens",
    "lm_head.weight": "head.weight",
    "final_logits_bias": reshape("head.bias", (1, -1)),
    "encoder.version": ignore(),
    "decoder.version": ignore(),
}
"""The shared embedding under all of its names, and the bias of the logits."""
_POSITION_TABLE: WeightTable = {
    f"{name}.embed_positions": skip_rows(2, f"{name}.embedding.positions") for name in ("encoder", "decoder")
}
_EMBED_NORM_TABLE: WeightTable = {
    f"{name}.layernorm_embedding": f"{name}.embedding.norm" for name in ("encoder", "decoder")
}
_FINAL_NORM_TABLE: WeightTable = {f"{name}.layer_norm": f"{name}.final_norm" for name in ("encoder", "decoder")}
SINUSOIDAL_TABLE: WeightTable = {f"{name}.embed_positions": ignore() for name in ("encoder", "decoder")}
"""Older files contain the sinusoids, which are computed here."""

_BART_TABLE: WeightTable = {
    **SHARED_TABLE,
    **_POSITION_TABLE,
    **_EMBED_NORM_TABLE,
    **build_block_table("encoder", "last"),
    **build_block_table("decoder", "last"),
}
_PRE_NORM_TABLE: WeightTable = {
    **SHARED_TABLE,
    **_FINAL_NORM_TABLE,
    **build_block_table("encoder", "before"),
    **build_block_table("decoder", "before"),
}


def build_stack(config: HFConfig, side: str, norm_at: str, vocab: int, **options: Any) -> spec.Stack:
    """Build the encoder or decoder of a configuration that names its sizes as BART's does."""
    require(config, "tie_word_embeddings", True)
    decodes, width = side == "decoder", config["d_model"]
    attention = spec.Attention(config[f"{side}_attention_heads"], width // config[f"{side}_attention_heads"])
    block = spec.Block(
        replace(attention, causal=decodes),
        spec.FeedForward(config[f"{side}_ffn_dim"], parse_activation(config.get("activation_function", "gelu"))),
        attention if decodes else None,
        norm_at=norm_at,  # type: ignore[arg-type]
    )
    reads = spec.Tokens(vocab, scale=config.get("scale_embedding", False))
    return spec.Stack(width, (block,) * config[f"{side}_layers"], reads, **options)


def _build_transformer(config: HFConfig, norm_at: str, **options: Any) -> spec.Transformer:
    encoder, decoder = (
        build_stack(config, name, norm_at, config["vocab_size"], **options) for name in ("encoder", "decoder")
    )
    return spec.Transformer(encoder, decoder, spec.Vocabulary(bias=True), shared_embedding=True)


def _build_bart(config: HFConfig) -> spec.Transformer:
    positions = spec.Learned(config.get("max_position_embeddings", 1024))
    return _build_transformer(config, "post", positions=positions, embed_norm=spec.Norm())


def _build_mbart(config: HFConfig) -> spec.Transformer:
    positions = spec.Learned(config.get("max_position_embeddings", 1024))
    return _build_transformer(config, "pre", positions=positions, embed_norm=spec.Norm(), final_norm=spec.Norm())


def _build_m2m100(config: HFConfig) -> spec.Transformer:
    """Build M2M100, whose positions count from the one after the padding index, as in fairseq."""
    config = {"activation_function": "relu", "scale_embedding": True, **config}
    positions = spec.Sinusoidal("tensor2tensor", start=config.get("pad_token_id", 1) + 1)
    found = _build_transformer(config, "pre", positions=positions, final_norm=spec.Norm())
    return replace(found, head=spec.Vocabulary())


_M2M100_TABLE: WeightTable = {**_PRE_NORM_TABLE, **SINUSOIDAL_TABLE}

_ZERO_BIAS = ("head.bias",)
FAMILIES = (
    Family(
        "BART", ("bart",), _build_bart, lambda config: _BART_TABLE, zero_suffixes=_ZERO_BIAS, base_model_prefix="model."
    ),
    Family(
        "mBART",
        ("mbart",),
        _build_mbart,
        lambda config: {**_PRE_NORM_TABLE, **_POSITION_TABLE, **_EMBED_NORM_TABLE},
        zero_suffixes=_ZERO_BIAS,
        base_model_prefix="model.",
    ),
    Family("M2M100", ("m2m_100",), _build_m2m100, lambda config: _M2M100_TABLE, base_model_prefix="model."),
)
