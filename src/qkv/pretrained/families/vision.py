"""Image encoders like ViT, and CLIP with its text encoder.

Tensors have the names of published files, which transformers still writes although its own modules have others.
Heads for other tasks (masked images) are refused; mask tokens and poolers are ignored by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qkv import spec
from qkv.errors import CheckpointError
from qkv.pretrained.conversions import (
    Conversion,
    concatenate_columns,
    concatenate_rows,
    ignore,
    reshape,
    scale,
    scale_rows,
)
from qkv.pretrained.families.common import parse_activation, require
from qkv.pretrained.family import Family, HFConfig, WeightTable
from qkv.pretrained.weights import LazyWeights

_DEFAULTS: HFConfig = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3,
    "mlp_ratio": 4, "num_register_tokens": 4,
}  # fmt: skip
"""The defaults of transformers for settings that a configuration leaves out."""


def _build_stack(
    config: HFConfig, patches: spec.Input, positions: int, causal: bool = False, **options: Any
) -> spec.Stack:
    """Build a pre-norm encoder of equal blocks with `positions` learned positions."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    norm = spec.Norm(eps=config["layer_norm_eps"])
    feed_forward = options.pop("feed_forward", None) or spec.FeedForward(
        config["intermediate_size"], parse_activation(config["hidden_act"])
    )
    block = spec.Block(spec.Attention(heads, width // heads, causal=causal), feed_forward, norm=norm)
    blocks = (block,) * config["num_hidden_layers"]
    return spec.Stack(width, blocks, patches, spec.Learned(positions), final_norm=norm, **options)


def _build_image_stack(config: HFConfig, leading: int = 1, registers: int = 0, **options: Any) -> spec.Stack:
    require(config, "qkv_bias", True)
    size = _get_side(config, "patch_size")
    reads = spec.Patches(size, config["num_channels"], leading, registers, antialias=registers > 0)
    return _build_stack(config, reads, (_get_side(config, "image_size") // size) ** 2 + leading, **options)


def _get_side(config: HFConfig, field: str) -> int:
    """Return the side of a square. Raises CheckpointError if the setting is not a square."""
    sides = {config[field]} if isinstance(config[field], int) else set(config[field])
    if len(sides) != 1:
        raise CheckpointError(f"the configuration says {field}={config[field]}; expected a square")
    return int(sides.pop())


def _select_head(config: HFConfig, heads: Mapping[str, spec.Head]) -> spec.Head:
    """Return the head of the class that a configuration names, the first of `heads` by default; refuse
    other classes."""
    name = (config.get("architectures") or [next(iter(heads))])[0]
    if name not in heads:
        raise CheckpointError(f"the configuration says architectures={name}; expected one of {', '.join(heads)}")
    return heads[name]


def _count_labels(config: HFConfig) -> int:
    return len(config["id2label"]) if config.get("id2label") else int(config.get("num_labels", 2))


# ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021)


def _build_vit(config: HFConfig) -> spec.Transformer:
    config = {**_DEFAULTS, **config}
    answers: dict[str, spec.Head] = {
        "ViTModel": spec.States(),
        "ViTForImageClassification": spec.Classes(_count_labels(config), "first"),
    }
    return spec.Transformer(_build_image_stack(config), None, _select_head(config, answers))


def _build_deit(config: HFConfig) -> spec.Transformer:
    config = {**_DEFAULTS, **config}
    answers: dict[str, spec.Head] = {
        "DeiTModel": spec.States(),
        "DeiTForImageClassification": spec.Classes(_count_labels(config), "first"),
        "DeiTForImageClassificationWithTeacher": spec.Classes(_count_labels(config), "first", second_pool="second"),
    }
    return spec.Transformer(_build_image_stack(config, leading=2), None, _select_head(config, answers))


_BLOCK = "encoder.blocks.{n}."
_ATTENTION, _FEED_FORWARD = f"{_BLOCK}self_attention", f"{_BLOCK}feed_forward"


def _build_image_table(config: HFConfig) -> dict[str, str | Conversion]:
    config = {**_DEFAULTS, **config}
    size = _get_side(config, "patch_size")
    return {
        "embeddings.cls_token": reshape("encoder.embedding.class_tokens.0", (1, 1, -1)),
        "embeddings.mask_token": ignore(),
        "embeddings.position_embeddings": reshape("encoder.embedding.positions.weight", (1, -1, config["hidden_size"])),
        "embeddings.patch_embeddings.projection.weight": reshape(
            "encoder.embedding.patches.weight", (-1, config["num_channels"], size, size)
        ),
        "embeddings.patch_embeddings.projection.bias": "encoder.embedding.patches.bias",
        "encoder.layer.{n}.attention.attention.query": f"{_ATTENTION}.query",
        "encoder.layer.{n}.attention.attention.key": f"{_ATTENTION}.key",
        "encoder.layer.{n}.attention.attention.value": f"{_ATTENTION}.value",
        "encoder.layer.{n}.attention.output.dense": f"{_ATTENTION}.output",
        "layernorm": "encoder.final_norm",
        "pooler": ignore(),
        "classifier": "head.linear",
    }


def _build_vit_table(config: HFConfig) -> WeightTable:
    return {
        **_build_image_table(config),
        "encoder.layer.{n}.layernorm_before": f"{_ATTENTION}_residual.before",
        "encoder.layer.{n}.layernorm_after": f"{_FEED_FORWARD}_residual.before",
        "encoder.layer.{n}.intermediate.dense": f"{_FEED_FORWARD}.up_proj",
        "encoder.layer.{n}.output.dense": f"{_FEED_FORWARD}.down_proj",
    }


def _build_deit_table(config: HFConfig) -> WeightTable:
    table = dict(_build_vit_table(config))
    table["embeddings.distillation_token"] = reshape("encoder.embedding.class_tokens.1", (1, 1, -1))
    if "DeiTForImageClassificationWithTeacher" in (config.get("architectures") or ()):  # the mean of two heads
        del table["classifier"]
        table["cls_classifier"] = scale("head.linear", 0.5)
        table["distillation_classifier"] = scale("head.second", 0.5)
    return table


# DINOv2 (Oquab et al. 2024), also with registers (Darcet et al. 2024)


def _build_dinov2(config: HFConfig, registers: int = 0) -> spec.Transformer:
    config = {**_DEFAULTS, "layer_norm_eps": 1e-6, "patch_size": 16 if registers else 14, **config}
    d_ff = int(config["hidden_size"] * config["mlp_ratio"])
    feed_forward = spec.FeedForward(d_ff, parse_activation(config["hidden_act"]))
    if config.get("use_swiglu_ffn", False):  # wide enough for as many parameters as two matrices have
        feed_forward = spec.FeedForward((int(d_ff * 2 / 3) + 7) // 8 * 8, "silu", gated=True)
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    answers: dict[str, spec.Head] = {
        f"{name}Model": spec.States(),
        f"{name}ForImageClassification": spec.Classes(_count_labels(config), "first", second_pool="mean"),
    }
    stack = _build_image_stack(config, registers=registers, feed_forward=feed_forward)
    return spec.Transformer(stack, None, _select_head(config, answers))


def _build_dinov2_with_registers(config: HFConfig) -> spec.Transformer:
    return _build_dinov2(config, config.get("num_register_tokens", _DEFAULTS["num_register_tokens"]))


def _build_dinov2_table(config: HFConfig) -> WeightTable:
    table = _build_image_table({"patch_size": 14, **config})
    del table["classifier"]
    feed_forward: WeightTable = {
        "encoder.layer.{n}.mlp.fc1": f"{_FEED_FORWARD}.up_proj",
        "encoder.layer.{n}.mlp.fc2": f"{_FEED_FORWARD}.down_proj",
    }
    if config.get("use_swiglu_ffn", False):
        feed_forward = {
            "encoder.layer.{n}.mlp.weights_in": concatenate_rows(f"{_FEED_FORWARD}.gate", f"{_FEED_FORWARD}.up_proj"),
            "encoder.layer.{n}.mlp.weights_out": f"{_FEED_FORWARD}.down_proj",
        }
    return {
        **table,
        "encoder.layer.{n}.norm1": f"{_ATTENTION}_residual.before",
        "encoder.layer.{n}.norm2": f"{_FEED_FORWARD}_residual.before",
        "encoder.layer.{n}.layer_scale1.lambda1": scale_rows(f"{_ATTENTION}.output"),
        "encoder.layer.{n}.layer_scale2.lambda1": scale_rows(f"{_FEED_FORWARD}.down_proj"),
        **feed_forward,
        "classifier.weight": concatenate_columns("head.linear.weight", "head.second.weight"),
        "classifier.bias": "head.linear.bias",
    }


def _build_dinov2_with_registers_table(config: HFConfig) -> WeightTable:
    width = {**_DEFAULTS, **config}["hidden_size"]
    registers = reshape("encoder.embedding.registers", (1, -1, width))
    return {**_build_dinov2_table({"patch_size": 16, **config}), "embeddings.register_tokens": registers}


def read_dinov2_onnx(file_weights: LazyWeights) -> tuple[HFConfig, Mapping[str, Tensor]] | None:
    """Read a DINOv2 from the shapes of its tensors, as in an ONNX graph that was exported from transformers.

    What shapes do not determine is as in every published DINOv2: heads are 64 wide. Anything else in the graph, such as
    a classification head, is ignored. An export may have split the positions in two and left them without names.
    """
    kernel, gain = "embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layer_scale1.lambda1"
    prefix = next((name.removesuffix(gain) for name in file_weights if name.endswith(gain)), None)
    if prefix is None or prefix + kernel not in file_weights:
        return None
    named = [name for name in file_weights if name.startswith(prefix) and "::" not in name]
    tensors = {name.removeprefix(prefix): file_weights[name] for name in named}
    width, channels, size, _ = tensors[kernel].shape
    if "embeddings.position_embeddings" not in tensors:
        nameless = [
            file_weights[name]
            for name in file_weights
            if "::" in name and file_weights.shape(name)[:1] + file_weights.shape(name)[2:] == (1, width)
        ]
        parts = sorted(nameless, key=lambda part: part.shape[1])
        if [part.shape[1] for part in parts[:1]] != [1] or len(parts) != 2:
            shapes = [tuple(part.shape) for part in parts]
            raise CheckpointError(
                f"{file_weights.path} holds a DINOv2 whose positions have no name, and {shapes} in their place; "
                f"expected one "
                f"(1, 1, {width}) and one (1, patches, {width}): export the model again"
            )
        tensors["embeddings.position_embeddings"] = torch.cat(parts, dim=1)
    patches = tensors["embeddings.position_embeddings"].shape[1] - 1
    config: dict[str, Any] = {
        "model_type": "dinov2",
        "architectures": ["Dinov2Model"],
        "hidden_size": width,
        "num_hidden_layers": sum(name.endswith("layer_scale1.lambda1") for name in tensors),
        "num_attention_heads": width // 64,
        "num_channels": channels,
        "patch_size": size,
        "image_size": math.isqrt(patches) * size,
        "use_swiglu_ffn": "encoder.layer.0.mlp.weights_in.weight" in tensors,
    }
    if "encoder.layer.0.mlp.fc1.weight" in tensors:
        config["mlp_ratio"] = len(tensors["encoder.layer.0.mlp.fc1.weight"]) / width
    return config, tensors


# CLIP (Radford et al. 2021)

_CLIP_DEFAULTS: HFConfig = {
    **_DEFAULTS,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "patch_size": 32,
    "projection_dim": 512,
}
_CLIP_TEXT_DEFAULTS: HFConfig = {
    **_CLIP_DEFAULTS, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408,
    "max_position_embeddings": 77,
}  # fmt: skip


def _build_clip_image(config: HFConfig, normalize: bool = False) -> spec.Transformer:
    config = {**_CLIP_DEFAULTS, **config}
    answers: dict[str, spec.Head] = {
        "CLIPVisionModel": spec.Vector("first", None, normalize),
        "CLIPVisionModelWithProjection": spec.Vector("first", config["projection_dim"], normalize),
    }
    stack = _build_image_stack(config, embed_norm=spec.Norm(eps=config["layer_norm_eps"]))
    return spec.Transformer(stack, None, _select_head(config, answers))


def _build_clip_text(config: HFConfig, normalize: bool = False) -> spec.Transformer:
    """Build CLIP's text encoder, which pools the last token. That must be the end token: mask whatever follows it."""
    config = {**_CLIP_TEXT_DEFAULTS, **config}
    answers: dict[str, spec.Head] = {
        "CLIPTextModel": spec.Vector("last", None, normalize),
        "CLIPTextModelWithProjection": spec.Vector("last", config["projection_dim"], normalize),
    }
    stack = _build_stack(config, spec.Tokens(config["vocab_size"]), config["max_position_embeddings"], causal=True)
    return spec.Transformer(stack, None, _select_head(config, answers))


def _split_clip_config(config: HFConfig) -> tuple[HFConfig, HFConfig]:
    """Return the configurations of both encoders. Older files have each twice; the one called "dict"
    is authoritative."""
    image, text = (config.get(f"{one}_config_dict") or config.get(f"{one}_config") or {} for one in ("vision", "text"))
    width = config.get("projection_dim", 512)
    return (
        {**image, "projection_dim": width, "architectures": ["CLIPVisionModelWithProjection"]},
        {**text, "projection_dim": width, "architectures": ["CLIPTextModelWithProjection"]},
    )


def _build_clip(config: HFConfig) -> spec.DualEncoder:
    require({"architectures": (config.get("architectures") or ["CLIPModel"])[0]}, "architectures", "CLIPModel")
    image, text = _split_clip_config(config)
    return spec.DualEncoder(_build_clip_image(image, normalize=True), _build_clip_text(text, normalize=True))


_CLIP_BLOCK_TABLE: dict[str, str | Conversion] = {
    "encoder.layers.{n}.layer_norm1": f"{_ATTENTION}_residual.before",
    "encoder.layers.{n}.layer_norm2": f"{_FEED_FORWARD}_residual.before",
    "encoder.layers.{n}.self_attn.q_proj": f"{_ATTENTION}.query",
    "encoder.layers.{n}.self_attn.k_proj": f"{_ATTENTION}.key",
    "encoder.layers.{n}.self_attn.v_proj": f"{_ATTENTION}.value",
    "encoder.layers.{n}.self_attn.out_proj": f"{_ATTENTION}.output",
    "encoder.layers.{n}.mlp.fc1": f"{_FEED_FORWARD}.up_proj",
    "encoder.layers.{n}.mlp.fc2": f"{_FEED_FORWARD}.down_proj",
    "embeddings.position_embedding": "encoder.embedding.positions",
    "embeddings.position_ids": ignore(),
}


def _build_clip_image_table(config: HFConfig) -> WeightTable:
    config = {**_CLIP_DEFAULTS, **config}
    size = _get_side(config, "patch_size")
    return {
        **_CLIP_BLOCK_TABLE,
        "embeddings.class_embedding": "encoder.embedding.class_tokens.0",
        "embeddings.patch_embedding.weight": reshape(
            "encoder.embedding.patches.weight", (-1, config["num_channels"], size, size)
        ),
        "pre_layrnorm": "encoder.embedding.norm",
        "post_layernorm": "encoder.final_norm",
        "visual_projection": "head.linear",
    }


def _build_clip_text_table(config: HFConfig) -> WeightTable:
    return {
        **_CLIP_BLOCK_TABLE,
        "embeddings.token_embedding": "encoder.embedding.tokens",
        "final_layer_norm": "encoder.final_norm",
        "text_projection": "head.linear",
    }


def _build_clip_table(config: HFConfig) -> WeightTable:
    image, text = _split_clip_config(config)
    towers = (
        ("vision_model.", "source.", _build_clip_image_table(image)),
        ("text_model.", "target.", _build_clip_text_table(text)),
    )
    table: dict[str, str | Conversion] = {"logit_scale": "logit_scale"}
    for theirs, ours, tower in towers:
        for name, target in tower.items():
            table[name if name.endswith("_projection") else theirs + name] = _add_prefix(ours, target)
    return table


def _add_prefix(prefix: str, target: str | Conversion) -> str | Conversion:
    if isinstance(target, str):
        return prefix + target
    return replace(target, targets=tuple(prefix + one for one in target.targets))


SINGLE_FILE_READERS = (read_dinov2_onnx,)
_NO_PATCH_BIAS = ("embedding.patches.bias",)
FAMILIES = (
    Family("ViT", ("vit",), _build_vit, _build_vit_table, base_model_prefix="vit."),
    Family("DeiT", ("deit",), _build_deit, _build_deit_table, base_model_prefix="deit."),
    Family(
        "DINOv2",
        ("dinov2",),
        _build_dinov2,
        _build_dinov2_table,
        zero_suffixes=("head.second.bias",),
        base_model_prefix="dinov2.",
    ),
    Family(
        "DINOv2 with registers",
        ("dinov2_with_registers",),
        _build_dinov2_with_registers,
        _build_dinov2_with_registers_table,
        zero_suffixes=("head.second.bias",),
        base_model_prefix="dinov2_with_registers.",
    ),
    Family("CLIP", ("clip",), _build_clip, _build_clip_table, zero_suffixes=_NO_PATCH_BIAS),
    Family(
        "CLIP images",
        ("clip_vision_model",),
        _build_clip_image,
        _build_clip_image_table,
        zero_suffixes=_NO_PATCH_BIAS,
        base_model_prefix="vision_model.",
    ),
    Family(
        "CLIP texts", ("clip_text_model",), _build_clip_text, _build_clip_text_table, base_model_prefix="text_model."
    ),
)
