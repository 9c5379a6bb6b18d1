"""Decoders in the manner of Llama: rotary positions, RMS norms, a gated feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qkv import spec
from qkv.pretrained.families.common import activation, only, rotary
from qkv.pretrained.family import Config, Family, Table
from qkv.pretrained.operations import experts, ignored, plus1, stacked

_BLOCK = "decoder.blocks.{n}."
_ATTENTION = {
    f"model.layers.{{n}}.self_attn.{theirs}": f"{_BLOCK}self_attention.{ours}"
    for theirs, ours in (
        ("q_proj", "query"),
        ("k_proj", "key"),
        ("v_proj", "value"),
        ("o_proj", "output"),
        ("q_norm", "query_norm"),
        ("k_norm", "key_norm"),
        ("sinks", "sinks"),
    )
}
_TABLE: Table = {
    "model.embed_tokens": "decoder.embedding.tokens",
    "model.norm": "decoder.final_norm",
    "lm_head.weight": "answer.vectors",
    **_ATTENTION,
    "model.layers.{n}.self_attn.rotary_emb.inv_freq": ignored(),
    "model.layers.{n}.input_layernorm": f"{_BLOCK}self_attention_residual.before",
    "model.layers.{n}.post_attention_layernorm": f"{_BLOCK}feed_forward_residual.before",
    "model.layers.{n}.mlp.gate_proj": f"{_BLOCK}feed_forward.gate",
    "model.layers.{n}.mlp.up_proj": f"{_BLOCK}feed_forward.widen",
    "model.layers.{n}.mlp.down_proj": f"{_BLOCK}feed_forward.narrow",
}
_BOTH = {
    "model.layers.{n}.post_attention_layernorm": f"{_BLOCK}self_attention_residual.after",
    "model.layers.{n}.pre_feedforward_layernorm": f"{_BLOCK}feed_forward_residual.before",
    "model.layers.{n}.post_feedforward_layernorm": f"{_BLOCK}feed_forward_residual.after",
}
"""Where the norms are of blocks that have them on both sides."""


def _usually(read: Callable[[Config], spec.Spec], **usual: Any) -> Callable[[Config], spec.Spec]:
    """Read a configuration that means `usual` where it says nothing, by the defaults of transformers."""
    return lambda config: read({**usual, **config})


def _decoder(config: Config, blocks: tuple[spec.Block, ...], **stack: Any) -> spec.Transformer:
    only(
        {"use_bidirectional_attention": config.get("use_bidirectional_attention") or False},
        "use_bidirectional_attention",
        False,
    )
    norm = blocks[0].norm
    reads = spec.Tokens(config["vocab_size"], scale=stack.pop("scale", False))
    answers = spec.Vocabulary(
        tied=config.get("tie_word_embeddings", False), softcap=config.get("final_logit_softcapping")
    )
    return spec.Transformer(None, spec.Stack(config["hidden_size"], blocks, reads, final_norm=norm, **stack), answers)


def _block(config: Config, **attention: Any) -> spec.Block:
    heads = config["num_attention_heads"]
    settings: dict[str, Any] = {
        "heads": heads,
        "d_key": config.get("head_dim") or config["hidden_size"] // heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "position": rotary(config),
        "causal": True,
        "bias": config.get("attention_bias", False),
        **attention,
    }
    return spec.Block(
        spec.Attention(**settings),
        spec.FeedForward(
            config["intermediate_size"],
            activation(config.get("hidden_activation") or config["hidden_act"]),
            gated=True,
            bias=config.get("mlp_bias", False),
        ),
        norm=spec.Norm("rms", config["rms_norm_eps"]),
    )


def _windows(config: Config) -> list[int | None]:
    """Each block's window: that of the configuration where its layer type, or in older files its number, says so."""
    count, window = config["num_hidden_layers"], config.get("sliding_window")
    if not config.get("use_sliding_window", True):
        return [None] * count
    if kinds := config.get("layer_types"):
        return [window if kind == "sliding_attention" else None for kind in kinds]
    if every := config.get("sliding_window_pattern"):  # the last of so many sees everything
        return [window if (number + 1) % every else None for number in range(count)]
    return [window if number >= config.get("max_window_layers", 0) else None for number in range(count)]


def _llama(config: Config) -> spec.Transformer:
    return _decoder(config, (_block(config),) * config["num_hidden_layers"])


def _windowed(config: Config, **attention: Any) -> spec.Transformer:
    return _decoder(config, tuple(_block(config, window=window, **attention) for window in _windows(config)))


def _qwen2(config: Config) -> spec.Transformer:
    return _windowed(config, bias=True)


def _qwen3(config: Config) -> spec.Transformer:
    return _windowed(config, qk_norm=spec.Norm("rms", config["rms_norm_eps"]))


def _smollm3(config: Config) -> spec.Transformer:
    """Every block whose number config.no_rope_layers marks 0 has no positions at all, and may have a window."""
    turned = config.get("no_rope_layers") or [
        int((number + 1) % config["no_rope_layer_interval"] != 0) for number in range(config["num_hidden_layers"])
    ]
    kinds = ["full_attention" if turns else "sliding_attention" for turns in turned]
    windows = _windows({**config, "layer_types": config.get("layer_types") or kinds})
    return _decoder(
        config,
        tuple(
            _block(config, window=window, **({} if turns else {"position": None}))
            for turns, window in zip(turned, windows, strict=True)
        ),
    )


def _olmo2(config: Config) -> spec.Transformer:
    block = _block(config, qk_norm=spec.AcrossHeads(spec.Norm("rms", config["rms_norm_eps"])))
    return _decoder(config, (replace(block, norm_at="result"),) * config["num_hidden_layers"])


_OLMO2 = {
    **{name: target for name, target in _TABLE.items() if not name.endswith("input_layernorm")},
    "model.layers.{n}.post_attention_layernorm": f"{_BLOCK}self_attention_residual.after",
    "model.layers.{n}.post_feedforward_layernorm": f"{_BLOCK}feed_forward_residual.after",
}
_PHI3 = {
    **{
        name: target
        for name, target in _TABLE.items()
        if not name.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    },
    "model.layers.{n}.self_attn.qkv_proj": stacked(
        *(f"{_BLOCK}self_attention.{one}" for one in ("query", "key", "value"))
    ),
    "model.layers.{n}.mlp.gate_up_proj": stacked(f"{_BLOCK}feed_forward.gate", f"{_BLOCK}feed_forward.widen"),
}


def _gemma(config: Config) -> spec.Transformer:
    if config["hidden_act"] == "gelu":  # so say the first files, and mean the approximation
        config = {**config, "hidden_act": "gelu_pytorch_tanh"}
    return _decoder(config, (_block(config),) * config["num_hidden_layers"], scale=True)


def _gemma2(config: Config) -> spec.Transformer:
    scale, softcap = config["query_pre_attn_scalar"] ** -0.5, config.get("attn_logit_softcapping")
    blocks = (_block(config, scale=scale, softcap=softcap, window=window) for window in _windows(config))
    return _decoder(config, tuple(replace(one, norm_at="both") for one in blocks), scale=True)


def _gemma3(config: Config) -> spec.Transformer:
    """As Gemma 2, with normalised queries and keys, and rotary angles of their own where a block has a window."""
    norm = spec.Norm("rms", config["rms_norm_eps"])
    blocks = (
        _block(
            config,
            scale=config["query_pre_attn_scalar"] ** -0.5,
            softcap=config.get("attn_logit_softcapping"),
            window=window,
            qk_norm=norm,
            position=rotary(config, "full_attention" if window is None else "sliding_attention"),
        )
        for window in _windows(config)
    )
    return _decoder(config, tuple(replace(one, norm_at="both") for one in blocks), scale=True)


def _gpt_oss(config: Config) -> spec.Transformer:
    """Experts, and in each head a learned score that takes weight and gives nothing."""
    only(config, "swiglu_alpha", 1.702)
    made = _windowed(config, sinks=True)
    assert made.decoder is not None
    each = spec.FeedForward(
        config["intermediate_size"], "gelu_sigmoid", gated=True, limit=config.get("swiglu_limit", 7.0)
    )
    routed = spec.Experts(config["num_local_experts"], config["num_experts_per_tok"], each)
    blocks = tuple(replace(block, feed_forward=routed) for block in made.decoder.blocks)
    return replace(made, decoder=replace(made.decoder, blocks=blocks))


def _gpt_oss_table(config: Config) -> Table:
    mlp, ours, count = "model.layers.{n}.mlp.", f"{_BLOCK}feed_forward.experts.{{e}}.", config["num_local_experts"]
    return {
        **{name: target for name, target in _TABLE.items() if ".mlp." not in name},
        f"{mlp}router": f"{_BLOCK}feed_forward.router",
        f"{mlp}experts.gate_up_proj": experts(count, f"{ours}gate.weight", f"{ours}widen.weight"),
        f"{mlp}experts.gate_up_proj_bias": experts(count, f"{ours}gate.bias", f"{ours}widen.bias"),
        f"{mlp}experts.down_proj": experts(count, f"{ours}narrow.weight"),
        f"{mlp}experts.down_proj_bias": experts(count, f"{ours}narrow.bias"),
    }


def _from_1(table: Table) -> Table:
    """The same table for files that keep each norm's gain as its distance from 1."""
    return {
        name: plus1(target) if isinstance(target, str) and name.endswith("norm") else target
        for name, target in table.items()
    }


_WINDOWED = {"use_sliding_window": False, "max_window_layers": 28}
_TIED = {"head_dim": 256, "tie_word_embeddings": True}
_ALTERNATING = {**_TIED, "num_key_value_heads": 4, "sliding_window": 4096}
_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
FAMILIES = (
    Family("Llama", ("llama",), _llama, lambda config: _TABLE),
    Family(
        "Mistral",
        ("mistral",),
        _usually(_windowed, num_key_value_heads=8, sliding_window=4096),
        lambda config: _TABLE,
    ),
    Family(
        "Qwen2",
        ("qwen2",),
        _usually(_qwen2, **_WINDOWED),
        lambda config: _TABLE,
        zeros=("self_attention.output.bias",),
    ),
    Family("Qwen3", ("qwen3",), _usually(_qwen3, head_dim=128, **_WINDOWED), lambda config: _TABLE),
    Family(
        "SmolLM3",
        ("smollm3",),
        _usually(
            _smollm3,
            num_key_value_heads=4,
            rope_theta=2000000.0,
            no_rope_layer_interval=4,
            use_sliding_window=False,
            tie_word_embeddings=True,
        ),
        lambda config: _TABLE,
    ),
    Family("OLMo 2", ("olmo2",), _olmo2, lambda config: _OLMO2),
    Family("Phi-3", ("phi3",), _windowed, lambda config: _PHI3),
    Family("Gemma", ("gemma",), _usually(_gemma, num_key_value_heads=16, **_TIED), lambda config: _from_1(_TABLE)),
    Family(
        "Gemma 2",
        ("gemma2",),
        _usually(
            _gemma2,
            sliding_window_pattern=2,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            **_ALTERNATING,
        ),
        lambda config: _from_1({**_TABLE, **_BOTH}),
    ),
    Family(
        "GPT-OSS",
        ("gpt_oss",),
        _usually(
            _gpt_oss,
            num_key_value_heads=8,
            head_dim=64,
            sliding_window=128,
            sliding_window_pattern=2,
            rope_theta=150000.0,
            rope_scaling=_YARN,
            attention_bias=True,
        ),
        _gpt_oss_table,
    ),
    Family(
        "Gemma 3",
        ("gemma3_text",),
        _usually(
            _gemma3,
            sliding_window_pattern=6,
            rope_theta=1000000.0,
            rope_local_base_freq=10000.0,
            **_ALTERNATING,
        ),
        lambda config: _from_1({**_TABLE, **_BOTH}),
    ),
)
