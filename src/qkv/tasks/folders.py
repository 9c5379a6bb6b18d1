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
from qkv.tasks.kinds import TASKS, Task
from qkv.training import checkpoint

_TOKENIZERS = ("source.tokenizer.json", "target.tokenizer.json")


@dataclass(frozen=True)
class Opened:
    """What every model folder holds: the model, its task, and its card."""

    model: SequenceModel
    task: Task
    card: dict[str, Any]


def write(
    place: Path,
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
        for name, tensor in _unique(model).items()
    }
    shape = spec.to_json(model.spec)
    with ExitStack() as every:  # files are renamed into place once all of them are written

        def part(name: str) -> Path:
            return every.enter_context(checkpoint.replacing(place / name))

        checkpoint.write(part("model.safetensors"), tensors, {"format": 1, "spec": shape})
        part("spec.json").write_text(shape, encoding="utf-8")
        part("card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")
        for name, save in files.items():
            save(part(name))
    for name in set(_TOKENIZERS) - set(files):
        (place / name).unlink(missing_ok=True)


def read(place: Path) -> Opened:
    """Read what every model folder holds. Raises CheckpointError or SpecError for one that is incomplete or altered."""
    require(place, "spec.json", "model.safetensors", "card.json")
    card = read_json(place / "card.json")
    task = TASKS.get(str(card.get("task")))
    if task is None:
        raise CheckpointError(f"{place}/card.json: task={card.get('task')!r}; expected one of {', '.join(TASKS)}")
    tensors, state = checkpoint.read(place / "model.safetensors")
    try:
        shape = spec.from_json(_read_text(place / "spec.json"))
    except SpecError as error:
        raise SpecError(f"{place / 'spec.json'}: {error}; copy the model folder again") from error
    if "spec" in state and spec.from_json(str(state["spec"])) != shape:
        raise CheckpointError(
            f"{place / 'spec.json'} is not the spec the model was saved with (model.safetensors knows it); "
            "take both files from the same run"
        )
    model = _empty(shape)
    _fill(model, tensors, place / "model.safetensors")
    return Opened(model.eval(), task, card)


def require(place: Path, *names: str) -> None:
    """Raise CheckpointError if a model folder lacks one of these files."""
    missing = [name for name in names if not (place / name).is_file()]
    if missing:
        running = "model.safetensors" in missing and (place / "recipe.yaml").is_file()
        raise CheckpointError(
            f"{place} is no whole model folder, {', '.join(missing)} is missing; "
            + ("its training has not ended: let it, or resume it" if running else "copy the folder again")
        )


def strange_tokenizer(place: Path) -> VocabularyError:
    """The error of a tokenizer that was exchanged."""
    return VocabularyError(
        f"a tokenizer in {place} is not the one the model learned with (card.json knows its checksum); "
        "take the tokenizers from the model's own folder"
    )


def _unique(model: SequenceModel) -> dict[str, Tensor]:
    """The parameters by name, each tied one once, and what norms over batches remember."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _empty(choice: spec.Spec) -> SequenceModel:
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten, and must not move the user's numbers
        return build(choice)


@torch.no_grad()
def _fill(model: SequenceModel, tensors: dict[str, Tensor], path: Path) -> None:
    places = _unique(model)
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
