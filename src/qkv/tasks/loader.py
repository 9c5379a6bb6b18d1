"""Load any model: a run's folder, a shipped model, a published checkpoint, or one from the Hugging Face Hub."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Literal

import torch

from qkv import spec
from qkv.errors import CheckpointError
from qkv.pretrained import hub, int8
from qkv.tasks import model_folder
from qkv.tasks.base import TaskModel
from qkv.tasks.encoder_model import EncoderModel
from qkv.tasks.image_text.model import ImageTextModel
from qkv.tasks.pretrained_loader import load_pretrained
from qkv.tasks.reinforcement_learning.model import DecisionTransformerAgent
from qkv.tasks.text_generator import TextGenerator

SHIPPED_MODELS = ("pronunciation", "translation")
"""The models that come with the package, by name."""

_SINGLE_FILE_SUFFIXES = (".gguf", ".onnx", ".npz", ".bin", ".safetensors")
"""Suffixes of files that can contain a whole model."""

Dtype = Literal["blocks", "float32", "bfloat16", "int8", "stored"]
"""The storage of parameters: one of two floating-point types (blocks: float32, except GGUF's blocks, which stay
quantised), int8 matrices, or as they are stored.
"""


def load(name: str | Path, *, dtype: Dtype = "float32", allow_pickle: bool = False) -> TaskModel:
    """Load a model: the folder of a run, one that comes with the package (`pronunciation`), a published checkpoint (a
    folder with config.json, or one file such as .gguf), or one on the Hugging Face Hub by its name.

    dtype: the storage of parameters; for models trained here a floating-point type or int8. allow_pickle: whether to
    open
    files of torch.save, which are pickles. The network is used only for names on the hub.
    Raises CheckpointError, SpecError or VocabularyError for files that are missing, incomplete, altered or of an
    unknown kind; DownloadError for a name that cannot be downloaded.
    """
    place = find_model_path(name)
    if place.is_file() or ((place / "config.json").is_file() and not (place / "spec.json").is_file()):
        torch_dtype = None if dtype in ("int8", "stored") else torch.bfloat16 if dtype == "bfloat16" else torch.float32
        opened: TaskModel = load_pretrained(place, torch_dtype, allow_pickle=allow_pickle, blocks=dtype == "blocks")
    else:
        opened = _load_trained(place, dtype, allow_pickle)
    if dtype == "int8":
        int8.quantize(opened.module)
        opened.module.float()  # whatever is not a matrix
    return opened


def _load_trained(folder: Path, dtype: Dtype, allow_pickle: bool) -> TaskModel:
    if not any((folder / known).is_file() for known in ("spec.json", "recipe.yaml", "card.json")):
        files = (
            [str(path) for path in sorted(folder.iterdir()) if path.suffix in _SINGLE_FILE_SUFFIXES]
            if folder.is_dir()
            else []
        )
        raise CheckpointError(
            f"{folder} is not a complete model folder: it has neither spec.json, as runs have, nor config.json, as "
            "published checkpoints have; "
            + (f"give the file: {' or '.join(files)}" if files else "copy or download all of its files")
        )
    if dtype in ("blocks", "stored") or allow_pickle:
        raise CheckpointError(
            f"{folder} was given dtype={dtype!r}, allow_pickle={allow_pickle}, which are for published checkpoints; "
            f"expected "
            "float32, bfloat16 or int8 for a model that was trained here"
        )
    opened = load_model_folder(folder)
    if dtype == "bfloat16":
        opened.module.bfloat16()
    return opened


def find_model_path(name: str | Path) -> Path:
    """Return the folder or file of a model: a path, one that comes with the package, or a download from the hub.

    Raises CheckpointError and DownloadError as `load`.
    """
    place = Path(name)
    if not place.exists() and str(name) in SHIPPED_MODELS:
        place = Path(str(resources.files("qkv") / "shipped" / str(name)))
    if not place.exists():
        if not hub.is_repo_id(str(name)) or place.is_absolute():
            near = difflib.get_close_matches(str(name), SHIPPED_MODELS, n=1)
            raise CheckpointError(
                f"there is no model folder {str(name)!r}; expected the folder of a finished run, a published "
                f"checkpoint, a name on the hub, or a model that comes with the package: {', '.join(SHIPPED_MODELS)}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
        place = hub.download(str(name))
    return place


def load_model_folder(folder: Path) -> TaskModel:
    """Open the folder of a finished run.

    Raises CheckpointError, SpecError or VocabularyError for a folder that is incomplete or altered.
    """
    opened = model_folder.read_model_folder(folder)
    shape = opened.model.spec
    if isinstance(shape, spec.DualEncoder):
        return ImageTextModel.from_folder(folder, opened)
    if isinstance(shape, spec.Transformer) and isinstance(shape.head, spec.Actions):
        return DecisionTransformerAgent.from_folder(folder, opened)
    if isinstance(shape, spec.Transformer) and shape.decoder is None:
        return EncoderModel.from_folder(folder, opened)
    return TextGenerator.from_folder(folder, opened)
