"""ModernBERT (Warner et al. 2024): BERT's task with rotary positions, windows in most blocks, and
gated feed-forwards."""

from __future__ import annotations

from qkv import spec
from qkv.pretrained.conversions import concatenate_rows
from qkv.pretrained.families.bert import (
    NO_HEAD,
    HeadDefinition,
    HeadDefinitions,
    combine_tables,
    count_labels,
    select_head,
)
from qkv.pretrained.families.common import build_rotary, parse_activation
from qkv.pretrained.family import Family, HFConfig, WeightTable
from qkv.pretrained.sidecar import read_sentence_pooling

_ROTARY_BASES = {"full_attention": ("global_rope_theta", 160000.0), "sliding_attention": ("local_rope_theta", 10000.0)}
"""Maps each layer type to the older name of its rotary base, and its default."""


def _build_encoder(config: HFConfig) -> spec.Transformer:
    d_model, heads = config["hidden_size"], config["num_attention_heads"]
    every = config.get("global_attn_every_n_layers", 3)
    kinds = config.get("layer_types") or [
        "sliding_attention" if number % every else "full_attention" for number in range(config["num_hidden_layers"])
    ]
    norm = spec.Norm(eps=config.get("norm_eps", 1e-5))
    feed_forward = spec.FeedForward(
        config["intermediate_size"],
        parse_activation(config.get("hidden_activation", "gelu")),
        gated=True,
        bias=config.get("mlp_bias", False),
    )
    blocks = tuple(
        spec.Block(
            spec.Attention(
                heads,
                d_model // heads,
                position=_build_layer_rotary(config, kind),
                # a token attends to half of local_attention on either side, and to itself
                window=config.get("local_attention", 128) // 2 + 1 if kind == "sliding_attention" else None,
                bias=config.get("attention_bias", False),
            ),
            feed_forward,
            norm=norm,
            has_first_norm=number > 0,
        )
        for number, kind in enumerate(kinds)
    )
    encoder = spec.Stack(d_model, blocks, spec.Tokens(config["vocab_size"]), embed_norm=norm, final_norm=norm)
    return spec.Transformer(encoder, None, select_head(config, _HEADS).build_head(config))


def _build_layer_rotary(config: HFConfig, layer_type: str) -> spec.Rotary:
    name, usual = _ROTARY_BASES[layer_type]
    rope = config.get("rope_scaling") or (config.get("rope_parameters") or {}).get(layer_type) or {}
    base = rope.get("rope_theta") or config.get(name) or usual
    return build_rotary({**config, "rope_scaling": None, "rope_parameters": {**rope, "rope_theta": base}}, layer_type)


def _build_dense(config: HFConfig) -> spec.Dense:
    return spec.Dense(
        parse_activation(config.get("classifier_activation", "gelu")), spec.Norm(eps=config.get("norm_eps", 1e-5))
    )


def _build_classes(config: HFConfig) -> spec.Classes:
    pool: spec.Pool = "mean" if config.get("classifier_pooling", "cls") == "mean" else "first"
    return spec.Classes(count_labels(config), pool, _build_dense(config))


_DENSE_TABLE: WeightTable = {"head.dense": "head.dense.linear", "head.norm": "head.dense.norm"}
_CLASSIFIER_TABLE: WeightTable = {**_DENSE_TABLE, "classifier": "head.linear"}
_LABEL_HEAD = HeadDefinition(lambda config: spec.Labels(count_labels(config), _build_dense(config)), _CLASSIFIER_TABLE)
_HEADS: HeadDefinitions = {
    "Model": NO_HEAD,
    "ForMaskedLM": HeadDefinition(
        lambda config: spec.Vocabulary(
            config.get("tie_word_embeddings", True), bias=config.get("decoder_bias", True), dense=_build_dense(config)
        ),
        {**_DENSE_TABLE, "decoder.weight": "head.weight", "decoder.bias": "head.bias"},
    ),
    "ForSequenceClassification": HeadDefinition(_build_classes, _CLASSIFIER_TABLE),
    "ForTokenClassification": _LABEL_HEAD,
    "ForQuestionAnswering": _LABEL_HEAD,
}
_BLOCK = "encoder.blocks.{n}."
_BODY_TABLE: WeightTable = {
    "embeddings.tok_embeddings": "encoder.embedding.tokens",
    "embeddings.norm": "encoder.embedding.norm",
    "layers.{n}.attn_norm": f"{_BLOCK}self_attention_residual.before",
    "layers.{n}.attn.Wqkv": concatenate_rows(*(f"{_BLOCK}self_attention.{one}" for one in ("query", "key", "value"))),
    "layers.{n}.attn.Wo": f"{_BLOCK}self_attention.output",
    "layers.{n}.mlp_norm": f"{_BLOCK}feed_forward_residual.before",
    "layers.{n}.mlp.Wi": concatenate_rows(f"{_BLOCK}feed_forward.gate", f"{_BLOCK}feed_forward.up_proj"),
    "layers.{n}.mlp.Wo": f"{_BLOCK}feed_forward.down_proj",
    "final_norm": "encoder.final_norm",
}

FAMILIES = (
    Family(
        "ModernBERT",
        ("modernbert",),
        _build_encoder,
        lambda config: combine_tables(config, _HEADS, _BODY_TABLE),
        zero_suffixes=("norm.bias", "before.bias", "head.dense.linear.bias"),
        base_model_prefix="model.",
        sidecar_readers=(read_sentence_pooling,),
    ),
)
