"""Decoders like Llama: rotary positions, RMS norms, a gated feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qkv import spec
from qkv.pretrained.conversions import add_one, concatenate_rows, ignore, stack_experts
from qkv.pretrained.families.common import build_rotary, parse_activation, require
from qkv.pretrained.family import Family, HFConfig, WeightTable

_BLOCK = "decoder.blocks.{n}."
_ATTENTION_TABLE = {
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
_TABLE: WeightTable = {
    "model.embed_tokens": "decoder.embedding.tokens",
    "model.norm": "decoder.final_norm",
    "lm_head.weight": "head.weight",
    **_ATTENTION_TABLE,
    "model.layers.{n}.self_attn.rotary_emb.inv_freq": ignore(),
    "model.layers.{n}.input_layernorm": f"{_BLOCK}self_attention_residual.before",
    "model.layers.{n}.post_attention_layernorm": f"{_BLOCK}feed_forward_residual.before",
    "model.layers.{n}.mlp.gate_proj": f"{_BLOCK}feed_forward.gate",
    "model.layers.{n}.mlp.up_proj": f"{_BLOCK}feed_forward.up_proj",
    "model.layers.{n}.mlp.down_proj": f"{_BLOCK}feed_forward.down_proj",
}
_SANDWICH_NORM_TABLE = {
    "model.layers.{n}.post_attention_layernorm": f"{_BLOCK}self_attention_residual.after",
    "model.layers.{n}.pre_feedforward_layernorm": f"{_BLOCK}feed_forward_residual.before",
    "model.layers.{n}.post_feedforward_layernorm": f"{_BLOCK}feed_forward_residual.after",
}
"""The names of the norms in blocks with norms on both sides of a sublayer."""


def _with_defaults(build: Callable[[HFConfig], spec.Spec], **defaults: Any) -> Callable[[HFConfig], spec.Spec]:
    """Fill in the defaults of transformers before building from a configuration."""
    return lambda config: build({**defaults, **config})


def _build_decoder(config: HFConfig, blocks: tuple[spec.Block, ...], **stack_options: Any) -> spec.Transformer:
    require(
        {"use_bidirectional_attention": config.get("use_bidirectional_attention") or False},
        "use_bidirectional_attention",
        False,
    )
    norm = blocks[0].norm
    reads = spec.Tokens(config["vocab_size"], scale=stack_options.pop("scale", False))
    answers = spec.Vocabulary(
        tied=config.get("tie_word_embeddings", False), softcap=config.get("final_logit_softcapping")
    )
    return spec.Transformer(
        None, spec.Stack(config["hidden_size"], blocks, reads, final_norm=norm, **stack_options), answers
    )


def _build_block(config: HFConfig, **attention_options: Any) -> spec.Block:
    heads = config["num_attention_heads"]
    settings: dict[str, Any] = {
        "heads": heads,
        "d_key": config.get("head_dim") or config["hidden_size"] // heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "position": build_rotary(config),
        "causal": True,
        "bias": config.get("attention_bias", False),
        **attention_options,
    }
    return spec.Block(
        spec.Attention(**settings),
        spec.FeedForward(
            config["intermediate_size"],
            parse_activation(config.get("hidden_activation") or config["hidden_act"]),
            gated=True,
            bias=config.get("mlp_bias", False),
        ),
        norm=spec.Norm("rms", config["rms_norm_eps"]),
    )


def _list_windows(config: HFConfig) -> list[int | None]:
    """Return the window of each block, from its layer type or, in older files, from its index."""
    count, window = config["num_hidden_layers"], config.get("sliding_window")
    if not config.get("use_sliding_window", True):
        return [None] * count
    if kinds := config.get("layer_types"):
        return [window if kind == "sliding_attention" else None for kind in kinds]
    if every := config.get("sliding_window_pattern"):  # every n-th block has no window
        return [window if (number + 1) % every else None for number in range(count)]
    return [window if number >= config.get("max_window_layers", 0) else None for number in range(count)]


def _build_llama(config: HFConfig) -> spec.Transformer:
    return _build_decoder(config, (_build_block(config),) * config["num_hidden_layers"])


def _build_windowed(config: HFConfig, **attention_options: Any) -> spec.Transformer:
    return _build_decoder(
        config, tuple(_build_block(config, window=window, **attention_options) for window in _list_windows(config))
    )


def _build_qwen2(config: HFConfig) -> spec.Transformer:
    return _build_windowed(config, bias=True)


def _build_qwen3(config: HFConfig) -> spec.Transformer:
    return _build_windowed(config, qk_norm=spec.Norm("rms", config["rms_norm_eps"]))


def _build_smollm3(config: HFConfig) -> spec.Transformer:
    """Build SmolLM3: a block marked 0 in config.no_rope_layers has no positions, and may have a window."""
    turned = config.get("no_rope_layers") or [
        int((number + 1) % config["no_rope_layer_interval"] != 0) for number in range(config["num_hidden_layers"])
    ]
    kinds = ["full_attention" if turns else "sliding_attention" for turns in turned]
    windows = _list_windows({**config, "layer_types": config.get("layer_types") or kinds})
    return _build_decoder(
        config,
        tuple(
            _build_block(config, window=window, **({} if turns else {"position": None}))
            for turns, window in zip(turned, windows, strict=True)
        ),
    )


def _build_olmo2(config: HFConfig) -> spec.Transformer:
    block = _build_block(config, qk_norm=spec.AcrossHeads(spec.Norm("rms", config["rms_norm_eps"])))
    return _build_decoder(config, (replace(block, norm_at="result"),) * config["num_hidden_layers"])


_OLMO2_TABLE = {
    **{name: target for name, target in _TABLE.items() if not name.endswith("input_layernorm")},
    "model.layers.{n}.post_attention_layernorm": f"{_BLOCK}self_attention_residual.after",
    "model.layers.{n}.post_feedforward_layernorm": f"{_BLOCK}feed_forward_residual.after",
}
_PHI3_TABLE = {
    **{
        name: target
        for name, target in _TABLE.items()
        if not name.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    },
    "model.layers.{n}.self_attn.qkv_proj": concatenate_rows(
        *(f"{_BLOCK}self_attention.{one}" for one in ("query", "key", "value"))
    ),
    "model.layers.{n}.mlp.gate_up_proj": concatenate_rows(
        f"{_BLOCK}feed_forward.gate", f"{_BLOCK}feed_forward.up_proj"
    ),
}


def _build_gemma(config: HFConfig) -> spec.Transformer:
    if config["hidden_act"] == "gelu":  # the first files name the exact GELU and mean the approximation
        config = {**config, "hidden_act": "gelu_pytorch_tanh"}
    return _build_decoder(config, (_build_block(config),) * config["num_hidden_layers"], scale=True)


def _build_gemma2(config: HFConfig) -> spec.Transformer:
    scale, softcap = config["query_pre_attn_scalar"] ** -0.5, config.get("attn_logit_softcapping")
    blocks = (_build_block(config, scale=scale, softcap=softcap, window=window) for window in _list_windows(config))
    return _build_decoder(config, tuple(replace(one, norm_at="both") for one in blocks), scale=True)


def _build_gemma3(config: HFConfig) -> spec.Transformer:
    """Build Gemma 3: Gemma 2 with normalised queries and keys, and separate rotary settings for blocks
    with a window."""
    norm = spec.Norm("rms", config["rms_norm_eps"])
    blocks = (
        _build_block(
            config,
            scale=config["query_pre_attn_scalar"] ** -0.5,
            softcap=config.get("attn_logit_softcapping"),
            window=window,
            qk_norm=norm,
            position=build_rotary(config, "full_attention" if window is None else "sliding_attention"),
        )
        for window in _list_windows(config)
    )
    return _build_decoder(config, tuple(replace(one, norm_at="both") for one in blocks), scale=True)


def _build_gpt_oss(config: HFConfig) -> spec.Transformer:
    """Build GPT-OSS: experts, and in each head an attention sink, a learned score that takes weight
    and adds nothing."""
    require(config, "swiglu_alpha", 1.702)
    model_spec = _build_windowed(config, sinks=True)
    assert model_spec.decoder is not None
    each = spec.FeedForward(
        config["intermediate_size"], "gelu_sigmoid", gated=True, limit=config.get("swiglu_limit", 7.0)
    )
    routed = spec.Experts(config["num_local_experts"], config["num_experts_per_tok"], each)
    blocks = tuple(replace(block, feed_forward=routed) for block in model_spec.decoder.blocks)
    return replace(model_spec, decoder=replace(model_spec.decoder, blocks=blocks))


def _build_gpt_oss_table(config: HFConfig) -> WeightTable:
    mlp, ours, count = "model.layers.{n}.mlp.", f"{_BLOCK}feed_forward.experts.{{e}}.", config["num_local_experts"]
    return {
        **{name: target for name, target in _TABLE.items() if ".mlp." not in name},
        f"{mlp}router": f"{_BLOCK}feed_forward.router",
        f"{mlp}experts.gate_up_proj": stack_experts(count, f"{ours}gate.weight", f"{ours}up_proj.weight"),
        f"{mlp}experts.gate_up_proj_bias": stack_experts(count, f"{ours}gate.bias", f"{ours}up_proj.bias"),
        f"{mlp}experts.down_proj": stack_experts(count, f"{ours}down_proj.weight"),
        f"{mlp}experts.down_proj_bias": stack_experts(count, f"{ours}down_proj.bias"),
    }


def _add_one_to_norms(table: WeightTable) -> WeightTable:
    """Add one to each norm's gain, for files that store it as its distance from 1."""
    return {
        name: add_one(target) if isinstance(target, str) and name.endswith("norm") else target
        for name, target in table.items()
    }


_QWEN_DEFAULTS = {"use_sliding_window": False, "max_window_layers": 28}
_GEMMA_DEFAULTS = {"head_dim": 256, "tie_word_embeddings": True}
_GEMMA2_DEFAULTS = {**_GEMMA_DEFAULTS, "num_key_value_heads": 4, "sliding_window": 4096}
_GPT_OSS_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
FAMILIES = (
    Family("Llama", ("llama",), _build_llama, lambda config: _TABLE),
    Family(
        "Mistral",
        ("mistral",),
        _with_defaults(_build_windowed, num_key_value_heads=8, sliding_window=4096),
        lambda config: _TABLE,
    ),
    Family(
        "Qwen2",
        ("qwen2",),
        _with_defaults(_build_qwen2, **_QWEN_DEFAULTS),
        lambda config: _TABLE,
        zero_suffixes=("self_attention.output.bias",),
    ),
    Family("Qwen3", ("qwen3",), _with_defaults(_build_qwen3, head_dim=128, **_QWEN_DEFAULTS), lambda config: _TABLE),
    Family(
        "SmolLM3",
        ("smollm3",),
        _with_defaults(
            _build_smollm3,
            num_key_value_heads=4,
            rope_theta=2000000.0,
            no_rope_layer_interval=4,
            use_sliding_window=False,
            tie_word_embeddings=True,
        ),
        lambda config: _TABLE,
    ),
    Family("OLMo 2", ("olmo2",), _build_olmo2, lambda config: _OLMO2_TABLE),
    Family("Phi-3", ("phi3",), _build_windowed, lambda config: _PHI3_TABLE),
    Family(
        "Gemma",
        ("gemma",),
        _with_defaults(_build_gemma, num_key_value_heads=16, **_GEMMA_DEFAULTS),
        lambda config: _add_one_to_norms(_TABLE),
    ),
    Family(
        "Gemma 2",
        ("gemma2",),
        _with_defaults(
            _build_gemma2,
            sliding_window_pattern=2,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            **_GEMMA2_DEFAULTS,
        ),
        lambda config: _add_one_to_norms({**_TABLE, **_SANDWICH_NORM_TABLE}),
    ),
    Family(
        "GPT-OSS",
        ("gpt_oss",),
        _with_defaults(
            _build_gpt_oss,
            num_key_value_heads=8,
            head_dim=64,
            sliding_window=128,
            sliding_window_pattern=2,
            rope_theta=150000.0,
            rope_scaling=_GPT_OSS_ROPE,
            attention_bias=True,
        ),
        _build_gpt_oss_table,
    ),
    Family(
        "Gemma 3",
        ("gemma3_text",),
        _with_defaults(
            _build_gemma3,
            sliding_window_pattern=6,
            rope_theta=1000000.0,
            rope_local_base_freq=10000.0,
            **_GEMMA2_DEFAULTS,
        ),
        lambda config: _add_one_to_norms({**_TABLE, **_SANDWICH_NORM_TABLE}),
    ),
)
