"""Recipes: what is written reads back, and every mistake of a recipe is named at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as some

from qkv import config
from qkv.errors import ConfigError, SpecError


@dataclass(frozen=True)
class Constant:
    rate: float = 1e-3


@dataclass(frozen=True)
class Cosine:
    rate: float = 1e-3
    warmup: int = 100
    floor: float | None = None


@dataclass(frozen=True)
class Corpus:
    name: str
    weight: float = 1.0
    limit: int | None = None


@dataclass(frozen=True)
class Heads:
    heads: int = 4
    d_model: int = 64
    kind: Literal["layer", "rms"] = "layer"

    def __post_init__(self) -> None:
        if self.d_model % self.heads:
            raise SpecError(f"d_model={self.d_model} is not a multiple of heads={self.heads}")


@dataclass(frozen=True)
class Average:
    decay: float = 0.999


@dataclass(frozen=True)
class Bounded:
    low: int
    high: int
    step: int = 1
    parts: tuple[Average, ...] = ()

    def __post_init__(self) -> None:
        rules = [(self.step >= 1, f"step={self.step}: expected at least 1")]
        if isinstance(self.high, int):
            rules.insert(0, (self.low < self.high, f"low={self.low} is not below high={self.high}"))
        if problems := [text for kept, text in rules if not kept]:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Recipe:
    corpora: tuple[Corpus, ...]
    schedule: Constant | Cosine = field(default_factory=Constant)
    model: str | Heads = "transformer-base"
    average: Average | None = None
    steps: int = 1000
    bounds: tuple[int, float] = (1, 2.0)
    compiled: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    folder: Path | None = None
    note: str | None = None


def read_problems(mapping: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.from_dict(Recipe, mapping)
    return list(caught.value.problems)


numbers = some.floats(allow_nan=False)
texts = some.text(some.characters(exclude_categories=["Cs"]), max_size=8) | some.sampled_from(
    [
        "no",
        "on",
        "null",
        "~",
        "1e-4",
        "1.",
        ".5",
        "012",
        "-3",
        ".inf",
        "True",
        "12:30",
        "0x1f",
        "1_000",
        "",
        "<<",
        "=",
        "#",
    ]
)
corpora = some.builds(Corpus, texts, numbers, some.none() | some.integers())
recipes = some.builds(
    Recipe,
    corpora=some.lists(corpora, max_size=3).map(tuple),
    schedule=some.builds(Constant, numbers) | some.builds(Cosine, numbers, some.integers(), some.none() | numbers),
    model=texts | some.builds(Heads, some.just(2), some.just(8), some.sampled_from(["layer", "rms"])),
    average=some.none() | some.builds(Average, numbers),
    steps=some.integers(),
    bounds=some.tuples(some.integers(), numbers),
    compiled=some.booleans(),
    precision=some.sampled_from(["float32", "bfloat16"]),
    folder=some.none() | some.sampled_from([Path("runs/one"), Path("/tmp"), Path(".")]),
    note=some.none() | texts,
)


@given(recipes)
def test_what_is_written_reads_back(recipe: Recipe) -> None:
    assert config.from_dict(Recipe, config.to_dict(recipe)) == recipe


@given(recipes)
def test_what_is_written_reads_back_through_yaml_text(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(config.dump_yaml(config.to_dict(recipe)), encoding="utf-8")
    assert config.from_dict(Recipe, config.load_yaml(path)) == recipe


@given(some.dictionaries(texts, texts | numbers | some.integers() | some.none() | some.booleans(), max_size=4))
def test_a_mapping_is_the_same_after_yaml(tmp_path_factory: pytest.TempPathFactory, mapping: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "mapping.yaml"
    path.write_text(config.dump_yaml(mapping), encoding="utf-8")
    assert config.load_yaml(path) == mapping


junk = some.recursive(
    some.none() | some.booleans() | some.integers() | numbers | texts,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(texts | some.just("kind"), inner, max_size=3),
    max_leaves=8,
)


@given(some.dictionaries(some.sampled_from([*Recipe.__dataclass_fields__, "other"]), junk))
def test_any_mapping_is_read_or_refused_by_name(mapping: dict[str, Any]) -> None:
    try:
        recipe = config.from_dict(Recipe, mapping)
    except ConfigError as error:
        assert error.problems
    else:
        assert config.from_dict(Recipe, config.to_dict(recipe)) == recipe


def test_defaults_fill_what_is_not_given() -> None:
    assert config.from_dict(Recipe, {"corpora": [{"name": "cmudict"}]}) == Recipe(corpora=(Corpus("cmudict"),))


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    mapping = {
        "corpora": [{"name": "a", "wieght": 2}, {"weight": "much"}],
        "schedule": {"kind": "cosin", "rate": 1},
        "steps": True,
        "precison": "float32",
        "bounds": [1, 2.0, 3],
    }
    assert read_problems(mapping) == [
        "recipe.yaml: corpora.0.wieght: no such option; did you mean 'weight'? (options here: name, weight, limit)",
        "recipe.yaml: corpora.1.weight: given 'much', expected a number",
        "recipe.yaml: corpora.1.name: missing, expected text",
        "recipe.yaml: schedule.kind: given 'cosin', expected one of constant, cosine; did you mean 'cosine'?",
        "recipe.yaml: steps: given true, expected a whole number",
        "recipe.yaml: precison: no such option; did you mean 'precision'? (options here: corpora, schedule, model, "
        "average, steps, bounds, compiled, precision, folder, note)",
        "recipe.yaml: bounds: given 3 items [1, 2.0, 3], expected a list of 2 (a whole number, a number)",
    ]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"low": 5, "high": 3, "step": 0}, ["low=5 is not below high=3", "step=0: expected at least 1"]),
        ({"low": 5, "high": "x", "step": 0}, ["high: given 'x', expected a whole number", "step=0: expected"]),
        ({"low": 5, "step": 0}, ["high: missing", "step=0: expected"]),
        ({"low": 5, "high": 3, "step": 0, "stop": 1}, ["stop: no such option", "low=5 is not below", "step=0"]),
        ({"low": 5, "high": 3, "step": "x"}, ["step: given 'x', expected a whole number", "low=5 is not below high=3"]),
        ({"low": 5, "high": 3, "step": 0, "parts": [{"decay": "x"}]}, ["decay: given", "low=5 is not", "step=0"]),
    ],
)
def test_a_value_out_of_range_is_named_beside_one_of_another_type(node: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_dict(Bounded, node)
    assert len(caught.value.problems) == len(expected), caught.value.problems
    for problem, part in zip(caught.value.problems, expected, strict=True):
        assert part in problem


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"warmup": 5}, "warmup: no such option; did you mean schedule.warmup with kind: cosine? (options here:"),
        (
            {"precision": "bfloat"},
            "precision: given 'bfloat', expected one of float32, bfloat16; did you mean 'bfloat16'?",
        ),
        ({"schedule": {"rate": 1.0}}, "schedule.kind: missing, expected one of constant, cosine"),
        (
            {"schedule": {"kind": "constant", "warmup": 5}},
            "schedule.warmup: no such option; did you mean schedule.warmup with",
        ),
        ({"schedule": "cosine"}, "schedule: given 'cosine', expected a mapping with kind: constant, cosine"),
        ({"schedule": None}, "schedule: given null, expected a mapping with kind: constant, cosine"),
        ({"average": 3}, "average: given 3, expected a mapping with the options decay or null"),
        (
            {"corpora": "cmudict"},
            "corpora: given 'cmudict', expected a list, each item a mapping with the options name,",
        ),
        ({"note": 2016}, "note: given 2016, expected text or null; put it in quotes"),
        ({"steps": 1e5}, "steps: given 100000.0, expected a whole number"),
        ({"model": {"heads": 5}}, "model: d_model=64 is not a multiple of heads=5"),
        ({"schedule": {"kind": "constant", "rate": float("nan")}}, "schedule.rate: given nan, expected a number"),
        ({"schedule": {"kind": [1]}}, "schedule.kind: given [1], expected one of constant, cosine"),
        ({7: 1}, "7: no such option"),
    ],
)
def test_a_mistake_is_named(change: dict[Any, Any], expected: str) -> None:
    (problem,) = read_problems({"corpora": []} | change)
    assert problem.startswith(f"recipe.yaml: {expected}")


def test_a_recipe_that_is_no_mapping_is_refused() -> None:
    assert read_problems([1])[0].startswith("recipe.yaml: given [1], expected a mapping with the options corpora,")


def test_a_kind_that_goes_without_saying_may_be_said() -> None:
    recipe = config.from_dict(Recipe, {"corpora": [], "average": {"kind": "average", "decay": 0.5}})
    assert recipe.average == Average(0.5)


def test_overrides_set_values_as_yaml_and_leave_the_original() -> None:
    mapping = {"corpora": [{"name": "a"}], "average": None, "steps": 5}
    changed = config.apply_overrides(
        mapping,
        ["corpora.0.weight=2", "average.decay=1e-4", "steps=7", "schedule={kind: cosine, warmup: 3}", "note=no"],
    )
    assert mapping == {"corpora": [{"name": "a"}], "average": None, "steps": 5}
    recipe = config.from_dict(Recipe, changed)
    assert recipe.corpora == (Corpus("a", 2.0),)
    assert recipe.average == Average(1e-4)
    assert (recipe.steps, recipe.schedule, recipe.note) == (7, Cosine(warmup=3), "no")


def test_overrides_that_cannot_be_applied_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        config.apply_overrides(
            {"steps": 5, "corpora": []}, ["steps", "=3", "steps.more=1", "corpora.0.name=a", "note=[", "a..b=1"]
        )
    expected = [
        r"'steps' is not an assignment; expected key=value",
        r"'=3' is not an assignment",
        r"steps.more: steps is 5 and has no parts; set steps itself",
        r"corpora.0: the list at corpora has no items; set corpora itself",
        r"note=\[: line 1, column 2: .*expected YAML",
        r"'a..b=1' is not an assignment",
    ]
    assert len(caught.value.problems) == len(expected)
    for problem, pattern in zip(caught.value.problems, expected, strict=True):
        assert re.match(pattern, problem), problem


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"steps: 1\nsteps: 2\n", "line 2, column 1: 'steps' is given twice"),
        (b"steps: [1\n", "line 2, column 1: .*; expected YAML"),
        (b"", "contains nothing; expected a mapping"),
        (b"- 1\n", r"contains \[1\]; expected a mapping"),
        (b"note: \xff\n", "byte 6 is not UTF-8"),
        (b"note: !!python/object/apply:os.getcwd []\n", "line 1, column 7: could not determine a constructor"),
        (b"note: \x00\n", "special characters are not allowed"),
        (b"[1]: 2\n[1]: 3\n", "line [12], column 1: .*"),
    ],
)
def test_a_broken_file_is_refused_by_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        config.load_yaml(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        config.load_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load_yaml(tmp_path)


def test_a_type_no_recipe_can_hold_is_a_mistake_of_the_program() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: complex

    Odd.__annotations__["value"] = complex
    with pytest.raises(TypeError, match="cannot hold the type"):
        config.from_dict(Odd, {"value": 1})
