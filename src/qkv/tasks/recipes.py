"""Reading of recipes: the user's own file, or one that comes with the package by its name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from qkv import config
from qkv.errors import ConfigError
from qkv.tasks.own_data import OwnData, replace_data
from qkv.tasks.registry import TRAINABLE_TASKS, RecipeConfig

_OF_THE_MODEL = ("model", "tokenizer")


def list_recipes() -> dict[str, Path]:
    """List the recipes that come with the package."""
    folder = Path(str(resources.files("qkv") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(name: str | Path, overrides: Iterable[str] = (), own: OwnData | None = None) -> RecipeConfig:
    """Read a recipe by its path or name, with other data and with assignments such as `training.max_minutes=3` applied.

    Raises ConfigError with every problem of the file and of the assignments, each with the nearest valid name. Only the
    problems of the file itself name the file. Also raises ConfigError for settings of the model or the tokenizer that
    are given with a model to start from, which has its own.
    """
    named = list_recipes()
    path = Path(name)
    if not path.exists() or (path.is_dir() and str(name) in named):  # a folder may have the name of a recipe
        if str(name) not in named:
            near = difflib.get_close_matches(str(name), named, n=1)
            advice = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                [f"{name}: no such file, and the recipes that come with the package are {', '.join(named)}{advice}"]
            )
        path = named[str(name)]
    assignments, own = list(overrides), own or OwnData()
    written = config.load_yaml(path)
    _check_init_from(path, written, assignments, own)
    tree = replace_data(config.apply_overrides(replace_data(written, own), assignments), OwnData())
    try:
        return _parse_recipe(tree, path)
    except ConfigError as error:
        in_file = _find_problems(replace_data(written, OwnData()), path)
        raise ConfigError(
            [problem if problem in in_file else problem.removeprefix(f"{path}: ") for problem in error.problems]
        ) from error


def _check_init_from(path: Path, written: Mapping[str, Any], assignments: Sequence[str], own: OwnData) -> None:
    """Raise ConfigError if the model to start from comes with settings that it would silently replace."""
    keys = {assignment: assignment.partition("=")[0].split(".")[0] for assignment in assignments}
    in_file = written.get("init_from") is not None
    if not (in_file or own.init_from is not None or "init_from" in keys.values()):
        return
    given = [assignment for assignment, key in keys.items() if key in _OF_THE_MODEL]
    given += [f"{path}: {name}" for name in _OF_THE_MODEL if in_file and name in written]
    if given:
        raise ConfigError(
            [
                f"{one}: given together with a model to start from (--from, init_from), which has its own model and "
                "tokenizer; expected one of the two: take this setting out, or train a new model"
                for one in given
            ]
        )


def _parse_recipe(tree: Mapping[str, Any], path: Path) -> RecipeConfig:
    task = str(tree.get("task"))
    near = difflib.get_close_matches(task, TRAINABLE_TASKS, n=1)
    kind = TRAINABLE_TASKS[near[0] if near else "translation"].config
    try:
        recipe: RecipeConfig = config.from_dict(kind, tree, str(path))
    except ConfigError as error:
        if task in TRAINABLE_TASKS:
            raise
        raise ConfigError([*error.problems, f"{path}: the tasks are {', '.join(TRAINABLE_TASKS)}"]) from error
    return recipe


def _find_problems(tree: Mapping[str, Any], path: Path) -> Sequence[str]:
    try:
        _parse_recipe(tree, path)
    except ConfigError as error:
        return error.problems
    return ()
