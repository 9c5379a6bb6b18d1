"""T5 and what followed it: no positions but a bias by distance, RMS norms, scores that are not scaled."""

from __future__ import annotations

from dataclasses import replace

from qkv import spec
from qkv.pretrained.families.common import activation
from qkv.pretrained.family import Config, Family, Table
from qkv.pretrained.operations import ignored

_PARTS = {"q": "query", "k": "key", "v": "value", "o": "output"}


def _stack(config: Config, decodes: bool) -> spec.Stack:
    position = spec.RelativeBias(
        config.get("relative_attention_num_buckets", 32), config.get("relative_attention_max_distance", 128)
    )
    attention = spec.Attention(config["num_heads"], config["d_kv"], scale=1.0, bias=False)
    norm = spec.Norm("rms", config.get("layer_norm_epsilon", 1e-6))
    block = spec.Block(
        replace(attention, position=position, causal=decodes),
        _feed_forward(config),
        attention if decodes else None,
        norm,
    )
    count = (config.get("num_decoder_layers") if decodes else None) or config["num_layers"]
    return spec.Stack(config["d_model"], (block,) * count, spec.Tokens(config["vocab_size"]), final_norm=norm)


def _feed_forward(config: Config) -> spec.FeedForward:
    gate, _, name = config.get("feed_forward_proj", "relu").rpartition("-")
    gated = gate == "gated"
    chosen = "gelu_new" if gated and name == "gelu" else name  # "gated-gelu" has always meant the approximation
    return spec.FeedForward(config["d_ff"], activation(chosen), gated=gated, bias=False)


def _t5(config: Config) -> spec.Transformer:
    """Version 1.1 answers with vectors of its own and does not scale; transformers 5 says so by the scale alone."""
    untied = not config.get("tie_word_embeddings", True) or not config.get("scale_decoder_outputs", True)
    return _whole(config, spec.Vocabulary(tied=False) if untied else spec.Vocabulary(scale=config["d_model"] ** -0.5))


def _mt5(config: Config) -> spec.Transformer:
    """Nothing is scaled, whether the vectors of the answer are its own or, in what transformers 5 writes, tied."""
    return _whole(_gated(config), spec.Vocabulary(tied=config.get("tie_word_embeddings", True)))


def _gated(config: Config) -> Config:
    return {"feed_forward_proj": "gated-gelu", **config}


def _whole(config: Config, answers: spec.Vocabulary) -> spec.Transformer:
    if any(name.endswith("T5EncoderModel") for name in config.get("architectures") or ()):
        return spec.Transformer(_stack(config, False), None, spec.States())
    return spec.Transformer(_stack(config, False), _stack(config, True), answers, shared_embedding=True)


def _side(name: str, gated: bool) -> Table:
    theirs, ours = f"{name}.block.{{n}}.layer.", f"{name}.blocks.{{n}}."
    last = 2 if name == "decoder" else 1
    table = {f"{theirs}0.SelfAttention.{part}": f"{ours}self_attention.{target}" for part, target in _PARTS.items()}
    if name == "decoder":
        table |= {f"{theirs}1.EncDecAttention.{part}": f"{ours}cross_attention.{at}" for part, at in _PARTS.items()}
        table[f"{theirs}1.layer_norm"] = f"{ours}cross_attention_residual.before"
    wide = {"wi_0": "gate", "wi_1": "widen"} if gated else {"wi": "widen"}
    inner = {f"{theirs}{last}.DenseReluDense.{part}": f"{ours}feed_forward.{at}" for part, at in wide.items()}
    return {
        **table,
        **inner,
        f"{theirs}{last}.DenseReluDense.wo": f"{ours}feed_forward.narrow",
        f"{theirs}0.layer_norm": f"{ours}self_attention_residual.before",
        f"{theirs}{last}.layer_norm": f"{ours}feed_forward_residual.before",
        f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight": f"{name}.position_biases.0.bias",
        f"{name}.final_layer_norm": f"{name}.final_norm",
    }


def _table(config: Config) -> Table:
    gated = _feed_forward(config).gated
    return {
        "shared": "encoder.embedding.tokens",
        "encoder.embed_tokens": "encoder.embedding.tokens",
        "decoder.embed_tokens": "decoder.embedding.tokens",
        "lm_head.weight": "answer.vectors",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": ignored(),  # never used
        **_side("encoder", gated),
        **_side("decoder", gated),
    }


FAMILIES = (
    Family("T5", ("t5",), _t5, _table),
    Family("mT5", ("mt5",), _mt5, lambda config: _table(_gated(config))),
)
