"""Speech models: Whisper transcribes, wav2vec 2.0 labels frames."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from qkv import spec
from qkv.errors import CheckpointError
from qkv.pretrained.conversions import (
    accept_legacy_name,
    ignore,
    set_weight_direction,
    set_weight_magnitude,
    write_zeros,
)
from qkv.pretrained.families.bart import build_block_table, build_stack
from qkv.pretrained.families.common import parse_activation, require
from qkv.pretrained.family import Family, HFConfig, WeightTable
from qkv.pretrained.weights import LazyWeights

# Whisper (Radford et al. 2022)

_WHISPER_DEFAULTS: HFConfig = {
    "vocab_size": 51865, "num_mel_bins": 80, "d_model": 384, "max_source_positions": 1500, "max_target_positions": 448,
    **{f"{one}_{name}": value for one in ("encoder", "decoder")
       for name, value in (("layers", 4), ("attention_heads", 6), ("ffn_dim", 1536))},
}  # fmt: skip
"""The defaults of transformers for settings that a configuration leaves out."""


def _build_whisper(config: HFConfig) -> spec.Transformer:
    config = {**_WHISPER_DEFAULTS, **config, "scale_embedding": False}  # whatever a file says
    sides = {
        name: replace(
            build_stack(config, name, "pre", config["vocab_size"], final_norm=spec.Norm()),
            positions=spec.Learned(config[f"max_{length}_positions"]),
        )
        for name, length in (("encoder", "source"), ("decoder", "target"))
    }
    encoder = replace(sides["encoder"], input=spec.Frames(config["num_mel_bins"]))
    return spec.Transformer(encoder, sides["decoder"], spec.Vocabulary())


_WHISPER_TABLE: WeightTable = {
    "encoder.conv1": "encoder.embedding.conv1",
    "encoder.conv2": "encoder.embedding.conv2",
    "decoder.embed_tokens": "decoder.embedding.tokens",
    **{f"{one}.embed_positions": f"{one}.embedding.positions" for one in ("encoder", "decoder")},
    **{f"{one}.layer_norm": f"{one}.final_norm" for one in ("encoder", "decoder")},
    **build_block_table("encoder", "before"),
    **build_block_table("decoder", "before"),
    "proj_out.weight": accept_legacy_name("head.weight"),
}


# Whisper in the format of CTranslate2

_CTRANSLATE2_NAMES = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
    "position_encodings": ("embed_positions",),
    "embeddings": ("embed_tokens",),
    **{name: (name,) for name in ("conv1", "conv2", "layer_norm")},
}
"""Maps the names of CTranslate2 to those of transformers, some of which are nested."""
_PARAMETER_NAMES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}
_CONSTANTS = {
    "decoder/activation": 3,  # GELU
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
_ENGLISH_ONLY_START = 50257
"""The index of the start token in models without language tokens; the others have one token more."""
_SETTINGS = {
    *_CONSTANTS, "encoder/num_heads", "decoder/num_heads", "decoder/alignment_heads", "decoder/alignment_layer",
}  # fmt: skip
"""Names of settings, which are not parameters."""


class _RenamedWeights(Mapping[str, Tensor]):
    """The tensors of a Whisper model of CTranslate2 under the names of transformers, each read on access."""

    def __init__(self, file_weights: LazyWeights) -> None:
        self._file_weights = file_weights
        self._names: dict[str, tuple[str, int, int]] = {}
        for name in file_weights:
            match = re.fullmatch(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/([a-z]+)", name)
            if name in _SETTINGS or name in file_weights.metadata["aliases"]:
                continue
            if match is None or match[3] not in _CTRANSLATE2_NAMES or match[4] not in _PARAMETER_NAMES:
                self._names[name] = name, 0, 1  # unknown to the family, which then reports it
                continue
            within = f"model.{match[1]}." + (f"layers.{match[2]}." if match[2] else "")
            parts = _CTRANSLATE2_NAMES[match[3]]
            for number, part in enumerate(parts):
                self._names[f"{within}{part}.{_PARAMETER_NAMES[match[4]]}"] = name, number, len(parts)

    def __getitem__(self, name: str) -> Tensor:
        stored, number, count = self._names[name]
        tensor = self._file_weights[stored]
        return tensor if count == 1 or not tensor.ndim else tensor.chunk(count)[number]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_ctranslate2_whisper(file_weights: LazyWeights) -> tuple[HFConfig, Mapping[str, Tensor]] | None:
    """Read the Whisper model in CTranslate2's model.bin, with config.json and the vocabulary next to it.

    Its configuration is given in the words of transformers. Raises CheckpointError for a model that is not Whisper.
    """
    if file_weights.metadata.get("specification") != "WhisperSpec":
        return None
    for name, value in _CONSTANTS.items():
        if name in file_weights and (file_weights[name].numel() != 1 or file_weights[name].item() != value):
            raise CheckpointError(
                f"{file_weights.path} says {name}={file_weights[name].tolist()}; expected {value}, the only one "
                f"known of Whisper"
            )
    config: dict[str, Any] = {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "vocab_size": _get_size(file_weights, "decoder/embeddings/weight", 0),
        "d_model": _get_size(file_weights, "decoder/embeddings/weight", 1),
        "num_mel_bins": _get_size(file_weights, "encoder/conv1/weight", 1),
        "max_source_positions": _get_size(file_weights, "encoder/position_encodings/encodings", 0),
        "max_target_positions": _get_size(file_weights, "decoder/position_encodings/encodings", 0),
    }
    for one in ("encoder", "decoder"):
        blocks = {found[1] for name in file_weights if (found := re.match(rf"{one}/layer_(\d+)/", name))}
        heads = file_weights[f"{one}/num_heads"] if f"{one}/num_heads" in file_weights else None
        if heads is None or heads.numel() != 1 or heads.item() < 1:
            raise CheckpointError(f"{file_weights.path} does not say {one}/num_heads; expected a number of heads")
        config[f"{one}_layers"] = len(blocks)
        config[f"{one}_attention_heads"] = int(heads.item())
        config[f"{one}_ffn_dim"] = _get_size(file_weights, f"{one}/layer_0/ffn/linear_0/weight", 0)
    return {**config, **_read_generation_settings(file_weights.path.parent)}, _RenamedWeights(file_weights)


def _get_size(file_weights: LazyWeights, name: str, axis: int) -> int:
    """Return the length of one axis of a tensor. Raises CheckpointError if the tensor is missing or
    has too few axes."""
    shape = file_weights.shape(name) if name in file_weights else ()
    if len(shape) <= axis:
        raise CheckpointError(
            f"{file_weights.path} has no {name}, or one of shape {shape}; expected a whole Whisper model"
        )
    return shape[axis]


def _read_generation_settings(folder: Path) -> HFConfig:
    """Read the generation settings from config.json and the vocabulary of a CTranslate2 folder, as far
    as they exist."""
    says: dict[str, Any] = {}
    names = {
        "suppress_ids": "suppress_tokens",
        "suppress_ids_begin": "begin_suppress_tokens",
        "alignment_heads": "alignment_heads",
    }
    given = _read_json(folder / "config.json")
    if isinstance(given, Mapping):
        says |= {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
    vocabulary = _read_json(folder / "vocabulary.json")
    if not isinstance(vocabulary, list):
        lines = folder / "vocabulary.txt"
        vocabulary = lines.read_text(encoding="utf-8", errors="replace").split("\n") if lines.is_file() else []
    roles = {"decoder_start_token_id": "<|startoftranscript|>", "eos_token_id": "<|endoftext|>"}
    says |= {role: vocabulary.index(token) for role, token in roles.items() if token in vocabulary}
    if "<|notimestamps|>" in vocabulary and says.get("decoder_start_token_id") == _ENGLISH_ONLY_START:
        says["forced_decoder_ids"] = [[1, vocabulary.index("<|notimestamps|>")]]
    return says


def _read_json(file: Path) -> Any:
    """Read a JSON file, or return None if there is none. Raises CheckpointError if it is damaged."""
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be read: {error}; download it again") from error


# wav2vec 2.0 (Baevski et al. 2020)

_WAV2VEC2_DEFAULTS: HFConfig = {
    "vocab_size": 32, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "conv_dim": (512,) * 7, "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2), "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16,
}  # fmt: skip
_WAV2VEC2_HEADS: Mapping[str, Callable[[HFConfig], spec.Head]] = {
    "Wav2Vec2Model": lambda config: spec.States(),
    "Wav2Vec2ForPreTraining": lambda config: spec.States(),
    "Wav2Vec2ForCTC": lambda config: spec.Labels(config["vocab_size"]),
}
"""The head of each class; the blank of the labels is the token that config.json calls pad."""


def _build_wav2vec2(config: HFConfig) -> spec.Transformer:
    for name, value in (("feat_extract_activation", "gelu"), ("layer_norm_eps", 1e-5), ("add_adapter", False)):
        require(config, name, value)
    require(config, "adapter_attn_dim", None)
    config = {**_WAV2VEC2_DEFAULTS, **config}
    width, heads, norm = config["hidden_size"], config["num_attention_heads"], spec.Norm()
    stable = config.get("do_stable_layer_norm", False)
    if (kind := config.get("feat_extract_norm", "group")) not in ("group", "layer"):
        raise CheckpointError(f"the configuration says feat_extract_norm={kind!r}; expected 'group' or 'layer'")
    sizes = zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True)
    reads = spec.Waveform(
        tuple(spec.Convolution(*one) for one in sizes),
        "each" if kind == "layer" else "first",
        config.get("conv_bias", False),
    )
    block = spec.Block(
        spec.Attention(heads, width // heads),
        spec.FeedForward(config["intermediate_size"], parse_activation(config.get("hidden_act", "gelu"))),
        norm_at="pre" if stable else "post",
    )
    positions = spec.Convolutional(config["num_conv_pos_embeddings"], config["num_conv_pos_embedding_groups"])
    stack = spec.Stack(
        width,
        (block,) * config["num_hidden_layers"],
        reads,
        positions,
        None if stable else norm,
        norm if stable else None,
    )
    if (name := (config.get("architectures") or ["Wav2Vec2Model"])[0]) not in _WAV2VEC2_HEADS:
        raise CheckpointError(
            f"the configuration says architectures={name}; expected one of {', '.join(_WAV2VEC2_HEADS)}"
        )
    return spec.Transformer(stack, None, _WAV2VEC2_HEADS[name](config))


def _build_wav2vec2_table(config: HFConfig) -> WeightTable:
    stable = config.get("do_stable_layer_norm", False)
    layer, block = "encoder.layers.{n}.", "encoder.blocks.{n}."
    hides = config.get("mask_time_prob", 0.05) > 0 or config.get("mask_feature_prob", 0.0) > 0  # in training
    around, norm = "encoder.embedding.positional_conv", "before" if stable else "last"
    lengths, directions = set_weight_magnitude(f"{around}.weight"), set_weight_direction(f"{around}.weight")
    return {
        "feature_extractor.conv_layers.{n}.conv": "encoder.embedding.layers.{n}.convolution",
        "feature_extractor.conv_layers.{n}.layer_norm": "encoder.embedding.layers.{n}.norm",
        "feature_projection.layer_norm": "encoder.embedding.projection_norm",
        "feature_projection.projection": "encoder.embedding.projection",
        "encoder.pos_conv_embed.conv.weight_g": lengths,
        "encoder.pos_conv_embed.conv.weight_v": directions,
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0": accept_legacy_name(lengths),
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1": accept_legacy_name(directions),
        "encoder.pos_conv_embed.conv.bias": f"{around}.bias",
        "encoder.layer_norm": "encoder.final_norm" if stable else "encoder.embedding.norm",
        **{
            f"{layer}attention.{theirs}": f"{block}self_attention.{ours}"
            for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output"))
        },
        f"{layer}layer_norm": f"{block}self_attention_residual.{norm}",
        f"{layer}feed_forward.intermediate_dense": f"{block}feed_forward.up_proj",
        f"{layer}feed_forward.output_dense": f"{block}feed_forward.down_proj",
        f"{layer}final_layer_norm": f"{block}feed_forward_residual.{norm}",
        "lm_head": "head.linear",
        "masked_spec_embed": write_zeros(f"{around}.bias") if hides else ignore(),
        **{name: ignore() for name in ("quantizer", "project_q", "project_hid")},
    }


FAMILIES = (
    Family(
        "Whisper",
        ("whisper",),
        _build_whisper,
        lambda config: _WHISPER_TABLE,
        zero_suffixes=("attention.key.bias",),
        base_model_prefix="model.",
    ),
    Family("wav2vec 2.0", ("wav2vec2",), _build_wav2vec2, _build_wav2vec2_table, base_model_prefix="wav2vec2."),
)
SINGLE_FILE_READERS = (read_ctranslate2_whisper,)
