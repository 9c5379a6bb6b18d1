"""Settings in files next to config.json: the token that ends a text, and the pooling of a sentence vector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qkv import spec
from qkv.errors import CheckpointError, VocabularyError
from qkv.pretrained import tokenizers
from qkv.pretrained.family import HFConfig

_POOLING_MODES: Mapping[str, spec.Pool] = {"cls": "first", "mean": "mean", "lasttoken": "last"}
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The names of Pooling's modes in older files, which have no `pooling_mode`."""


def read_separator(folder: Path, config: HFConfig) -> HFConfig:
    """Return `sep_token_id`, the token that ends each text, for a model with text segments.

    Where config.json leaves it to the tokenizer, it is the token that the tokenizer appends to a second text. Raises
    CheckpointError if there is no tokenizer, or if it appends none.
    """
    if config.get("sep_token_id") is not None or config.get("type_vocab_size", 2) < 2:
        return {}
    try:
        ids = tokenizers.load(folder, config).encode_with_special_tokens("", "").ids
    except VocabularyError as error:
        raise _missing_separator_error(folder, str(error)) from error
    if not ids:
        raise _missing_separator_error(folder, "the tokenizer appends no token to a text")
    return {"sep_token_id": ids[-1]}


def _missing_separator_error(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"nothing in {folder} says which token ends a text, where this model goes over to its next segment: {reason}. "
        'Expected the tokenizer\'s files, or "sep_token_id" in config.json: copy or add them'
    )


def read_sentence_pooling(folder: Path, config: HFConfig) -> HFConfig:
    """Return `sentence_vector`, the head of a folder of sentence-transformers (its modules.json and the Pooling's
    config.json), or nothing for other folders. Raises CheckpointError for an unknown module or pooling.
    """
    if not (folder / "modules.json").is_file():
        return {}
    modules = _read_json(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(one, Mapping) for one in modules):
        raise CheckpointError(f"{folder / 'modules.json'} does not contain a list of modules; download it again")
    kinds = [str(one.get("type")).rpartition(".")[2] for one in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(
            f"{folder / 'modules.json'} lists {', '.join(kinds)}; expected Transformer, Pooling and perhaps Normalize"
        )
    path = folder / str(modules[1].get("path")) / "config.json"
    settings = _read_json(path)
    mode = (
        settings.get("pooling_mode") or [name for flag, name in _POOLING_FLAGS.items() if settings.get(flag)] or "mean"
    )
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    if not isinstance(mode, str) or mode not in _POOLING_MODES:
        raise CheckpointError(f"{path} says pooling_mode={mode!r}; expected one of {', '.join(_POOLING_MODES)}")
    return {"sentence_vector": {"pool": _POOLING_MODES[mode], "normalized": kinds[-1] == "Normalize"}}


def write_sentence_pooling(folder: Path, config: HFConfig) -> HFConfig:
    """Write the files that `read_sentence_pooling` reads, and return the rest of the configuration for config.json."""
    if "sentence_vector" not in config:
        return config
    pool, normalized = (config["sentence_vector"][name] for name in ("pool", "normalized"))
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")][: 3 if normalized else 2]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2), encoding="utf-8")
    chosen = next(mode for mode, ours in _POOLING_MODES.items() if ours == pool)
    flags: dict[str, Any] = {flag: mode == chosen for flag, mode in _POOLING_FLAGS.items()}
    flags["word_embedding_dimension"] = config.get("hidden_size") or config["dim"]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags, indent=2), encoding="utf-8")
    return {name: value for name, value in config.items() if name != "sentence_vector"}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; download it again") from error
