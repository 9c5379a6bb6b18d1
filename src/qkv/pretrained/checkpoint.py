"""Published checkpoints, loaded as models of this package and written back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qkv import spec
from qkv.errors import CheckpointError
from qkv.generation_rules import GenerationRules
from qkv.models import SequenceModel
from qkv.pretrained import sidecar, weights
from qkv.pretrained.families import SINGLE_FILE_READERS, get_family
from qkv.pretrained.family import Family, HFConfig, build_model, export_tensors
from qkv.pretrained.generation_config import read_generation_rules

_GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class PretrainedModel:
    """A published model: its family, its own configuration and the model in our modules.

    generation: how its outputs begin and end. generation_config: its generation_config.json, if it has one.
    metadata: what else a file with a whole model contains, such as a tokenizer.
    """

    family: Family
    config: HFConfig
    model: SequenceModel
    generation_settings: HFConfig = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def generation(self) -> GenerationRules:
        """The rules for its outputs. Raises CheckpointError for invalid rules."""
        shape = self.model.spec
        reads_source = not isinstance(shape, spec.Transformer) or shape.encoder is not None
        return read_generation_rules(self.generation_settings or self.config, has_encoder=reads_source)


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    allow_pickle: bool = False,
    keep_quantized: bool = False,
) -> PretrainedModel:
    """Load a folder with config.json and weights, or one self-describing file; parameters in `dtype`, or as stored if
    None.

    keep_quantized: whether matrices in GGUF's simple blocks are kept as `QuantizedTensor`, which saves memory but
    prevents training.

    Raises CheckpointError for a folder that is incomplete, of an unknown family, or whose tensors do not fit it.
    """
    place = Path(path)
    with _errors_with_path(place):
        if _is_self_describing(place):
            file = weights.read(place, allow_pickle=allow_pickle, keep_quantized=keep_quantized)
            family, config, stored = _read_single_file(file)
            metadata = file.metadata
        else:
            family, config = _read_folder_config(place)
            stored, metadata = weights.read(place, allow_pickle=allow_pickle, keep_quantized=keep_quantized), {}
        _build_spec(family, config)
        model = build_model(family, config, stored, dtype)
    generating = _read_json(place / _GENERATION_CONFIG) if (place / _GENERATION_CONFIG).is_file() else {}
    return PretrainedModel(family, config, model, generating, metadata)


def load_spec(path: str | Path) -> spec.Spec:
    """Load the spec of a published model without its weights. Raises CheckpointError as `load` does."""
    place = Path(path)
    with _errors_with_path(place):
        family, config = (
            _read_single_file(weights.read(place))[:2] if _is_self_describing(place) else _read_folder_config(place)
        )
        return _build_spec(family, config)


def _build_spec(family: Family, config: HFConfig) -> spec.Spec:
    try:
        return family.build_spec(config)
    except (TypeError, AttributeError) as error:
        raise CheckpointError(
            f"config.json has a value of a wrong kind for the {family.name} family ({error}); download it again"
        ) from error


@contextmanager
def _errors_with_path(path: Path) -> Iterator[None]:
    """Prefix every error with the path, and report settings that a configuration lacks."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    except KeyError as error:
        raise CheckpointError(
            f"{path} lacks {error}, which its family needs; expected a whole config.json: download it again"
        ) from error


def _read_folder_config(folder: Path) -> tuple[Family, HFConfig]:
    """Read the family and the configuration of a folder, including what the family finds in its other files."""
    config = read_config(folder)
    family = get_family(config)
    for more in family.sidecar_readers:
        config |= more(folder, config)
    return family, config


def _is_self_describing(path: Path) -> bool:
    """Return whether a file determines its model: a file by itself, or one whose config.json leaves the model to it."""
    return path.is_file() or (path / "model.bin").is_file() and "model_type" not in read_config(path)


def _read_single_file(file_weights: weights.LazyWeights) -> tuple[Family, HFConfig, Mapping[str, Tensor]]:
    """Return the family of the model in a file, its configuration, and its tensors under the family's names."""
    for kind in SINGLE_FILE_READERS:
        if (found := kind(file_weights)) is not None:
            config, tensors = found
            return get_family(config), config, tensors
    raise CheckpointError(
        f"{file_weights.path} does not describe the model of its {len(file_weights)} tensors; expected a folder "
        f"with config.json "
        "and the weights: give the folder, or download what is missing"
    )


def save(pretrained: PretrainedModel, folder: str | Path) -> None:
    """Write config.json and model.safetensors in the form of the model's family."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    tensors = export_tensors(pretrained.family, pretrained.config, pretrained.model)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    (place / "model.safetensors").chmod(0o644)  # safetensors makes files that only their owner can read
    config = sidecar.write_sentence_pooling(place, _with_stored_dtype(pretrained.config, tensors))
    (place / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    if pretrained.generation_settings:
        (place / _GENERATION_CONFIG).write_text(
            json.dumps(dict(pretrained.generation_settings), indent=2), encoding="utf-8"
        )


def _with_stored_dtype(config: HFConfig, tensors: Mapping[str, Tensor]) -> HFConfig:
    """Return the configuration with the dtype of the tensors, if it states another (or none, which means float32)."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    dtype_name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if len(kinds) != 1 or kinds == {dtype_name}:
        return config
    return {**{name: value for name, value in config.items() if name != "torch_dtype"}, "dtype": kinds.pop()}


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json. Raises CheckpointError if it is missing, damaged or not an object."""
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; expected a whole folder: download it again"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not contain a JSON object; download it again")
    return content
