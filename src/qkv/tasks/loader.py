"""Load any model: a run's folder, a shipped model, a published checkpoint, or one from the Hugging Face Hub."""

from __future__ import annotations

import difflib
import math
import sys
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from torch import nn

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

_HUB_PREFIX = "hf:"

_SINGLE_FILE_SUFFIXES = (".gguf", ".onnx", ".npz", ".bin", ".safetensors")
"""Suffixes of files that can contain a whole model."""

Dtype = Literal["blocks", "float32", "bfloat16", "int8", "stored"]
"""The storage of parameters: one of two floating-point types (blocks: float32, except GGUF's blocks, which stay
quantised), int8 matrices, or as they are stored.
"""


def load(name: str | Path, *, dtype: Dtype = "float32", allow_pickle: bool = False) -> TaskModel:
    """Load a model: the folder of a run, one that comes with the package (`pronunciation`), a published checkpoint (a
    folder with config.json, or one file such as .gguf), or one on the Hugging Face Hub, `hf:OWNER/NAME`.

    dtype: the storage of parameters; for models trained here a floating-point type or int8. allow_pickle: whether to
    open files of torch.save, which are pickles. The network is used only for names on the hub; OWNER/NAME alone will do
    where nothing here has that name, and is announced on standard error.
    Raises CheckpointError, SpecError or VocabularyError for files that are missing, incomplete, altered, of an unknown
    kind or with numbers that are not finite; DownloadError for a name that cannot be downloaded.
    """
    place = find_model_path(name)
    if place.is_file() or ((place / "config.json").is_file() and not (place / "spec.json").is_file()):
        torch_dtype = None if dtype in ("int8", "stored") else torch.bfloat16 if dtype == "bfloat16" else torch.float32
        opened: TaskModel = load_pretrained(place, torch_dtype, allow_pickle=allow_pickle, blocks=dtype == "blocks")
    else:
        opened = _load_trained(place, dtype, allow_pickle)
    check_finite(opened.module, place)
    if dtype == "int8":
        int8.quantize(opened.module)
        opened.module.float()  # whatever is not a matrix
    return opened


def check_finite(module: nn.Module, place: Path) -> None:
    """Raise CheckpointError if a parameter of a model holds a number that is not finite.

    Such a model would answer nothing, or nonsense: the fused attention kernel of a CPU turns NaN into 0.
    Matrices that stay in the blocks of a GGUF file are not checked.
    """
    for name, parameter in module.named_parameters():
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point() or not parameter.numel():
            continue
        least, most = (float(one) for one in parameter.detach().aminmax())
        if not (math.isfinite(least) and math.isfinite(most)):
            raise CheckpointError(
                f"{place}: {name} holds numbers that are not finite; expected a finished model: copy or download it "
                "again, or train it again with a lower learning rate"
            )


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
    if str(name).startswith(_HUB_PREFIX):
        return hub.download(str(name).removeprefix(_HUB_PREFIX))
    if not place.exists():
        # owner/name may be on the hub, but not where a folder is called owner, or where runs are kept
        is_local = place.is_absolute() or place.parts[0] == "runs" or (len(place.parts) > 1 and place.parent.is_dir())
        if is_local or not hub.is_repo_id(str(name)):
            near = difflib.get_close_matches(str(name), SHIPPED_MODELS, n=1)
            raise CheckpointError(
                f"there is no model folder {str(name)!r}; expected the folder of a finished run, a published "
                f"checkpoint, hf:OWNER/NAME on the hub, or a model that comes with the package: "
                f"{', '.join(SHIPPED_MODELS)}" + (f"; did you mean {near[0]}?" if near else "")
            )
        print(f"{name} is not a file here; asking the Hugging Face Hub for it.", file=sys.stderr)
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
