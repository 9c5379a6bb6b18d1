"""Configurations of published models as they are found: with fields left out, and in the forms of earlier years.

The law: a configuration means here what it means to transformers. What is checked of each `model_type`: each field
left out means its default, or is asked for by name; and the older forms that files on the Hub have (bases of rotary
positions outside of rope_parameters, windows by a pattern in place of layer_types) give the same spec as the newer.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from qkv.errors import CheckpointError
from qkv.pretrained.families import FAMILIES, get_family

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

OURS_ALONE = {"marian_native", "g2p_gru"}
KINDS = [kind for family in FAMILIES for kind in family.model_types if kind not in OURS_ALONE]


def default_configuration(kind: str) -> dict[str, Any]:
    """The default configuration of a kind, as transformers writes it, with what files beside it would add."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {**transformers.AutoConfig.for_model(kind).to_dict(), "sep_token_id": 5}


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_left_out_means_its_default_or_is_asked_for(kind: str) -> None:
    config = default_configuration(kind)
    family, expected = get_family(config), get_family(config).build_spec(config)
    wrong = []
    for field in config.keys() - {"model_type"}:
        try:
            found = family.build_spec({name: value for name, value in config.items() if name != field})
        except KeyError:
            continue  # said by name, see `read`
        if found != expected:
            wrong.append(field)
    assert not wrong


NEWER = ("rope_parameters", "layer_types", "scale_decoder_outputs")
OLDER: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "linear", {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    ("llama", "llama3", {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),  # noqa: E501
    ("llama", "grouped by none", {"num_key_value_heads": None, "rope_scaling": None, "head_dim": None}),
    ("mistral", "no window", {"rope_theta": 1e6, "sliding_window": None}),
    ("qwen2", "a window that is not used", {"sliding_window": 64, "max_window_layers": 2}),
    ("qwen2", "windows above", {"sliding_window": 64, "max_window_layers": 2, "use_sliding_window": True}),
    ("qwen2", "yarn", {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}),  # noqa: E501
    ("smollm3", "windows without positions", {"rope_theta": 5e6, "sliding_window": 64, "use_sliding_window": True}),
    ("phi3", "longrope", {"rope_theta": 1e4, "max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", "long_factor": [1.5] * 48, "short_factor": [1.1] * 48}}),  # noqa: E501
    ("phi3", "partial", {"rope_theta": 1e4, "partial_rotary_factor": 0.75}),
    ("gemma", "gelu", {"rope_theta": 1e4, "hidden_act": "gelu", "hidden_activation": None}),
    ("gemma2", "alternating", {"rope_theta": 1e4, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"}),
    ("gemma3_text", "one of six", {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}),
    ("gemma3_text", "one of three", {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "sliding_window_pattern": 3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),  # noqa: E501
    ("gpt_oss", "yarn", {"rope_theta": 2e5, "rope_scaling": {"rope_type": "yarn", "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096}}),  # noqa: E501
    ("gpt_neox", "part", {"rotary_pct": 0.5, "rotary_emb_base": 25000}),
    ("falcon", "base", {"rope_theta": 500042}),
    ("modernbert", "bases", {"global_rope_theta": 7e4, "local_rope_theta": 5e3, "global_attn_every_n_layers": 2}),
    ("t5", "1.1", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "what", "says"), OLDER, ids=lambda one: one.replace(" ", "-") if isinstance(one, str) else ""
)  # noqa: E501
def test_an_older_form_means_the_same(kind: str, what: str, says: dict[str, Any], tmp_path: Path) -> None:
    older = {**{name: value for name, value in default_configuration(kind).items() if name not in NEWER}, **says}
    (tmp_path / "config.json").write_text(json.dumps(older))
    newer = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    family = get_family(older)
    assert family.build_spec(older) == family.build_spec(newer)


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text"])
def test_a_decoder_that_looks_ahead_is_refused(kind: str) -> None:
    config = {**default_configuration(kind), "use_bidirectional_attention": True}
    with pytest.raises(CheckpointError, match="use_bidirectional_attention=True"):
        get_family(config).build_spec(config)
