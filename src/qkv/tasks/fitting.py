"""From a recipe and examples to a trained model: what all tasks do alike."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qkv import config
from qkv.errors import ConfigError, QkvError, TrainingError
from qkv.files import atomic_write, lock_folder, remove_leftovers
from qkv.tasks.encoder_model import EncoderModel
from qkv.tasks.model_folder import TrainingSummary
from qkv.tasks.own_data import OwnData, Paths
from qkv.tasks.recipes import read_recipe
from qkv.tasks.registry import TRAINABLE_TASKS, RecipeConfig
from qkv.tasks.reinforcement_learning.model import DecisionTransformerAgent
from qkv.tasks.text_generator import TextGenerator
from qkv.tasks.validation import check_metric
from qkv.training import Trainer, TrainResult, check_run_folder
from qkv.training.reporters import Reporter, make_reporter
from qkv.training.trainer import CHECKPOINT_NAME

_RECIPE_FILE = "recipe.yaml"
_CACHE_FOLDER = "tokens"  # the training data as numbers, while the run lasts


@dataclass(frozen=True)
class TrainedModel:
    """A finished run: the model that answers, and how it went."""

    model: TextGenerator | EncoderModel | DecisionTransformerAgent
    result: TrainResult


def fit(
    recipe: RecipeConfig,
    data: Any,
    folder: str | Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    device: str | None = None,
) -> TrainedModel:
    """Train as the recipe says on the examples that `load_data` gave for it; leave a model folder that `load` opens.

    The same recipe, examples and machine give the same bytes, in one run or in several with `resume`.
    """
    place = Path(folder)
    check_run_folder(place, resume)
    _check_same_recipe(recipe, place)
    with lock_folder(place):
        for written in (place, place / "weights"):
            remove_leftovers(written)
        return _fit_locked(recipe, data, place, resume, reporter, device)


def _fit_locked(
    recipe: RecipeConfig, data: Any, place: Path, resume: bool, reporter: Reporter | None, device: str | None
) -> TrainedModel:
    check_run_folder(place, resume)  # again: another run may have ended here since
    _check_same_recipe(recipe, place)
    reporter = reporter if reporter is not None else make_reporter()
    # without a checkpoint the recipe or the data may be others than those that the tokenizers there were made from
    goes_on = resume and (place / CHECKPOINT_NAME).is_file()
    task = TRAINABLE_TASKS[recipe.task]
    setup = task.build_training_setup(recipe, data, place, place / _CACHE_FOLDER, goes_on)
    check_metric(recipe.training.validation, setup.modes)
    for note in setup.notes:
        reporter.message(note)
    with atomic_write(place / _RECIPE_FILE) as part:
        part.write_text(config.dump_yaml(config.to_dict(recipe)), encoding="utf-8")
    model = setup.model.module
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trainer = Trainer(
        model,
        recipe.training,
        setup.sampler,
        setup.collate,
        place,
        validate=setup.validate,
        reporter=reporter,
        compute_loss=setup.compute_loss,
    )
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    precision = "bfloat16" if trainer.is_autocast_enabled else "float32"
    reporter.message(f"Training {count:,} parameters on {trainer.device} in {precision}; the run is in {place}.")
    try:
        result = trainer.train(resume=resume)
    except QkvError:
        shutil.rmtree(place / _CACHE_FOLDER, ignore_errors=True)
        raise
    card = replace(
        setup.model.card,
        scores={f"valid_{name}": value for name, value in result.metrics.items()},
        training=TrainingSummary(
            steps=result.step,
            minutes=round(result.seconds / 60, 1),
            weights=result.weights,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            peak_memory_mb=measure_peak_memory(),
        ),
    )
    runner = replace(setup.model, card=card)
    model.eval()
    runner.save(place)
    if result.stop_reason != "interrupted":
        shutil.rmtree(place / _CACHE_FOLDER, ignore_errors=True)
    return TrainedModel(runner, result)


def load_data(recipe: RecipeConfig) -> Any:
    """Read the data that a recipe trains on; its `notes` say what a user should know about it."""
    return TRAINABLE_TASKS[recipe.task].load_data(recipe)


def measure_peak_memory() -> int | None:
    """Return the peak memory of this process in MB; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


_CHANGEABLE_ON_RESUME = (
    *(f"training.{name}" for name in ("max_steps", "max_epochs", "max_minutes", "validation", "checkpointing")),
    *("decoding", "data.valid", "data.test"),
)
"""What the recipe of a resumed run may have otherwise: when it ends, what is judged and kept, how it answers."""


def _check_same_recipe(recipe: RecipeConfig, run_folder: Path) -> None:
    """Raise TrainingError if the folder's run was begun by another recipe, or holds a model that would be lost."""
    has_begun = (run_folder / _RECIPE_FILE).is_file() and (run_folder / CHECKPOINT_NAME).is_file()
    if not has_begun:
        if (run_folder / "model.safetensors").exists():
            raise TrainingError(
                f"{run_folder} already holds a model, and no run to resume. Choose another folder (--folder)."
            )
        return
    before, now = _flatten(config.load_yaml(run_folder / _RECIPE_FILE)), _flatten(config.to_dict(recipe))
    changed = [
        f"{name}={value} (given: {now[name]})"
        for name, value in before.items()
        if name in now and value != now[name] and not name.startswith(_CHANGEABLE_ON_RESUME)
    ]
    if changed:
        raise TrainingError(
            f"The run in {run_folder} was begun with {', '.join(changed)}. Expected the recipe it began with: "
            f"change that "
            "back, or begin a new run in another folder (--folder)."
        )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return options by their dotted paths; lists are not flattened."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def train(
    recipe: str | Path | RecipeConfig,
    overrides: Sequence[str] = (),
    folder: str | Path = "run",
    *,
    data: Paths = (),
    valid: Paths = (),
    resume: bool = False,
    reporter: Reporter | None = None,
    device: str | None = None,
) -> TrainedModel:
    """Train a model by a recipe (a task, a name, a path or the tree itself) and leave its folder.

    overrides: changes of the recipe, such as "training.max_minutes=3" or "init_from=gpt2". data, valid: files in place
    of the recipe's own data (see `qkv.tasks.own_data`). device: a GPU if there is one, unless given. Raises ConfigError
    if the first three are given together with a recipe that is a tree.

    Example: `qkv.train("translation", folder="runs/mine", data=["train.en", "train.de"])`
    """
    if isinstance(recipe, str | Path):
        tree = read_recipe(recipe, overrides, OwnData(data, valid))
    elif overrides or data or valid:
        raise ConfigError(
            [
                "overrides, data or valid were given together with a recipe object; expected them only with a "
                "name or a path: change the object itself (dataclasses.replace)"
            ]
        )
    else:
        tree = recipe
    reporter = reporter if reporter is not None else make_reporter()
    examples = load_data(tree)
    for note in examples.notes:
        reporter.message(note)
    return fit(tree, examples, folder, resume=resume, reporter=reporter, device=device)
