"""Model folders: a model with all it needs to answer, whole or not there, which opens anywhere.

spec.json                the model's spec
model.safetensors        its parameters, with a checksum over them
card.json                the task, how it answers, the scores it was given; of images and sounds, their preparation
source.tokenizer.json    how lines are read, by a model that reads text
target.tokenizer.json    how answers are written (absent if source and target share one)
recipe.yaml              what it was made by (absent from a model that was not trained here)
metrics.jsonl            how its training went (likewise)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv import spec
from qkv.errors import CheckpointError, SpecError, VocabularyError
from qkv.models import SequenceModel, build
from qkv.tasks.registry import TASKS, Task
from qkv.training import checkpoints

_TOKENIZER_FILES = ("source.tokenizer.json", "target.tokenizer.json")


@dataclass(frozen=True)
class LoadedFolder:
    """What every model folder holds: the model, its task, and its card."""

    model: SequenceModel
    task: Task
    card: dict[str, Any]


def write_model_folder(
    folder: Path,
    model: SequenceModel,
    card: Mapping[str, Any],
    files: Mapping[str, Callable[[Path], None]],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model folder; `files` says for the name of each further file what writes it.

    Numbers are written in `dtype` if given. Raises StorageError if there is no room or no permission; a model that
    was there before then stays whole.
    """
    tensors = {
        name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        for name, tensor in _collect_tensors(model).items()
    }
    shape = spec.to_json(model.spec)
    with ExitStack() as every:  # files are renamed into place once all of them are written

        def part(name: str) -> Path:
            return every.enter_context(checkpoints.atomic_write(folder / name))

        checkpoints.save_checkpoint(part("model.safetensors"), tensors, {"format": 1, "spec": shape})
        part("spec.json").write_text(shape, encoding="utf-8")
        part("card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")
        for name, save in files.items():
            save(part(name))
    for name in set(_TOKENIZER_FILES) - set(files):
        (folder / name).unlink(missing_ok=True)


def read_model_folder(folder: Path) -> LoadedFolder:
    """Read what every model folder holds. Raises CheckpointError or SpecError for one that is incomplete or altered."""
    require_files(folder, "spec.json", "model.safetensors", "card.json")
    card = read_json(folder / "card.json")
    task = TASKS.get(str(card.get("task")))
    if task is None:
        raise CheckpointError(f"{folder}/card.json: task={card.get('task')!r}; expected one of {', '.join(TASKS)}")
    tensors, state = checkpoints.load_checkpoint(folder / "model.safetensors")
    try:
        shape = spec.from_json(_read_text(folder / "spec.json"))
    except SpecError as error:
        raise SpecError(f"{folder / 'spec.json'}: {error}; copy the model folder again") from error
    if "spec" in state and spec.from_json(str(state["spec"])) != shape:
        raise CheckpointError(
            f"{folder / 'spec.json'} is not the spec the model was saved with (model.safetensors knows it); "
            "take both files from the same run"
        )
    model = _build_uninitialized(shape)
    _copy_tensors(model, tensors, folder / "model.safetensors")
    return LoadedFolder(model.eval(), task, card)


def require_files(folder: Path, *names: str) -> None:
    """Raise CheckpointError if a model folder lacks one of these files."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        running = "model.safetensors" in missing and (folder / "recipe.yaml").is_file()
        raise CheckpointError(
            f"{folder} is no whole model folder, {', '.join(missing)} is missing; "
            + ("its training has not ended: let it, or resume it" if running else "copy the folder again")
        )


def make_tokenizer_mismatch_error(folder: Path) -> VocabularyError:
    """The error of a tokenizer that was exchanged."""
    return VocabularyError(
        f"a tokenizer in {folder} is not the one the model learned with (card.json knows its checksum); "
        "take the tokenizers from the model's own folder"
    )


def _collect_tensors(model: SequenceModel) -> dict[str, Tensor]:
    """The parameters by name, each tied one once, and what norms over batches remember."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _build_uninitialized(model_spec: spec.Spec) -> SequenceModel:
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten, and must not move the user's numbers
        return build(model_spec)


@torch.no_grad()
def _copy_tensors(model: SequenceModel, tensors: dict[str, Tensor], path: Path) -> None:
    places = _collect_tensors(model)
    if set(places) != set(tensors):
        unknown, missing = sorted(set(tensors) - set(places)), sorted(set(places) - set(tensors))
        raise CheckpointError(
            f"{path} does not fit spec.json: it lacks {missing[:3] or 'nothing'} and has {unknown[:3] or 'nothing'} "
            "beyond it; take both files from the same run"
        )
    for name, place in places.items():
        if place.shape != tensors[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)} and spec.json makes it {tuple(place.shape)}; "
                "take both files from the same run"
            )
        place.copy_(tensors[name])


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy the model folder again") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError if it is none."""
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is cut short or altered: {error}; copy the model folder again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; copy the model folder again")
    return value
