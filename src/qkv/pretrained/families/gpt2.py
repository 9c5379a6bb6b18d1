"""Decoders like GPT-2: layer norms, a plain feed-forward, and often query, key and value in one matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qkv import spec
from qkv.pretrained.conversions import concatenate_rows, ignore, interleave_heads, rename, skip_rows, transpose
from qkv.pretrained.families.common import build_rotary, get_field, parse_activation, require
from qkv.pretrained.family import Family, HFConfig, WeightTable

_BLOCK = "decoder.blocks.{n}."
_ATTENTION, _FEED_FORWARD = f"{_BLOCK}self_attention", f"{_BLOCK}feed_forward"
_QUERY_KEY_VALUE = (f"{_ATTENTION}.query", f"{_ATTENTION}.key", f"{_ATTENTION}.value")
_ATTENTION_RESIDUAL, _FEED_FORWARD_RESIDUAL = f"{_BLOCK}self_attention_residual", f"{_BLOCK}feed_forward_residual"


def _build_decoder(
    config: HFConfig,
    width: int,
    blocks: tuple[spec.Block, ...],
    tied: bool = True,
    token_options: Mapping[str, Any] = MappingProxyType({}),
    dense: spec.Dense | None = None,
    **stack_options: Any,
) -> spec.Transformer:
    whole = {"final_norm": blocks[0].norm, **stack_options}
    decoder = spec.Stack(width, blocks, spec.Tokens(config["vocab_size"], **token_options), **whole)
    return spec.Transformer(None, decoder, spec.Vocabulary(config.get("tie_word_embeddings", tied), dense=dense))


# GPT-2 (Radford et al. 2019)


def _build_gpt2(config: HFConfig) -> spec.Transformer:
    require(config, "add_cross_attention", False)
    width, heads = get_field(config, "n_embd", "hidden_size"), get_field(config, "n_head", "num_attention_heads")
    d_key = width // heads
    whole = d_key**-0.5 if config.get("scale_attn_weights", True) else 1.0
    by_depth = config.get("scale_attn_by_inverse_layer_idx", False)
    blocks = tuple(
        spec.Block(
            spec.Attention(heads, d_key, causal=True, scale=whole / (number + 1) if by_depth else whole),
            spec.FeedForward(
                config.get("n_inner") or 4 * width, parse_activation(config.get("activation_function", "gelu_new"))
            ),
            norm=spec.Norm(eps=config.get("layer_norm_epsilon", 1e-5)),
        )
        for number in range(get_field(config, "n_layer", "num_hidden_layers"))
    )
    return _build_decoder(
        config, width, blocks, positions=spec.Learned(get_field(config, "n_positions", "max_position_embeddings"))
    )


_GPT2_TABLE: WeightTable = {
    "wte": "decoder.embedding.tokens",
    "wpe": "decoder.embedding.positions",
    "h.{n}.ln_1": f"{_ATTENTION_RESIDUAL}.before",
    "h.{n}.attn.c_attn": concatenate_rows(*_QUERY_KEY_VALUE, transpose=True),
    "h.{n}.attn.c_proj": transpose(f"{_ATTENTION}.output"),
    "h.{n}.attn.bias": ignore(),  # the causal mask
    "h.{n}.attn.masked_bias": ignore(),
    "h.{n}.ln_2": f"{_FEED_FORWARD_RESIDUAL}.before",
    "h.{n}.mlp.c_fc": transpose(f"{_FEED_FORWARD}.up_proj"),
    "h.{n}.mlp.c_proj": transpose(f"{_FEED_FORWARD}.down_proj"),
    "ln_f": "decoder.final_norm",
    "lm_head.weight": "head.weight",
}


# GPT-NeoX and Pythia (Black et al. 2022, Biderman et al. 2023)


def _build_gpt_neox(config: HFConfig) -> spec.Transformer:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    turned = build_rotary({"rotary_pct": 0.25, "rope_theta": config.get("rotary_emb_base", 10000.0), **config})
    block = spec.Block(
        spec.Attention(heads, width // heads, position=turned, causal=True, bias=config.get("attention_bias", True)),
        spec.FeedForward(config["intermediate_size"], parse_activation(config["hidden_act"])),
        norm=spec.Norm(eps=config["layer_norm_eps"]),
        parallel=config.get("use_parallel_residual", True),
    )
    return _build_decoder(config, width, (block,) * config["num_hidden_layers"], tied=False)


def _build_gpt_neox_table(config: HFConfig) -> WeightTable:
    return {
        "embed_in": "decoder.embedding.tokens",
        "layers.{n}.input_layernorm": f"{_ATTENTION_RESIDUAL}.before",
        "layers.{n}.post_attention_layernorm": f"{_FEED_FORWARD_RESIDUAL}.before",
        "layers.{n}.attention.query_key_value": interleave_heads(
            *_QUERY_KEY_VALUE, kv_heads=config["num_attention_heads"]
        ),
        "layers.{n}.attention.dense": f"{_ATTENTION}.output",
        "layers.{n}.attention.bias": ignore(),  # the causal mask
        "layers.{n}.attention.masked_bias": ignore(),
        "layers.{n}.attention.rotary_emb.inv_freq": ignore(),
        "layers.{n}.mlp.dense_h_to_4h": f"{_FEED_FORWARD}.up_proj",
        "layers.{n}.mlp.dense_4h_to_h": f"{_FEED_FORWARD}.down_proj",
        "final_layer_norm": "decoder.final_norm",
        "embed_out.weight": "head.weight",
    }


# OPT (Zhang et al. 2022)


def _build_opt(config: HFConfig) -> spec.Transformer:
    require(config, "layer_norm_elementwise_affine", True)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    narrow = config.get("word_embed_proj_dim") or width
    bias, before = config.get("enable_bias", True), config.get("do_layer_norm_before", True)
    block = spec.Block(
        spec.Attention(heads, width // heads, causal=True, bias=bias),
        spec.FeedForward(config["ffn_dim"], parse_activation(config.get("activation_function", "relu")), bias=bias),
        norm_at="pre" if before else "post",
    )
    ends = before and not config.get("_remove_final_layer_norm", False)
    own = {} if narrow == width else {"width": narrow, "project_first": True}
    return _build_decoder(
        config,
        width,
        (block,) * config["num_hidden_layers"],
        token_options=own,
        dense=spec.Dense(None, bias=False) if own else None,
        positions=spec.Learned(config["max_position_embeddings"]),
        final_norm=block.norm if ends else None,
    )


def _build_opt_table(config: HFConfig) -> WeightTable:
    norm = "before" if config.get("do_layer_norm_before", True) else "last"
    layer = "decoder.layers.{n}."
    return {
        "decoder.embed_tokens": "decoder.embedding.tokens",
        "decoder.embed_positions": skip_rows(2, "decoder.embedding.positions"),
        f"{layer}self_attn.q_proj": f"{_ATTENTION}.query",
        f"{layer}self_attn.k_proj": f"{_ATTENTION}.key",
        f"{layer}self_attn.v_proj": f"{_ATTENTION}.value",
        f"{layer}self_attn.out_proj": f"{_ATTENTION}.output",
        f"{layer}self_attn_layer_norm": f"{_ATTENTION_RESIDUAL}.{norm}",
        f"{layer}fc1": f"{_FEED_FORWARD}.up_proj",
        f"{layer}fc2": f"{_FEED_FORWARD}.down_proj",
        f"{layer}final_layer_norm": f"{_FEED_FORWARD_RESIDUAL}.{norm}",
        "decoder.final_layer_norm": "decoder.final_norm",
        "decoder.project_in": "decoder.embedding.projection",
        "decoder.project_out": "head.dense.linear",
        "lm_head.weight": "head.weight",
    }


# BLOOM (Scao et al. 2022) and Falcon (Almazrouei et al. 2023)


def _build_bloom(config: HFConfig) -> spec.Transformer:
    require(config, "apply_residual_connection_post_layernorm", False)
    width, heads = get_field(config, "n_embed", "hidden_size"), get_field(config, "n_head", "num_attention_heads")
    norm = spec.Norm(eps=config.get("layer_norm_epsilon", 1e-5))
    block = spec.Block(
        spec.Attention(heads, width // heads, position=spec.Alibi(), causal=True),
        spec.FeedForward(4 * width, "gelu_tanh"),
        norm=norm,
    )
    blocks = (block,) * get_field(config, "n_layer", "num_hidden_layers")
    return _build_decoder(config, width, blocks, embed_norm=norm)


def _build_bloom_table(config: HFConfig, kv_heads: int | None = None) -> WeightTable:
    return {
        "word_embeddings": "decoder.embedding.tokens",
        "word_embeddings_layernorm": "decoder.embedding.norm",
        "h.{n}.input_layernorm": f"{_ATTENTION_RESIDUAL}.before",
        "h.{n}.post_attention_layernorm": f"{_FEED_FORWARD_RESIDUAL}.before",
        "h.{n}.self_attention.query_key_value": interleave_heads(
            *_QUERY_KEY_VALUE, kv_heads=kv_heads or get_field(config, "n_head", "num_attention_heads")
        ),
        "h.{n}.self_attention.dense": f"{_ATTENTION}.output",
        "h.{n}.mlp.dense_h_to_4h": f"{_FEED_FORWARD}.up_proj",
        "h.{n}.mlp.dense_4h_to_h": f"{_FEED_FORWARD}.down_proj",
        "ln_f": "decoder.final_norm",
        "lm_head.weight": "head.weight",
    }


def _build_falcon(config: HFConfig) -> spec.Transformer:
    """Build Falcon, whose ALiBi is added before the scores are scaled, so that it is scaled with them."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    d_key, bias = width // heads, config.get("bias", False)
    position = spec.Alibi(1 / math.sqrt(d_key)) if config.get("alibi", False) else build_rotary(config)
    block = spec.Block(
        spec.Attention(
            heads, d_key, kv_heads=_count_falcon_kv_heads(config), position=position, causal=True, bias=bias
        ),
        spec.FeedForward(
            config.get("ffn_hidden_size") or 4 * width, parse_activation(config.get("activation", "gelu")), bias=bias
        ),
        norm=spec.Norm(eps=config.get("layer_norm_epsilon", 1e-5)),
        parallel=config.get("new_decoder_architecture", False) or config.get("parallel_attn", True),
    )
    return _build_decoder(config, width, (block,) * config["num_hidden_layers"])


def _count_falcon_kv_heads(config: HFConfig) -> int:
    if config.get("new_decoder_architecture", False):
        return config.get("num_kv_heads") or int(config["num_attention_heads"])
    return 1 if config.get("multi_query", True) else int(config["num_attention_heads"])


def _build_falcon_table(config: HFConfig) -> WeightTable:
    """Build Falcon's table. A parallel block has one norm for both of its parts, or two."""
    table = _build_bloom_table(config, _count_falcon_kv_heads(config))
    grown = config.get("new_decoder_architecture", False)
    if not grown and not config.get("parallel_attn", True):
        return table
    rest = {name: target for name, target in table.items() if not name.endswith("layernorm")}
    if grown and (config.get("num_ln_in_parallel_attn") or 2) == 2:
        return {
            **rest,
            "h.{n}.ln_attn": f"{_ATTENTION_RESIDUAL}.before",
            "h.{n}.ln_mlp": f"{_FEED_FORWARD_RESIDUAL}.before",
        }
    return {
        **rest,
        "h.{n}.input_layernorm": rename(f"{_ATTENTION_RESIDUAL}.before", f"{_FEED_FORWARD_RESIDUAL}.before"),
    }


FAMILIES = (
    Family("GPT-2", ("gpt2",), _build_gpt2, lambda config: _GPT2_TABLE, base_model_prefix="transformer."),
    Family("GPT-NeoX", ("gpt_neox",), _build_gpt_neox, _build_gpt_neox_table, base_model_prefix="gpt_neox."),
    Family("OPT", ("opt",), _build_opt, _build_opt_table, base_model_prefix="model."),
    Family("BLOOM", ("bloom",), _build_bloom, _build_bloom_table, base_model_prefix="transformer."),
    Family("Falcon", ("falcon",), _build_falcon, _build_falcon_table, base_model_prefix="transformer."),
)
