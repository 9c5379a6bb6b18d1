"""T5 and its successors: a relative position bias instead of positions, RMS norms, scores that are not scaled."""

from __future__ import annotations

from dataclasses import replace

from qkv import spec
from qkv.pretrained.conversions import ignore
from qkv.pretrained.families.common import parse_activation
from qkv.pretrained.family import Family, HFConfig, WeightTable

_PARTS = {"q": "query", "k": "key", "v": "value", "o": "output"}


def _build_stack(config: HFConfig, is_decoder: bool) -> spec.Stack:
    position = spec.RelativeBias(
        config.get("relative_attention_num_buckets", 32), config.get("relative_attention_max_distance", 128)
    )
    attention = spec.Attention(config["num_heads"], config["d_kv"], scale=1.0, bias=False)
    norm = spec.Norm("rms", config.get("layer_norm_epsilon", 1e-6))
    block = spec.Block(
        replace(attention, position=position, causal=is_decoder),
        _build_feed_forward(config),
        attention if is_decoder else None,
        norm,
    )
    count = (config.get("num_decoder_layers") if is_decoder else None) or config["num_layers"]
    return spec.Stack(config["d_model"], (block,) * count, spec.Tokens(config["vocab_size"]), final_norm=norm)


def _build_feed_forward(config: HFConfig) -> spec.FeedForward:
    gate, _, name = config.get("feed_forward_proj", "relu").rpartition("-")
    gated = gate == "gated"
    chosen = "gelu_new" if gated and name == "gelu" else name  # "gated-gelu" has always meant the approximation
    return spec.FeedForward(config["d_ff"], parse_activation(chosen), gated=gated, bias=False)


def _build_t5(config: HFConfig) -> spec.Transformer:
    """Build T5. Version 1.1 has an output matrix of its own and no scaling; transformers 5 states only the scaling."""
    untied = not config.get("tie_word_embeddings", True) or not config.get("scale_decoder_outputs", True)
    return _build_transformer(
        config, spec.Vocabulary(tied=False) if untied else spec.Vocabulary(scale=config["d_model"] ** -0.5)
    )


def _build_mt5(config: HFConfig) -> spec.Transformer:
    """Build mT5, which never scales, whether its output matrix is its own or, as transformers 5 writes it, tied."""
    return _build_transformer(_default_to_gated(config), spec.Vocabulary(tied=config.get("tie_word_embeddings", True)))


def _default_to_gated(config: HFConfig) -> HFConfig:
    return {"feed_forward_proj": "gated-gelu", **config}


def _build_transformer(config: HFConfig, head: spec.Vocabulary) -> spec.Transformer:
    if any(name.endswith("T5EncoderModel") for name in config.get("architectures") or ()):
        return spec.Transformer(_build_stack(config, False), None, spec.States())
    return spec.Transformer(_build_stack(config, False), _build_stack(config, True), head, shared_embedding=True)


def _build_side_table(side: str, gated: bool) -> WeightTable:
    theirs, ours = f"{side}.block.{{n}}.layer.", f"{side}.blocks.{{n}}."
    last = 2 if side == "decoder" else 1
    table = {f"{theirs}0.SelfAttention.{part}": f"{ours}self_attention.{target}" for part, target in _PARTS.items()}
    if side == "decoder":
        table |= {f"{theirs}1.EncDecAttention.{part}": f"{ours}cross_attention.{at}" for part, at in _PARTS.items()}
        table[f"{theirs}1.layer_norm"] = f"{ours}cross_attention_residual.before"
    wide = {"wi_0": "gate", "wi_1": "up_proj"} if gated else {"wi": "up_proj"}
    inner = {f"{theirs}{last}.DenseReluDense.{part}": f"{ours}feed_forward.{at}" for part, at in wide.items()}
    return {
        **table,
        **inner,
        f"{theirs}{last}.DenseReluDense.wo": f"{ours}feed_forward.down_proj",
        f"{theirs}0.layer_norm": f"{ours}self_attention_residual.before",
        f"{theirs}{last}.layer_norm": f"{ours}feed_forward_residual.before",
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight": f"{side}.position_biases.0.bias",
        f"{side}.final_layer_norm": f"{side}.final_norm",
    }


def _build_table(config: HFConfig) -> WeightTable:
    gated = _build_feed_forward(config).gated
    return {
        "shared": "encoder.embedding.tokens",
        "encoder.embed_tokens": "encoder.embedding.tokens",
        "decoder.embed_tokens": "decoder.embedding.tokens",
        "lm_head.weight": "head.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": ignore(),  # never used
        **_build_side_table("encoder", gated),
        **_build_side_table("decoder", gated),
    }


FAMILIES = (
    Family("T5", ("t5",), _build_t5, _build_table),
    Family("mT5", ("mt5",), _build_mt5, lambda config: _build_table(_default_to_gated(config))),
)
