"""One way to open a model, whoever made it."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from qkv import spec
from qkv.errors import CheckpointError
from qkv.pretrained import hub, int8
from qkv.tasks import folders
from qkv.tasks.agent import Agent
from qkv.tasks.matching import Matcher
from qkv.tasks.opening import open_published
from qkv.tasks.published import Predictor
from qkv.tasks.runner import Runner

SHIPPED = ("pronounce", "translate")
"""The models that come with the package, by name."""

_ALONE = (".gguf", ".onnx", ".npz", ".bin", ".safetensors")
"""How files end that can hold a whole model."""

Opened: TypeAlias = Runner | Predictor | Matcher | Agent
"""A model that answers lines, whatever it reads."""

Numbers = Literal["blocks", "float32", "bfloat16", "int8", "stored"]
"""How parameters are kept: in one of two floating types (blocks: float32, but the blocks of GGUF stay), matrices in one
byte a number, or as they are stored."""


def load(name: str | Path, *, numbers: Numbers = "float32", legacy: bool = False) -> Opened:
    """Open a model: the folder of a run, one that comes with the package (`pronounce`), a published checkpoint (a
    folder with config.json, or one file such as .gguf), or one on the Hugging Face Hub by its name.

    numbers: how parameters are kept; of models trained here in floats or int8. legacy: whether files of torch.save,
    which are pickles, may be opened. The network is used for names on the hub alone.
    Raises CheckpointError, SpecError or VocabularyError for files that are missing, incomplete, altered or of an
    unknown kind; DownloadError for a name that cannot be fetched.
    """
    place = found(name)
    if place.is_file() or ((place / "config.json").is_file() and not (place / "spec.json").is_file()):
        dtype = None if numbers in ("int8", "stored") else torch.bfloat16 if numbers == "bfloat16" else torch.float32
        opened = open_published(place, dtype, legacy=legacy, blocks=numbers == "blocks")
    else:
        opened = _trained(place, numbers, legacy)
    if numbers == "int8":
        int8.quantise(opened.model)
        opened.model.float()  # what is no matrix
    return opened


def _trained(place: Path, numbers: Numbers, legacy: bool) -> Opened:
    if not any((place / known).is_file() for known in ("spec.json", "recipe.yaml", "card.json")):
        files = [str(path) for path in sorted(place.iterdir()) if path.suffix in _ALONE] if place.is_dir() else []
        raise CheckpointError(
            f"{place} is no whole model folder: it has neither spec.json, as runs have, nor config.json, as published "
            "checkpoints have; "
            + (f"give the file: {' or '.join(files)}" if files else "copy or download all of its files")
        )
    if numbers in ("blocks", "stored") or legacy:
        raise CheckpointError(
            f"{place} was given numbers={numbers!r}, legacy={legacy}, which are for published checkpoints; expected "
            "float32, bfloat16 or int8 for a model that was trained here"
        )
    opened = load_folder(place)
    if numbers == "bfloat16":
        opened.model.bfloat16()
    return opened


def found(name: str | Path) -> Path:
    """The folder or file of a model: a path, one that comes with the package, or what the hub has under a name.

    Raises CheckpointError and DownloadError as `load`.
    """
    place = Path(name)
    if not place.exists() and str(name) in SHIPPED:
        place = Path(str(resources.files("qkv") / "shipped" / str(name)))
    if not place.exists():
        if not hub.is_name(str(name)) or place.is_absolute():
            near = difflib.get_close_matches(str(name), SHIPPED, n=1)
            raise CheckpointError(
                f"there is no model folder {str(name)!r}; expected the folder of a finished run, a published "
                f"checkpoint, a name on the hub, or a model that comes with the package: {', '.join(SHIPPED)}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
        place = hub.fetch(str(name))
    return place


def load_folder(place: Path) -> Opened:
    """Open the folder of a finished run.

    Raises CheckpointError, SpecError or VocabularyError for a folder that is incomplete or altered.
    """
    opened = folders.read(place)
    shape = opened.model.spec
    if isinstance(shape, spec.Towers):
        return Matcher.of_folder(place, opened)
    if isinstance(shape, spec.Transformer) and isinstance(shape.answers, spec.Actions):
        return Agent.of_folder(place, opened)
    if isinstance(shape, spec.Transformer) and shape.decoder is None:
        return Predictor.of_folder(place, opened)
    return Runner.of_folder(place, opened)
