"""The registry: every trainable task is whole, and task packages know nothing of each other."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from qkv import tasks
from qkv.errors import ConfigError, DataError
from qkv.tasks.own_data import OwnData, find_source, replace_data
from qkv.tasks.registry import TRAINABLE_TASKS
from qkv.tasks.validation import check_metric
from qkv.training.config import ValidationConfig

FOLDER = Path(tasks.__file__).parent
PACKAGES = sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))


@pytest.mark.parametrize("name", TRAINABLE_TASKS)
def test_every_trainable_task_has_its_parts(name: str) -> None:
    task = TRAINABLE_TASKS[name]
    module = importlib.import_module(task.training)
    assert callable(module.load_data) and callable(module.build_training_setup)
    assert task.config_module.OWN_DATA and callable(task.config_module.find_source)
    recipe = tasks.read_recipe(name)
    assert recipe.task == name and isinstance(recipe, task.config)


@pytest.mark.parametrize("package", PACKAGES)
def test_task_packages_do_not_import_each_other(package: str) -> None:
    others = tuple(f"qkv.tasks.{other}" for other in PACKAGES if other != package)
    wrong = []
    for path in sorted((FOLDER / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.name}: {name}" for name in names if name.startswith(others)]
    assert not wrong


@pytest.mark.parametrize("name", TRAINABLE_TASKS)
def test_own_data_take_the_place_of_all_data_of_a_recipe(name: str, tmp_path: Path) -> None:
    """A run on one's own data is never judged by the recipe's own: a part of the training data is held out."""
    (tmp_path / "own.npz").write_bytes(b"")
    (tmp_path / "own.tsv").write_text("a\tb\n", encoding="utf-8")
    file = tmp_path / ("own.npz" if name in ("image-classification", "decision-transformer") else "own.tsv")
    tree = {"task": name, "data": {part: ["the recipe's"] for part in ("train", "valid", "test", "exclude")}}
    data = replace_data(tree, OwnData(train=[file]))["data"]
    assert data == {"train": [find_source(name, [file])]}


def test_files_that_are_no_data_of_a_task_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected two files of lines, or one \.tsv"):
        find_source("translation", [tmp_path])
    with pytest.raises(DataError, match="does not exist"):
        find_source("translation", [tmp_path / "none.tsv"])


def test_a_metric_is_one_of_the_task_and_optimized_in_its_direction() -> None:
    with pytest.raises(ConfigError, match="given 'bleu', expected one of loss, accuracy"):
        check_metric(ValidationConfig(metric="bleu"), {"loss": "min", "accuracy": "max"})
    with pytest.raises(ConfigError, match="accuracy needs mode max"):
        check_metric(ValidationConfig(metric="accuracy", mode="min"), {"loss": "min", "accuracy": "max"})
