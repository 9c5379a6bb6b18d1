"""ModernBERT (Warner et al. 2024): BERT's task with rotary positions, windows in most blocks, and gates."""

from __future__ import annotations

from qkv import spec
from qkv.pretrained.beside import sentences
from qkv.pretrained.families.bert import BARE, Head, Heads, chosen, count, tables
from qkv.pretrained.families.common import activation, rotary
from qkv.pretrained.family import Config, Family, Table
from qkv.pretrained.operations import stacked

_BASES = {"full_attention": ("global_rope_theta", 160000.0), "sliding_attention": ("local_rope_theta", 10000.0)}
"""Each kind of block -> the older name of its rotary base, and what it is where nothing is said."""


def _encoder(config: Config) -> spec.Transformer:
    d_model, heads = config["hidden_size"], config["num_attention_heads"]
    every = config.get("global_attn_every_n_layers", 3)
    kinds = config.get("layer_types") or [
        "sliding_attention" if number % every else "full_attention" for number in range(config["num_hidden_layers"])
    ]
    norm = spec.Norm(eps=config.get("norm_eps", 1e-5))
    feed_forward = spec.FeedForward(
        config["intermediate_size"],
        activation(config.get("hidden_activation", "gelu")),
        gated=True,
        bias=config.get("mlp_bias", False),
    )
    blocks = tuple(
        spec.Block(
            spec.Attention(
                heads,
                d_model // heads,
                position=_turned(config, kind),
                # a token sees half of local_attention to either side, and itself
                window=config.get("local_attention", 128) // 2 + 1 if kind == "sliding_attention" else None,
                bias=config.get("attention_bias", False),
            ),
            feed_forward,
            norm=norm,
            first_norm=number > 0,
        )
        for number, kind in enumerate(kinds)
    )
    encoder = spec.Stack(d_model, blocks, spec.Tokens(config["vocab_size"]), embed_norm=norm, final_norm=norm)
    return spec.Transformer(encoder, None, chosen(config, _HEADS).answers(config))


def _turned(config: Config, kind: str) -> spec.Rotary:
    name, usual = _BASES[kind]
    rope = config.get("rope_scaling") or (config.get("rope_parameters") or {}).get(kind) or {}
    base = rope.get("rope_theta") or config.get(name) or usual
    return rotary({**config, "rope_scaling": None, "rope_parameters": {**rope, "rope_theta": base}}, kind)


def _dense(config: Config) -> spec.Dense:
    return spec.Dense(
        activation(config.get("classifier_activation", "gelu")), spec.Norm(eps=config.get("norm_eps", 1e-5))
    )


def _classes(config: Config) -> spec.Classes:
    pool: spec.Pool = "mean" if config.get("classifier_pooling", "cls") == "mean" else "first"
    return spec.Classes(count(config), pool, _dense(config))


_DENSE: Table = {"head.dense": "answer.dense.linear", "head.norm": "answer.dense.norm"}
_CLASSIFIED: Table = {**_DENSE, "classifier": "answer.linear"}
_LABELS = Head(lambda config: spec.Labels(count(config), _dense(config)), _CLASSIFIED)
_HEADS: Heads = {
    "Model": BARE,
    "ForMaskedLM": Head(
        lambda config: spec.Vocabulary(
            config.get("tie_word_embeddings", True), bias=config.get("decoder_bias", True), dense=_dense(config)
        ),
        {**_DENSE, "decoder.weight": "answer.vectors", "decoder.bias": "answer.bias"},
    ),
    "ForSequenceClassification": Head(_classes, _CLASSIFIED),
    "ForTokenClassification": _LABELS,
    "ForQuestionAnswering": _LABELS,
}
_BLOCK = "encoder.blocks.{n}."
_BODY: Table = {
    "embeddings.tok_embeddings": "encoder.embedding.tokens",
    "embeddings.norm": "encoder.embedding.norm",
    "layers.{n}.attn_norm": f"{_BLOCK}self_attention_residual.before",
    "layers.{n}.attn.Wqkv": stacked(*(f"{_BLOCK}self_attention.{one}" for one in ("query", "key", "value"))),
    "layers.{n}.attn.Wo": f"{_BLOCK}self_attention.output",
    "layers.{n}.mlp_norm": f"{_BLOCK}feed_forward_residual.before",
    "layers.{n}.mlp.Wi": stacked(f"{_BLOCK}feed_forward.gate", f"{_BLOCK}feed_forward.widen"),
    "layers.{n}.mlp.Wo": f"{_BLOCK}feed_forward.narrow",
    "final_norm": "encoder.final_norm",
}

FAMILIES = (
    Family(
        "ModernBERT",
        ("modernbert",),
        _encoder,
        lambda config: tables(config, _HEADS, _BODY),
        zeros=("norm.bias", "before.bias", "answer.dense.linear.bias"),
        prefix="model.",
        beside=(sentences,),
    ),
)
