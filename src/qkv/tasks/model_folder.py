"""Model folders: a model with everything that it needs to answer, written completely or not at all.

spec.json                the model's spec
model.safetensors        its parameters, with a checksum over them
card.json                the task, the decoding or the processor, and the `Card`: scores, training, description
source.tokenizer.json    the tokenizer of the source (absent from a model that reads no text)
target.tokenizer.json    the tokenizer of the answers (absent if source and target share one)
recipe.yaml              the recipe of the training run (absent from a model that was not trained here)
metrics.jsonl            the metrics of the training run (likewise)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from qkv import config, spec
from qkv.errors import CheckpointError, ConfigError, SpecError, VocabularyError
from qkv.files import atomic_write, parse_json
from qkv.models import SequenceModel, build
from qkv.tasks.registry import TASKS, Task
from qkv.text import Tokenizer
from qkv.training import checkpoints

_TOKENIZER_FILES = ("source.tokenizer.json", "target.tokenizer.json")


T = TypeVar("T")


@dataclass(frozen=True)
class TrainingSummary:
    """How a model was trained: for how long, and which of its weights were kept."""

    steps: int
    minutes: float
    weights: str
    parameters: int
    peak_memory_mb: int | None = None


@dataclass(frozen=True)
class Card:
    """What card.json says about a model, beyond what its class needs to run it.

    description: what the model is for. scores: by name, as measured after training.
    max_source_length: how many tokens of a source the model reads, if the training sources were truncated.
    prefixes: what the training sources began with, such as <2de>; "" if some began with nothing special.
    context: how many tokens the training windows of a language model had.
    """

    description: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    training: TrainingSummary | None = None
    max_source_length: int | None = None
    prefixes: tuple[str, ...] = ()
    context: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON without unknown values."""
        values = {
            "description": self.description,
            "scores": dict(self.scores),
            "training": None if self.training is None else config.to_dict(self.training),
            "max_source_length": self.max_source_length,
            "prefixes": list(self.prefixes),
            "context": self.context,
        }
        return {name: value for name, value in values.items() if value or value == 0}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source_name: str) -> Card:
        """Read a card. Raises ConfigError, with the name of the file, for a value of another type."""
        scores = values.get("scores", {})
        if not isinstance(scores, dict) or not all(isinstance(one, int | float) for one in scores.values()):
            raise ConfigError([f"{source_name}: scores: given {scores!r:.60}, expected a number for each name"])
        rest = config.from_dict(_CardFields, {key: one for key, one in values.items() if key != "scores"}, source_name)
        return cls(scores=scores, **{one.name: getattr(rest, one.name) for one in fields(rest)})


@dataclass(frozen=True)
class _CardFields:
    """The fields of a card whose types a recipe can have too."""

    description: str = ""
    training: TrainingSummary | None = None
    max_source_length: int | None = None
    prefixes: tuple[str, ...] = ()
    context: int | None = None


@dataclass(frozen=True)
class LoadedFolder:
    """The common content of model folders: the model, its task, its card, and the settings of its class."""

    folder: Path
    model: SequenceModel
    task: Task
    card: Card
    settings: Mapping[str, Any]
    tokenizer_digests: object = None

    def read_settings(self, cls: type[T]) -> T:
        """Read the settings as the dataclass `cls`. Raises ConfigError for unknown, missing and mistyped ones."""
        return config.from_dict(cls, self.settings, f"{self.folder}/card.json")

    def check_tokenizers(self, **tokenizers: Tokenizer) -> None:
        """Raise VocabularyError if the tokenizers are not those that the model was trained with."""
        if {name: tokenizer.digest for name, tokenizer in tokenizers.items()} != self.tokenizer_digests:
            raise VocabularyError(
                f"a tokenizer in {self.folder} is not the one that the model was trained with: its checksum differs "
                "from that in card.json; take the tokenizers from the model's own folder"
            )


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
            return every.enter_context(atomic_write(folder / name))

        checkpoints.save_checkpoint(part("model.safetensors"), tensors, {"format": 1, "spec": shape})
        part("spec.json").write_text(shape, encoding="utf-8")
        part("card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")
        for name, save in files.items():
            save(part(name))
    for name in set(_TOKENIZER_FILES) - set(files):
        (folder / name).unlink(missing_ok=True)


def read_model_folder(folder: Path) -> LoadedFolder:
    """Read the common content of a model folder. Raises CheckpointError or SpecError if it is incomplete or altered."""
    require_files(folder, "spec.json", "model.safetensors", "card.json")
    card = read_json(folder / "card.json")
    task = TASKS.get(str(card.get("task"))[:100])
    if task is None:
        raise CheckpointError(f"{folder}/card.json: task={card.get('task')!r:.60}; expected one of {', '.join(TASKS)}")
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
    known = {one.name for one in fields(Card)}
    about = Card.from_json({name: card.pop(name) for name in known & set(card)}, f"{folder}/card.json")
    digests = card.pop("tokenizers", None)
    del card["task"]
    return LoadedFolder(folder, model.eval(), task, about, card, digests)


def require_files(folder: Path, *names: str) -> None:
    """Raise CheckpointError if a model folder lacks one of these files."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        running = "model.safetensors" in missing and (folder / "recipe.yaml").is_file()
        raise CheckpointError(
            f"{folder} is not a complete model folder: {', '.join(missing)} is missing; "
            + ("its training has not ended: wait for it, or resume it" if running else "copy the folder again")
        )


def _collect_tensors(model: SequenceModel) -> dict[str, Tensor]:
    """Collect the parameters by name, each tied one once, and the statistics of batch norms."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _build_uninitialized(model_spec: spec.Spec) -> SequenceModel:
    with torch.random.fork_rng(devices=[]):  # the user's random numbers must not change
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
    """Read a JSON object. Raises CheckpointError for anything else."""
    try:
        value = parse_json(_read_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or altered: {error}; copy the model folder again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not contain a JSON object; copy the model folder again")
    return value
