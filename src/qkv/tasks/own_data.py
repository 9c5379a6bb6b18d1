"""A user's own data in place of a recipe's: files named on the command line or in Python, told apart by endings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkv.errors import DataError
from qkv.tasks.registry import TRAINABLE_TASKS

Paths = Sequence[str | Path]

_REPLACED = ("valid", "test", "exclude", "sampling_weights")
"""What a recipe says about its own data and does not hold for others."""


@dataclass(frozen=True)
class OwnData:
    """Files to train on, to validate on and to keep out of training, and a model to start from."""

    train: Paths = ()
    valid: Paths = ()
    test: Paths = ()
    init_from: str | Path | None = None


def replace_data(tree: Mapping[str, Any], own: OwnData) -> dict[str, Any]:
    """Return the tree of a recipe with other data and, where `init_from` is given, another model to start from.

    With training data of its own, the recipe's validation, test and excluded data are dropped: without `valid`, a part
    of the training data is held out. Raises DataError for files whose endings say nothing.
    """
    changed = {**tree, "data": dict(tree.get("data") or {})}
    data, task = changed["data"], str(tree.get("task"))
    if own.train:
        for name in _REPLACED:
            data.pop(name, None)
        data["train"] = [find_source(task, own.train)]
    if own.valid:
        data["valid"] = find_source(task, own.valid)
    if own.test:
        data["test"] = [find_source(task, own.test)]
    init_from = own.init_from or changed.pop("init_from", None)
    if init_from is not None:
        changed["model"] = {"kind": "pretrained", "path": str(init_from)}
        changed.pop("tokenizer", None)
    return changed


def find_source(task: str, paths: Paths) -> dict[str, Any]:
    """Return the data source that some files are for a task, as a recipe writes it.

    Raises DataError for a file that does not exist, and for files that do not suit the task.

    Example: `find_source("translation", ["train.en", "train.de"])`
    """
    files = [Path(path) for path in paths]
    for path in files:
        if not path.exists():
            raise DataError(f"{path} does not exist; expected a file or folder to train on: check the path")
    own = TRAINABLE_TASKS.get(task)
    source: dict[str, Any] | None = None if own is None else own.config_module.find_source(files)
    if own is None or source is None:
        expected = "a recipe of another task" if own is None else own.config_module.OWN_DATA
        raise DataError(f"{', '.join(map(str, files))} cannot be the data of {task}; expected {expected}")
    return source
