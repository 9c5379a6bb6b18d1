"""The page of model families says what the tests check of each, and the guide's commands exist."""

from __future__ import annotations

import re
import shlex

import pytest

from qkv.cli import main
from qkv.pretrained.families import FAMILIES
from tests.checked_families import COLUMNS, GUIDE, PAGE, VERIFIED, WEIGHTS, group_by_column, render_page


def test_the_table_is_what_is_checked() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert render_page(text) == text, "run: PYTHONPATH=src python -m tests.checked_families"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_is_checked_and_written_back(family: object) -> None:
    columns = group_by_column(family)  # type: ignore[arg-type]
    assert {"answers", "written"} <= set(columns) <= set(COLUMNS)


def test_every_check_is_a_test() -> None:
    for checked in VERIFIED:
        assert all(callable(getattr(checked.where, name, None)) for name in checked.tests.values())
        assert checked.cases or checked.types
    for _, where, name in WEIGHTS.values():
        assert callable(getattr(where, name, None))


def test_the_commands_of_the_guide_exist() -> None:
    blocks = re.findall(r"```console\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    commands = [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ qkv")]
    assert len(commands) >= 6
    for command in commands:
        name, *words = shlex.split(command.split(" > ")[0])[1:]
        known = {option for one in main.commands[name].params for option in one.opts}
        assert {word for word in words if word.startswith("--")} <= known, command
