"""Reading of recipes: the user's own file, or one that comes with the package by its name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from qkv import config
from qkv.errors import ConfigError
from qkv.tasks.own_data import OwnData, replace_data
from qkv.tasks.registry import TRAINABLE_TASKS, RecipeConfig


def list_recipes() -> dict[str, Path]:
    """List the recipes that come with the package."""
    folder = Path(str(resources.files("qkv") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(name: str | Path, overrides: Iterable[str] = (), own: OwnData | None = None) -> RecipeConfig:
    """Read a recipe by its path or name, with other data and with assignments such as `training.max_minutes=3` applied.

    Raises ConfigError with every problem of the file and of the assignments, each with the nearest valid name.
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
    tree = replace_data(config.load_yaml(path), own or OwnData())
    tree = replace_data(config.apply_overrides(tree, overrides), OwnData())
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
