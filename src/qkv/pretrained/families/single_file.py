"""Models in one file whose header takes the place of config.json: GGUF, and the .bin of llama2.c.

Configuration and tensors are translated to the names of transformers' Llama and its relatives, from which such files
are converted, so that the models can be written back as a folder of that family.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkv.errors import CheckpointError
from qkv.pretrained.conversions import permute_for_rotary
from qkv.pretrained.family import HFConfig, SingleFileReader
from qkv.pretrained.weights import LazyWeights

_INTERLEAVED_ROTARY = {"llama": True, "qwen2": False, "qwen3": False}
"""Supported GGUF architectures, and whether the two numbers of a rotary pair are adjacent, as in Meta's layout."""

_GGUF_SETTINGS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_REQUIRED_SETTINGS = list(_GGUF_SETTINGS)[:6]
_TOKEN_ROLES = {"bos": "bos", "eos": "eos", "padding": "pad"}

_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LLAMA2C_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "norm": "model.norm",
    "output": "lm_head",
}


class RenamedWeights(Mapping[str, Tensor]):
    """The tensors of a file under other names, each read on access. Unknown names stay as they are.

    parts: the names without number and suffix. heads: the parts whose rotary pairs are adjacent, with their number of
    heads. without: names that do not belong to the model.
    """

    def __init__(
        self,
        file_weights: LazyWeights,
        names: Mapping[str, str],
        interleaved_heads: Mapping[str, int],
        exclude: tuple[str, ...] = (),
    ) -> None:
        self._file_weights, self._interleaved_heads = file_weights, interleaved_heads
        self._names = {_rename(name, names): name for name in file_weights if name not in exclude}

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor. Raises CheckpointError if it cannot be split into heads."""
        tensor = self._file_weights[self._names[name]]
        heads = next((count for part, count in self._interleaved_heads.items() if part in name), None)
        if heads is None:
            return tensor
        if tensor.shape[0] % (2 * heads):
            raise CheckpointError(
                f"{self._file_weights.path}: {self._names[name]} has {tensor.shape[0]} rows; expected pairs of rows in "
                f"{heads} heads, which its header says: convert the model again"
            )
        return tensor[permute_for_rotary("", heads).to_parameters(torch.arange(len(tensor)), ())[0]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _rename(name: str, names: Mapping[str, str]) -> str:
    match = re.fullmatch(r"(?:(?:blk|layers)\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if match is None or match[2] not in names:
        return name
    within = f"model.layers.{match[1]}." if match[1] else ""
    return f"{within}{names[match[2]]}.{match[3]}"


def _read_gguf(file_weights: LazyWeights) -> tuple[HFConfig, Mapping[str, Tensor]] | None:
    """Read the model in a GGUF file. Raises CheckpointError for an unsupported architecture or setting."""
    kind = file_weights.metadata.get("general.architecture")
    if kind is None:
        return None
    if kind not in _INTERLEAVED_ROTARY:
        raise CheckpointError(
            f"{file_weights.path} has the architecture {kind!r}; expected one of {', '.join(_INTERLEAVED_ROTARY)}"
        )
    says = {
        name.removeprefix(f"{kind}."): value
        for name, value in file_weights.metadata.items()
        if name.startswith(f"{kind}.")
    }
    config: dict[str, Any] = {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file_weights,
    }
    for name, value in says.items():
        if name in _GGUF_SETTINGS:
            config[_GGUF_SETTINGS[name]] = _parse_number(file_weights, f"{kind}.{name}", value)
    if missing := [f"{kind}.{name}" for name in _REQUIRED_SETTINGS if name not in says]:
        raise CheckpointError(
            f"{file_weights.path} does not say {', '.join(missing)}; expected a whole header: convert again"
        )
    if "token_embd.weight" in file_weights:
        config["vocab_size"] = file_weights.shape("token_embd.weight")[0]
    d_key = config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config["rope_parameters"] = {
        "rope_theta": config.pop("rope_theta", 10000.0),
        **_parse_rope_scaling(file_weights, says, config),
    }
    known = {*_GGUF_SETTINGS, "rope.scaling.type", "rope.scaling.factor"}
    for name, value in says.items():
        fits = name in known or (name in ("rope.dimension_count", "attention.value_length") and value == d_key)
        if not fits:
            raise CheckpointError(
                f"{file_weights.path} says {kind}.{name}={value}, which is not supported; use another conversion"
            )
    for theirs, ours in _TOKEN_ROLES.items():
        if f"tokenizer.ggml.{theirs}_token_id" in file_weights.metadata:
            config[f"{ours}_token_id"] = int(file_weights.metadata[f"tokenizer.ggml.{theirs}_token_id"])
    heads = config["num_attention_heads"]
    paired = {"q_proj": heads, "k_proj": config.get("num_key_value_heads", heads)} if _INTERLEAVED_ROTARY[kind] else {}
    return config, RenamedWeights(file_weights, _GGUF_NAMES, paired, exclude=("rope_freqs.weight",))


def _parse_number(file_weights: LazyWeights, name: str, value: Any) -> int | float:
    """Return a setting as it was before its conversion to float32: 1e-05, not 9.999999747378752e-06."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{file_weights.path} says {name}={value}; expected one number for all blocks")
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _parse_rope_scaling(file_weights: LazyWeights, header: Mapping[str, Any], config: HFConfig) -> dict[str, Any]:
    """Return the scaling of rotary positions: one factor, or one for each pair (GGUF's form of Llama 3.1's scaling)."""
    kind = header.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in file_weights:
        factors = file_weights["rope_freqs.weight"].tolist()
        length = config["max_position_embeddings"]
        return {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": length,
        }
    if kind == "linear":
        return {
            "rope_type": "linear",
            "factor": _parse_number(file_weights, "rope.scaling.factor", header.get("rope.scaling.factor")),
        }
    if kind != "none":
        raise CheckpointError(f"{file_weights.path} scales rotary positions by {kind!r}; expected 'none' or 'linear'")
    return {"rope_type": "default"}


def _read_llama2c(file_weights: LazyWeights) -> tuple[HFConfig, Mapping[str, Tensor]] | None:
    """Read the model in a .bin of llama2.c. Settings that its header leaves out are those of that program."""
    says = file_weights.metadata
    if "shared_classifier" not in says:
        return None
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": says["dim"],
        "intermediate_size": says["hidden_dim"],
        "num_hidden_layers": says["n_layers"],
        "num_attention_heads": says["n_heads"],
        "num_key_value_heads": says["n_kv_heads"],
        "max_position_embeddings": says["seq_len"],
        "vocab_size": says["vocab_size"],
        "tie_word_embeddings": says["shared_classifier"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    heads = {"q_proj": says["n_heads"], "k_proj": says["n_kv_heads"]}
    return config, RenamedWeights(file_weights, _LLAMA2C_NAMES, heads, exclude=("freqs_cos", "freqs_sin"))


SINGLE_FILE_READERS: tuple[SingleFileReader, ...] = (_read_gguf, _read_llama2c)
