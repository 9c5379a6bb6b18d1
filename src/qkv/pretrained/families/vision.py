"""Encoders of images, in the manner of ViT, and CLIP with its text encoder.

Files are read under the names that published ones have, which transformers still writes although its own modules are
called otherwise. Heads for other answers (masked images) are refused, mask tokens and poolers left out by name.
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
from qkv.pretrained.families.common import activation, only
from qkv.pretrained.family import Config, Family, Table
from qkv.pretrained.operations import Operation, columns, ignored, row_gain, scaled, shaped, stacked
from qkv.pretrained.weights import Weights

_BASE: Config = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3,
    "mlp_ratio": 4, "num_register_tokens": 4,
}  # fmt: skip
"""What a configuration means that says nothing of it, by the defaults of transformers."""


def _stack(config: Config, reads: spec.Reads, positions: int, causal: bool = False, **changes: Any) -> spec.Stack:
    """A pre-norm encoder of equal blocks; `positions` are learned."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    norm = spec.Norm(eps=config["layer_norm_eps"])
    feed_forward = changes.pop("feed_forward", None) or spec.FeedForward(
        config["intermediate_size"], activation(config["hidden_act"])
    )
    block = spec.Block(spec.Attention(heads, width // heads, causal=causal), feed_forward, norm=norm)
    blocks = (block,) * config["num_hidden_layers"]
    return spec.Stack(width, blocks, reads, spec.Learned(positions), final_norm=norm, **changes)


def _image_stack(config: Config, leading: int = 1, registers: int = 0, **changes: Any) -> spec.Stack:
    only(config, "qkv_bias", True)
    size = _side(config, "patch_size")
    reads = spec.Patches(size, config["num_channels"], leading, registers, smooth=registers > 0)
    return _stack(config, reads, (_side(config, "image_size") // size) ** 2 + leading, **changes)


def _side(config: Config, field: str) -> int:
    """A side of a square; CheckpointError for what is no square."""
    sides = {config[field]} if isinstance(config[field], int) else set(config[field])
    if len(sides) != 1:
        raise CheckpointError(f"the configuration says {field}={config[field]}; expected a square")
    return int(sides.pop())


def _answers(config: Config, answers: Mapping[str, spec.Answers]) -> spec.Answers:
    """The answer of the class that a configuration names, the first of `answers` if none; others are refused."""
    name = (config.get("architectures") or [next(iter(answers))])[0]
    if name not in answers:
        raise CheckpointError(f"the configuration says architectures={name}; expected one of {', '.join(answers)}")
    return answers[name]


def _count(config: Config) -> int:
    return len(config["id2label"]) if config.get("id2label") else int(config.get("num_labels", 2))


# ViT (Dosovitskiy et al. 2021) and DeiT (Touvron et al. 2021)


def _vit(config: Config) -> spec.Transformer:
    config = {**_BASE, **config}
    answers: dict[str, spec.Answers] = {
        "ViTModel": spec.States(),
        "ViTForImageClassification": spec.Classes(_count(config), "first"),
    }
    return spec.Transformer(_image_stack(config), None, _answers(config, answers))


def _deit(config: Config) -> spec.Transformer:
    config = {**_BASE, **config}
    answers: dict[str, spec.Answers] = {
        "DeiTModel": spec.States(),
        "DeiTForImageClassification": spec.Classes(_count(config), "first"),
        "DeiTForImageClassificationWithTeacher": spec.Classes(_count(config), "first", also="second"),
    }
    return spec.Transformer(_image_stack(config, leading=2), None, _answers(config, answers))


_BLOCK = "encoder.blocks.{n}."
_ATTENTION, _FEED_FORWARD = f"{_BLOCK}self_attention", f"{_BLOCK}feed_forward"


def _image_table(config: Config) -> dict[str, str | Operation]:
    config = {**_BASE, **config}
    size = _side(config, "patch_size")
    return {
        "embeddings.cls_token": shaped("encoder.embedding.leading.0", (1, 1, -1)),
        "embeddings.mask_token": ignored(),
        "embeddings.position_embeddings": shaped("encoder.embedding.positions.weight", (1, -1, config["hidden_size"])),
        "embeddings.patch_embeddings.projection.weight": shaped(
            "encoder.embedding.patches.weight", (-1, config["num_channels"], size, size)
        ),
        "embeddings.patch_embeddings.projection.bias": "encoder.embedding.patches.bias",
        "encoder.layer.{n}.attention.attention.query": f"{_ATTENTION}.query",
        "encoder.layer.{n}.attention.attention.key": f"{_ATTENTION}.key",
        "encoder.layer.{n}.attention.attention.value": f"{_ATTENTION}.value",
        "encoder.layer.{n}.attention.output.dense": f"{_ATTENTION}.output",
        "layernorm": "encoder.final_norm",
        "pooler": ignored(),
        "classifier": "answer.linear",
    }


def _vit_table(config: Config) -> Table:
    return {
        **_image_table(config),
        "encoder.layer.{n}.layernorm_before": f"{_ATTENTION}_residual.before",
        "encoder.layer.{n}.layernorm_after": f"{_FEED_FORWARD}_residual.before",
        "encoder.layer.{n}.intermediate.dense": f"{_FEED_FORWARD}.widen",
        "encoder.layer.{n}.output.dense": f"{_FEED_FORWARD}.narrow",
    }


def _deit_table(config: Config) -> Table:
    table = dict(_vit_table(config))
    table["embeddings.distillation_token"] = shaped("encoder.embedding.leading.1", (1, 1, -1))
    if "DeiTForImageClassificationWithTeacher" in (config.get("architectures") or ()):  # the mean of two answers
        del table["classifier"]
        table["cls_classifier"] = scaled("answer.linear", 0.5)
        table["distillation_classifier"] = scaled("answer.second", 0.5)
    return table


# DINOv2 (Oquab et al. 2024), also with registers (Darcet et al. 2024)


def _dinov2(config: Config, registers: int = 0) -> spec.Transformer:
    config = {**_BASE, "layer_norm_eps": 1e-6, "patch_size": 16 if registers else 14, **config}
    d_ff = int(config["hidden_size"] * config["mlp_ratio"])
    feed_forward = spec.FeedForward(d_ff, activation(config["hidden_act"]))
    if config.get("use_swiglu_ffn", False):  # as wide as needed for as many numbers as two matrices have
        feed_forward = spec.FeedForward((int(d_ff * 2 / 3) + 7) // 8 * 8, "silu", gated=True)
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    answers: dict[str, spec.Answers] = {
        f"{name}Model": spec.States(),
        f"{name}ForImageClassification": spec.Classes(_count(config), "first", also="mean"),
    }
    stack = _image_stack(config, registers=registers, feed_forward=feed_forward)
    return spec.Transformer(stack, None, _answers(config, answers))


def _dinov2_with_registers(config: Config) -> spec.Transformer:
    return _dinov2(config, config.get("num_register_tokens", _BASE["num_register_tokens"]))


def _dinov2_table(config: Config) -> Table:
    table = _image_table({"patch_size": 14, **config})
    del table["classifier"]
    feed_forward: Table = {
        "encoder.layer.{n}.mlp.fc1": f"{_FEED_FORWARD}.widen",
        "encoder.layer.{n}.mlp.fc2": f"{_FEED_FORWARD}.narrow",
    }
    if config.get("use_swiglu_ffn", False):
        feed_forward = {
            "encoder.layer.{n}.mlp.weights_in": stacked(f"{_FEED_FORWARD}.gate", f"{_FEED_FORWARD}.widen"),
            "encoder.layer.{n}.mlp.weights_out": f"{_FEED_FORWARD}.narrow",
        }
    return {
        **table,
        "encoder.layer.{n}.norm1": f"{_ATTENTION}_residual.before",
        "encoder.layer.{n}.norm2": f"{_FEED_FORWARD}_residual.before",
        "encoder.layer.{n}.layer_scale1.lambda1": row_gain(f"{_ATTENTION}.output"),
        "encoder.layer.{n}.layer_scale2.lambda1": row_gain(f"{_FEED_FORWARD}.narrow"),
        **feed_forward,
        "classifier.weight": columns("answer.linear.weight", "answer.second.weight"),
        "classifier.bias": "answer.linear.bias",
    }


def _dinov2_with_registers_table(config: Config) -> Table:
    width = {**_BASE, **config}["hidden_size"]
    registers = shaped("encoder.embedding.registers", (1, -1, width))
    return {**_dinov2_table({"patch_size": 16, **config}), "embeddings.register_tokens": registers}


def dinov2_graph(stored: Weights) -> tuple[Config, Mapping[str, Tensor]] | None:
    """A DINOv2 by the shapes of its tensors, as they are in an ONNX graph that was exported from transformers.

    What shapes cannot say is as in every published DINOv2: heads are 64 wide. Whatever else the graph holds stays
    outside, such as a head of its own. An export may have cut the positions in two and left them without names.
    """
    kernel, gain = "embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layer_scale1.lambda1"
    prefix = next((name.removesuffix(gain) for name in stored if name.endswith(gain)), None)
    if prefix is None or prefix + kernel not in stored:
        return None
    named = [name for name in stored if name.startswith(prefix) and "::" not in name]
    tensors = {name.removeprefix(prefix): stored[name] for name in named}
    width, channels, size, _ = tensors[kernel].shape
    if "embeddings.position_embeddings" not in tensors:
        nameless = [
            stored[name]
            for name in stored
            if "::" in name and stored.shape(name)[:1] + stored.shape(name)[2:] == (1, width)
        ]
        parts = sorted(nameless, key=lambda part: part.shape[1])
        if [part.shape[1] for part in parts[:1]] != [1] or len(parts) != 2:
            shapes = [tuple(part.shape) for part in parts]
            raise CheckpointError(
                f"{stored.path} holds a DINOv2 whose positions have no name, and {shapes} in their place; expected one "
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

_CLIP: Config = {**_BASE, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32, "projection_dim": 512}
_CLIP_TEXT: Config = {
    **_CLIP, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408,
    "max_position_embeddings": 77,
}  # fmt: skip


def _clip_image(config: Config, unit: bool = False) -> spec.Transformer:
    config = {**_CLIP, **config}
    answers: dict[str, spec.Answers] = {
        "CLIPVisionModel": spec.Vector("first", None, unit),
        "CLIPVisionModelWithProjection": spec.Vector("first", config["projection_dim"], unit),
    }
    stack = _image_stack(config, embed_norm=spec.Norm(eps=config["layer_norm_eps"]))
    return spec.Transformer(stack, None, _answers(config, answers))


def _clip_text(config: Config, unit: bool = False) -> spec.Transformer:
    """A text is its last token's vector, which must be the end token: mask what stands after it."""
    config = {**_CLIP_TEXT, **config}
    answers: dict[str, spec.Answers] = {
        "CLIPTextModel": spec.Vector("last", None, unit),
        "CLIPTextModelWithProjection": spec.Vector("last", config["projection_dim"], unit),
    }
    stack = _stack(config, spec.Tokens(config["vocab_size"]), config["max_position_embeddings"], causal=True)
    return spec.Transformer(stack, None, _answers(config, answers))


def _clip_towers(config: Config) -> tuple[Config, Config]:
    """The configurations of the towers, of which older files have two, the one called "dict" to be believed."""
    image, text = (config.get(f"{one}_config_dict") or config.get(f"{one}_config") or {} for one in ("vision", "text"))
    width = config.get("projection_dim", 512)
    return (
        {**image, "projection_dim": width, "architectures": ["CLIPVisionModelWithProjection"]},
        {**text, "projection_dim": width, "architectures": ["CLIPTextModelWithProjection"]},
    )


def _clip(config: Config) -> spec.Towers:
    only({"architectures": (config.get("architectures") or ["CLIPModel"])[0]}, "architectures", "CLIPModel")
    image, text = _clip_towers(config)
    return spec.Towers(_clip_image(image, unit=True), _clip_text(text, unit=True))


_CLIP_BLOCK: dict[str, str | Operation] = {
    "encoder.layers.{n}.layer_norm1": f"{_ATTENTION}_residual.before",
    "encoder.layers.{n}.layer_norm2": f"{_FEED_FORWARD}_residual.before",
    "encoder.layers.{n}.self_attn.q_proj": f"{_ATTENTION}.query",
    "encoder.layers.{n}.self_attn.k_proj": f"{_ATTENTION}.key",
    "encoder.layers.{n}.self_attn.v_proj": f"{_ATTENTION}.value",
    "encoder.layers.{n}.self_attn.out_proj": f"{_ATTENTION}.output",
    "encoder.layers.{n}.mlp.fc1": f"{_FEED_FORWARD}.widen",
    "encoder.layers.{n}.mlp.fc2": f"{_FEED_FORWARD}.narrow",
    "embeddings.position_embedding": "encoder.embedding.positions",
    "embeddings.position_ids": ignored(),
}


def _clip_image_table(config: Config) -> Table:
    config = {**_CLIP, **config}
    size = _side(config, "patch_size")
    return {
        **_CLIP_BLOCK,
        "embeddings.class_embedding": "encoder.embedding.leading.0",
        "embeddings.patch_embedding.weight": shaped(
            "encoder.embedding.patches.weight", (-1, config["num_channels"], size, size)
        ),
        "pre_layrnorm": "encoder.embedding.norm",
        "post_layernorm": "encoder.final_norm",
        "visual_projection": "answer.linear",
    }


def _clip_text_table(config: Config) -> Table:
    return {
        **_CLIP_BLOCK,
        "embeddings.token_embedding": "encoder.embedding.tokens",
        "final_layer_norm": "encoder.final_norm",
        "text_projection": "answer.linear",
    }


def _clip_table(config: Config) -> Table:
    image, text = _clip_towers(config)
    towers = (
        ("vision_model.", "source.", _clip_image_table(image)),
        ("text_model.", "target.", _clip_text_table(text)),
    )
    table: dict[str, str | Operation] = {"logit_scale": "log_factor"}
    for theirs, ours, tower in towers:
        for name, target in tower.items():
            table[name if name.endswith("_projection") else theirs + name] = _under(ours, target)
    return table


def _under(place: str, target: str | Operation) -> str | Operation:
    if isinstance(target, str):
        return place + target
    return replace(target, targets=tuple(place + one for one in target.targets))


FILES = (dinov2_graph,)
_NO_PATCH_BIAS = ("embedding.patches.bias",)
FAMILIES = (
    Family("ViT", ("vit",), _vit, _vit_table, prefix="vit."),
    Family("DeiT", ("deit",), _deit, _deit_table, prefix="deit."),
    Family("DINOv2", ("dinov2",), _dinov2, _dinov2_table, zeros=("answer.second.bias",), prefix="dinov2."),
    Family(
        "DINOv2 with registers",
        ("dinov2_with_registers",),
        _dinov2_with_registers,
        _dinov2_with_registers_table,
        zeros=("answer.second.bias",),
        prefix="dinov2_with_registers.",
    ),
    Family("CLIP", ("clip",), _clip, _clip_table, zeros=_NO_PATCH_BIAS),
    Family(
        "CLIP images",
        ("clip_vision_model",),
        _clip_image,
        _clip_image_table,
        zeros=_NO_PATCH_BIAS,
        prefix="vision_model.",
    ),
    Family("CLIP texts", ("clip_text_model",), _clip_text, _clip_text_table, prefix="text_model."),
)
