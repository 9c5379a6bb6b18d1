"""Published checkpoints, opened as models of this package and written back."""

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
from qkv.models import SequenceModel
from qkv.pretrained import beside, weights
from qkv.pretrained.families import FILES, family_of
from qkv.pretrained.family import Config, Family, drain, fill
from qkv.pretrained.generation import Generation

_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Published:
    """A published model: its family, its own configuration and the model in our modules.

    generation: what its answers have to begin and end with. generating: its generation_config.json, if it has one.
    metadata: what a file that holds a whole model says beside it, such as a tokenizer.
    """

    family: Family
    config: Config
    model: SequenceModel
    generating: Config = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def generation(self) -> Generation:
        """The rules of its answers. Raises CheckpointError for rules that are none."""
        shape = self.model.spec
        reads_source = not isinstance(shape, spec.Transformer) or shape.encoder is not None
        return Generation.of(self.generating or self.config, reads_source=reads_source)


def read(
    path: str | Path, *, dtype: torch.dtype | None = torch.float32, legacy: bool = False, blocks: bool = False
) -> Published:
    """Open a folder with config.json and weights, or one file that says itself what it is; parameters in `dtype`, or
    as they are stored if None.

    blocks: whether matrices in GGUF's simple blocks stay in them (see `Quantised`): less memory, and no training.

    Raises CheckpointError for a folder that is incomplete, of an unknown family, or whose tensors do not fit it.
    """
    place = Path(path)
    with _named(place):
        if _says_itself(place):
            file = weights.read(place, legacy=legacy, blocks=blocks)
            family, config, stored = _whole_file(file)
            metadata = file.metadata
        else:
            family, config = _described(place)
            stored, metadata = weights.read(place, legacy=legacy, blocks=blocks), {}
        _shape(family, config)
        model = fill(family, config, stored, dtype)
    generating = _read_json(place / _GENERATION) if (place / _GENERATION).is_file() else {}
    return Published(family, config, model, generating, metadata)


def read_spec(path: str | Path) -> spec.Spec:
    """The spec of a published model, without its weights; CheckpointError as for `read`."""
    place = Path(path)
    with _named(place):
        family, config = _whole_file(weights.read(place))[:2] if _says_itself(place) else _described(place)
        return _shape(family, config)


def _shape(family: Family, config: Config) -> spec.Spec:
    try:
        return family.spec(config)
    except (TypeError, AttributeError) as error:
        raise CheckpointError(
            f"config.json has a value of a wrong kind for the {family.name} family ({error}); download it again"
        ) from error


@contextmanager
def _named(place: Path) -> Iterator[None]:
    """Put the place into the message of every error, and say of a configuration what it lacks."""
    try:
        yield
    except CheckpointError as error:
        if str(place) in str(error):
            raise
        raise CheckpointError(f"{place}: {error}") from error
    except KeyError as error:
        raise CheckpointError(
            f"{place} does not say {error}, which a model of its kind needs; expected a whole config.json: "
            "download it again"
        ) from error


def _described(place: Path) -> tuple[Family, Config]:
    """The family of a folder's model, and its configuration with what the family finds in the files beside it."""
    config = read_config(place)
    family = family_of(config)
    for more in family.beside:
        config |= more(place, config)
    return family, config


def _says_itself(place: Path) -> bool:
    """Whether a file says what model it holds: one by itself, or beside a config.json that leaves it to the file."""
    return place.is_file() or (place / "model.bin").is_file() and "model_type" not in read_config(place)


def _whole_file(stored: weights.Weights) -> tuple[Family, Config, Mapping[str, Tensor]]:
    """The family of the model in a file, its configuration, and its tensors under the family's names."""
    for kind in FILES:
        if (found := kind(stored)) is not None:
            config, tensors = found
            return family_of(config), config, tensors
    raise CheckpointError(
        f"{stored.path} does not say what model its {len(stored)} tensors are of; expected a folder with config.json "
        "beside the weights: give the folder, or download what is missing"
    )


def write(published: Published, folder: str | Path) -> None:
    """Write config.json and model.safetensors as the model's family has them."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    tensors = drain(published.family, published.config, published.model)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    (place / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone
    config = beside.write(place, _as_kept(published.config, tensors))
    (place / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    if published.generating:
        (place / _GENERATION).write_text(json.dumps(dict(published.generating), indent=2), encoding="utf-8")


def _as_kept(config: Config, tensors: Mapping[str, Tensor]) -> Config:
    """The configuration, with the type that the parameters are in now if it says another (or nothing: float32)."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    said = config.get("dtype") or config.get("torch_dtype") or "float32"
    if len(kinds) != 1 or kinds == {said}:
        return config
    return {**{name: value for name, value in config.items() if name != "torch_dtype"}, "dtype": kinds.pop()}


def read_config(place: Path) -> dict[str, Any]:
    """Read config.json of a folder; CheckpointError if it is missing, damaged or no object."""
    return _read_json(place / "config.json")


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
        raise CheckpointError(f"{path} holds no JSON object; download it again")
    return content
