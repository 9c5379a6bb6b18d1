"""Models that choose actions."""

from __future__ import annotations

from qkv import spec
from qkv.pretrained.conversions import add_first_row, concatenate_rows, ignore, transpose, write_zeros
from qkv.pretrained.families.common import parse_activation, require
from qkv.pretrained.family import Family, HFConfig, WeightTable

# The Decision Transformer (Chen et al. 2021), whose blocks are GPT-2's

_DEFAULTS: HFConfig = {
    "state_dim": 17, "act_dim": 4, "hidden_size": 128, "max_ep_len": 4096, "n_positions": 1024, "n_layer": 3,
    "n_head": 1, "activation_function": "relu", "layer_norm_epsilon": 1e-5,
}  # fmt: skip
"""The defaults of transformers for settings that a configuration leaves out."""


def _build_decision_transformer(config: HFConfig) -> spec.Transformer:
    require(config, "add_cross_attention", False)
    config = {**_DEFAULTS, **config}
    width, heads = config["hidden_size"], config["n_head"]
    whole = (width // heads) ** -0.5 if config.get("scale_attn_weights", True) else 1.0
    by_depth = config.get("scale_attn_by_inverse_layer_idx", False)
    norm = spec.Norm(eps=config["layer_norm_epsilon"])
    blocks = tuple(
        spec.Block(
            spec.Attention(heads, width // heads, causal=True, scale=whole / (number + 1) if by_depth else whole),
            spec.FeedForward(config.get("n_inner") or 4 * width, parse_activation(config["activation_function"])),
            norm=norm,
        )
        for number in range(config["n_layer"])
    )
    reads = spec.Trajectory(config["state_dim"], config["act_dim"], config["max_ep_len"])
    stack = spec.Stack(width, blocks, reads, embed_norm=spec.Norm(), final_norm=norm)
    return spec.Transformer(stack, None, spec.Actions(config.get("action_tanh", True)))


def _build_table(config: HFConfig) -> WeightTable:
    layer, block = "encoder.h.{n}.", "encoder.blocks.{n}."
    attention, feed_forward = f"{block}self_attention", f"{block}feed_forward"
    return {
        "embed_timestep": "encoder.embedding.times",
        "embed_return": "encoder.embedding.returns",
        "embed_state": "encoder.embedding.states",
        "embed_action": "encoder.embedding.actions",
        "embed_ln": "encoder.embedding.norm",
        # every position is number 0, and the inputs are not tokens
        "encoder.wpe.weight": add_first_row("encoder.embedding.norm.bias", {**_DEFAULTS, **config}["n_positions"]),
        "encoder.wte.weight": write_zeros("encoder.embedding.norm.bias", config.get("vocab_size", 1)),
        f"{layer}ln_1": f"{attention}_residual.before",
        f"{layer}attn.c_attn": concatenate_rows(
            *(f"{attention}.{one}" for one in ("query", "key", "value")), transpose=True
        ),
        f"{layer}attn.c_proj": transpose(f"{attention}.output"),
        f"{layer}attn.bias": ignore(),  # the causal mask
        f"{layer}attn.masked_bias": ignore(),
        f"{layer}ln_2": f"{feed_forward}_residual.before",
        f"{layer}mlp.c_fc": transpose(f"{feed_forward}.up_proj"),
        f"{layer}mlp.c_proj": transpose(f"{feed_forward}.down_proj"),
        "encoder.ln_f": "encoder.final_norm",
        "predict_return": "head.returns",
        "predict_state": "head.state",
        "predict_action.0": "head.action",
    }


FAMILIES = (Family("Decision Transformer", ("decision_transformer",), _build_decision_transformer, _build_table),)
