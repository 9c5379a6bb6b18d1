"""No file of a model folder, however it was changed, raises anything but an error of this package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qkv import config, presets, spec, tasks
from qkv.decoding.config import DecodingConfig
from qkv.errors import ConfigError, QkvError
from qkv.files import parse_json
from qkv.models import build
from qkv.tasks.registry import TASKS
from qkv.tasks.text_generator import TextGenerator
from qkv.text import Tokenizer
from qkv.text import train as train_tokenizer

FILES = ("card.json", "spec.json", "source.tokenizer.json", "model.safetensors")
VALUES = [
    *("null", "true", "-1", "0", "16.0", "1e400", "NaN", "[]", "{}", '"x"', '"\\ud800"', "[[1]]", '{"a": 1}'),
    *("9" * 18, "9" * 30, "9" * 5000, "[" * 100_000, "[" * 80 + "]" * 80, "2147483648", "1000000000"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mutated") / "model"
    tokenizer = train_tokenizer(["a cat sat", "the dog"] * 4, "character")
    shape = presets.encoder_decoder(
        source_vocab=tokenizer.size,
        target_vocab=tokenizer.size,
        layers=1,
        d_model=8,
        heads=2,
        d_ff=8,
        shared_embedding=True,
    )
    TextGenerator(build(shape), tokenizer, tokenizer, TASKS["translation"], DecodingConfig()).save(place)
    return place


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_changed_file_of_a_model_folder_opens_or_is_refused_by_name(folder: Path, data: st.DataObject) -> None:
    copy = folder.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    path = copy / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    if path.suffix == ".json" and data.draw(st.booleans()):  # another value in the place of one
        text = content.decode()
        starts = [place + 1 for place, character in enumerate(text) if character in ":[,"]
        start = data.draw(st.sampled_from(starts))
        end = min((p for c in ",}]" if (p := text.find(c, start)) >= 0), default=len(text))
        content = bytearray((text[:start] + data.draw(st.sampled_from(VALUES)) + text[end:]).encode())
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            where = data.draw(st.integers(0, len(content) - 1))
            content[where] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.sampled_from([len(content), len(content) // 2]))]
    path.write_bytes(content)
    try:
        tasks.load(copy)
    except QkvError as error:
        assert len(str(error)) < 5000


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("text", ["{}", '{{"a": {}}}', '{{"node": {}}}', '{{"special_tokens": {}}}'])
def test_each_json_reader_refuses_extreme_values(tmp_path: Path, text: str, value: str) -> None:
    whole = text.format(value)
    (tmp_path / "tokenizer.json").write_text(whole)
    with pytest.raises(QkvError):
        spec.from_json(whole)
    with pytest.raises(QkvError):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_json_of_usual_size_is_read_as_before() -> None:
    value = {"a": [1, 2.5, None, True, "ö\U0001f600"], "b": {"c": [[]]}, "d": -(2**63)}
    assert parse_json(json.dumps(value)) == value
    for text, said in (("[" * 65 + "]" * 65, "64 deep"), ("9" * 20, "20 digits"), ('"\\udc00"', "surrogate")):
        with pytest.raises(ValueError, match=said):
            parse_json(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "9" * 5000, "5,000 digits"),
        ("a: " + "[" * 70 + "]" * 70, "64 deep"),
        ("a: " + "[" * 20_000, "deep|expected"),
        ("a: &x [*x]", "an alias stands for what it lies in"),
        ("a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)), "values"),
        ('a: "\\ud800"', "surrogate"),
        ("a: !!timestamp x", "cannot be read"),
        ("a: !!bool x", "cannot be read"),
        ("a: !!int x", "cannot be read"),
        ("a: !!python/object:os.system x", "expected YAML"),
    ],
)
def test_a_recipe_with_extreme_values_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        config.load_yaml(tmp_path / "recipe.yaml")
    with pytest.raises(QkvError):
        tasks.read_recipe(tmp_path / "recipe.yaml")


def test_an_alias_in_a_recipe_still_stands_for_its_value(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("a: &x [1, 2]\nb: *x\n")
    assert config.load_yaml(tmp_path / "recipe.yaml") == {"a": [1, 2], "b": [1, 2]}
