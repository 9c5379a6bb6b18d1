"""Settings that the configurations of several families share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qkv import spec
from qkv.errors import CheckpointError
from qkv.pretrained.family import HFConfig

_ACTIVATIONS: Mapping[str, spec.Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "gelu_sigmoid",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def parse_activation(name: str) -> spec.Activation:
    """Return the activation that a configuration names, or raise CheckpointError for an unknown one."""
    if name not in _ACTIVATIONS:
        raise CheckpointError(
            f"the configuration names the activation {name!r}; expected one of {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def get_field(config: HFConfig, *names: str) -> Any:
    """Return the value of the first of several names that a configuration has. Raises KeyError with
    the first if none."""
    return config[next((name for name in names if config.get(name) is not None), names[0])]


def require(config: HFConfig, name: str, value: object) -> None:
    """Raise CheckpointError if a configuration has the field `name` with another value than `value`."""
    if config.get(name, value) != value:
        raise CheckpointError(f"the configuration says {name}={config[name]!r}; only {value!r} is supported")


def build_rotary(config: HFConfig, layer_type: str = "full_attention") -> spec.Rotary:
    """Build the rotary positions of a configuration in its older form (rope_theta, rope_scaling) or its newer one
    (rope_parameters, possibly one for each layer type). Raises CheckpointError for an unknown scaling.
    """
    rope: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get(layer_type, rope)
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if layer_type == "sliding_attention" and "rope_theta" not in rope:
        base, rope = config.get("rope_local_base_freq", base), {}
    fraction = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", config.get("rotary_pct", 1.0)))
    return spec.Rotary(float(base), fraction, _build_scaling(rope, config))


def _build_scaling(rope: Mapping[str, Any], config: HFConfig) -> spec.Scaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    longest = config.get("max_position_embeddings", 0)
    learned = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or longest
    match kind:
        case "default":
            return None
        case "linear":
            return spec.LinearScaling(rope["factor"])
        case "llama3":
            return spec.Llama3Scaling(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], learned)
        case "yarn":
            factor = rope["factor"]
            growth = rope.get("attention_factor")
            return spec.YarnScaling(
                factor,
                learned,
                rope.get("beta_fast") or 32.0,
                rope.get("beta_slow") or 1.0,
                0.1 * math.log(factor) + 1 if growth is None else growth,
                rope.get("truncate", True),
            )
        case "longrope":
            factor, growth = longest / learned, rope.get("attention_factor")
            if growth is None:
                growth = math.sqrt(1 + math.log(factor) / math.log(learned)) if factor > 1 else 1.0
            return spec.LongRopeScaling(tuple(rope["short_factor"]), tuple(rope["long_factor"]), learned, growth)
    raise CheckpointError(
        f"the configuration scales rotary positions by {kind!r}; "
        "expected one of default, linear, llama3, yarn, longrope"
    )
