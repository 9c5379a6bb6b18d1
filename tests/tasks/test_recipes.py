"""Recipes: which source a problem names, and settings given with a model to start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from qkv import tasks
from qkv.errors import ConfigError
from qkv.tasks.own_data import OwnData
from qkv.tasks.recipes import list_recipes, read_recipe

MISTAKES = [
    ("training.max_minuts=3", "training.max_minuts: no such option"),
    ("training.dropout=2", "training: TrainingConfig.dropout=2.0: expected"),
    ("data.batch_tokens=many", "data.batch_tokens: given 'many'"),
    ("task=translatoin", "task: given 'translatoin'"),
]


@pytest.mark.parametrize(("assignment", "expected"), MISTAKES)
def test_a_wrong_assignment_names_the_option_and_not_the_file(assignment: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_recipe("translation", [assignment])
    assert raised.value.problems[0].startswith(expected)
    assert "translation.yaml" not in str(raised.value)


def test_a_problem_of_a_file_names_the_file_also_beside_a_wrong_assignment(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(list_recipes()["translation"].read_text(encoding="utf-8") + "colour: red\n", encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        read_recipe(path, ["training.seed=one"])
    named, unnamed = sorted(raised.value.problems, key=lambda problem: not problem.startswith(str(path)))
    assert named.startswith(f"{path}: colour: no such option") and unnamed.startswith("training.seed: given 'one'")


@pytest.mark.parametrize("setting", ["model.d_model=64", "model={kind: recurrent}", "tokenizer.source.vocab_size=9"])
def test_settings_of_a_model_beside_one_to_start_from_are_refused(setting: str) -> None:
    """They would be lost: the model to start from has a shape and a tokenizer already."""
    for overrides, own in (([setting, "init_from=runs/a"], OwnData()), ([setting], OwnData(init_from="runs/a"))):
        with pytest.raises(ConfigError, match="given together with a model to start from") as raised:
            read_recipe("translation", overrides, own)
        assert setting in str(raised.value)
    read_recipe("translation", ["init_from=runs/a"])


def test_a_file_with_both_a_model_and_one_to_start_from_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(list_recipes()["translation"].read_text(encoding="utf-8") + "init_from: runs/a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own\.yaml: model: given together with"):
        read_recipe(path)


@pytest.mark.parametrize("given", [{"overrides": ["training.seed=2"]}, {"data": ["a.tsv"]}, {"valid": ["a.tsv"]}])
def test_changes_beside_a_recipe_that_is_an_object_are_refused(given: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="change the object itself"):
        tasks.train(read_recipe("translation"), folder=tmp_path / "run", **given)  # type: ignore[arg-type]
