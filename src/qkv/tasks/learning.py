"""From a recipe and examples to a trained model: what all tasks do alike."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from qkv import config
from qkv.errors import QkvError, TrainingError
from qkv.tasks import acting, hearing, pairs, seeing, writing
from qkv.tasks.actor import ActRecipe
from qkv.tasks.agent import Agent
from qkv.tasks.lesson import Lesson
from qkv.tasks.published import Predictor
from qkv.tasks.recipe import AnyRecipe, HearRecipe, Recipe, SeeRecipe, WriteRecipe
from qkv.tasks.recipes import read_recipe
from qkv.tasks.runner import Runner
from qkv.training import Result, Trainer, checkpoint, claim
from qkv.training.progress import Display, display

_RECIPE = "recipe.yaml"
_TOKENS = "tokens"  # the training data as numbers, while the run lasts


class _Way(NamedTuple):
    """How the tasks of one kind of recipe come to what they learn from: read it, and make a lesson of it.

    lesson takes the recipe, the examples, the folder of the run, the folder for tokens and whether the run goes on.
    """

    gather: Callable[[Any], Any]
    lesson: Callable[[Any, Any, Path, Path, bool], Lesson]


_WAYS = {
    Recipe: _Way(pairs.gather, pairs.lesson),
    WriteRecipe: _Way(writing.gather, writing.lesson),
    SeeRecipe: _Way(seeing.gather, seeing.lesson),
    ActRecipe: _Way(acting.gather, acting.lesson),
    HearRecipe: _Way(hearing.gather, hearing.lesson),
}


@dataclass(frozen=True)
class Learned:
    """A finished run: the model that answers, and how it went."""

    runner: Runner | Predictor | Agent
    result: Result


def learn(
    recipe: AnyRecipe, examples: Any, folder: str | Path, *, resume: bool = False, show: Display | None = None
) -> Learned:
    """Train as the recipe says on the examples that `gather` gave for it; leave a model folder that `load` opens.

    The same recipe, examples and machine give the same bytes, in one run or in several with `resume`.
    """
    place = Path(folder)
    claim(place, resume)
    _same_run(recipe, place)
    show = show if show is not None else display()
    lesson = _WAYS[type(recipe)].lesson(recipe, examples, place, place / _TOKENS, resume)
    for note in lesson.notes:
        show.note(note)
    with checkpoint.replacing(place / _RECIPE) as part:
        part.write_text(config.dump_yaml(config.write(recipe)), encoding="utf-8")
    model = lesson.runner.model
    trainer = Trainer(
        model,
        recipe.training,
        lesson.sampler,
        lesson.collate,
        place,
        validate=lesson.validate,
        show=show,
        losses=lesson.losses,
    )
    try:
        result = trainer.run(resume=resume)
    except QkvError:
        shutil.rmtree(place / _TOKENS, ignore_errors=True)
        raise
    card = {
        **(lesson.runner.card or {}),
        "scores": {f"valid {name}": value for name, value in result.metrics.items()},
        "training": {
            "steps": result.step,
            "minutes": round(result.seconds / 60, 1),
            "weights": result.weights,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "peak memory in MB": peak_memory(),
        },
    }
    runner = replace(lesson.runner, card=card)
    model.eval()
    runner.save(place)
    if result.stopped != "interrupted":
        shutil.rmtree(place / _TOKENS, ignore_errors=True)
    return Learned(runner, result)


def gathered(recipe: AnyRecipe) -> Any:
    """What a recipe's task reads to learn from; its `notes` say what there is to say about it."""
    return _WAYS[type(recipe)].gather(recipe)


def peak_memory() -> int | None:
    """The most memory this process ever held, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


_MAY_CHANGE = (
    *(f"training.{name}" for name in ("steps", "epochs", "minutes", "validation", "saving")),
    *("decoding", "data.valid", "data.test"),
)
"""What the recipe of a resumed run may have otherwise: when it ends, what is judged and kept, how it answers."""


def _same_run(recipe: AnyRecipe, place: Path) -> None:
    """Raise TrainingError if the folder's run was begun by another recipe, or holds a model that would be lost."""
    begun = (place / _RECIPE).is_file() and (place / "checkpoint.safetensors").is_file()
    if not begun:
        if (place / "model.safetensors").exists():
            raise TrainingError(
                f"{place} already holds a model, and no run to resume. Choose another folder (--folder)."
            )
        return
    before, now = _flat(config.load_yaml(place / _RECIPE)), _flat(config.write(recipe))
    changed = [
        f"{name}={value} (given: {now[name]})"
        for name, value in before.items()
        if name in now and value != now[name] and not name.startswith(_MAY_CHANGE)
    ]
    if changed:
        raise TrainingError(
            f"The run in {place} was begun with {', '.join(changed)}. Expected the recipe it began with: change that "
            "back, or begin a new run in another folder (--folder)."
        )


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Options by their dotted paths; lists as they are."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


def train(
    recipe: str | Path | AnyRecipe,
    overrides: Sequence[str] = (),
    folder: str | Path = "run",
    *,
    resume: bool = False,
    show: Display | None = None,
) -> Learned:
    """Read a recipe (a name, a path or the tree itself), gather its data and train; see `learn`."""
    tree = read_recipe(recipe, overrides) if isinstance(recipe, str | Path) else recipe
    show = show if show is not None else display()
    examples = gathered(tree)
    for note in examples.notes:
        show.note(note)
    return learn(tree, examples, folder, resume=resume, show=show)
