"""Published checkpoints, opened as models of this package and written back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qkv import spec
from qkv.errors import CheckpointError
from qkv.models import SequenceModel
from qkv.pretrained import beside, weights
from qkv.pretrained.families import family_of
from qkv.pretrained.family import Config, Family, drain, fill
from qkv.pretrained.generation import Generation

_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Published:
    """A published model: its family, its own configuration and the model in our modules.

    generation: what its answers have to begin and end with. generating: its generation_config.json, if it has one.
    """

    family: Family
    config: Config
    model: SequenceModel
    generating: Config = field(default_factory=dict)

    @property
    def generation(self) -> Generation:
        """The rules of its answers. Raises CheckpointError for rules that are none."""
        shape = self.model.spec
        reads_source = not isinstance(shape, spec.Transformer) or shape.encoder is not None
        return Generation.of(self.generating or self.config, reads_source=reads_source)


def read(path: str | Path, *, dtype: torch.dtype | None = torch.float32, legacy: bool = False) -> Published:
    """Open a folder with config.json and weights; parameters in `dtype`, or as they are stored if None.

    Raises CheckpointError for a folder that is incomplete, of an unknown family, or whose tensors do not fit it.
    """
    place = Path(path)
    family, config = _described(place)
    stored = weights.read(place, legacy=legacy)
    try:
        model = fill(family, config, stored, dtype)
    except KeyError as error:
        raise CheckpointError(
            f"{place / 'config.json'} does not say {error}, which the {family.name} family needs; "
            "expected a whole configuration: download it again"
        ) from error
    generating = _read_json(place / _GENERATION) if (place / _GENERATION).is_file() else {}
    return Published(family, config, model, generating)


def read_spec(path: str | Path) -> spec.Spec:
    """The spec of a published model, without its weights; CheckpointError as for `read`."""
    family, config = _described(Path(path))
    return family.spec(config)


def _described(place: Path) -> tuple[Family, Config]:
    """The family of a folder's model, and its configuration with what the family finds in the files beside it."""
    config = read_config(place)
    family = family_of(config)
    for more in family.beside:
        config |= more(place, config)
    return family, config


def write(published: Published, folder: str | Path) -> None:
    """Write config.json and model.safetensors as the model's family has them."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    tensors = drain(published.family, published.config, published.model)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    config = beside.write(place, published.config)
    (place / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    if published.generating:
        (place / _GENERATION).write_text(json.dumps(dict(published.generating), indent=2), encoding="utf-8")


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
