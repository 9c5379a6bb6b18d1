"""A long reading says how far it is; a short one says nothing."""

from __future__ import annotations

import pytest

from qkv.data import progress


def test_items_pass_through_and_only_a_long_reading_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress.track(range(10_000), "reading a.tsv")) == list(range(10_000))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_QUIET", 0.0)
    assert list(progress.track(range(10_000), "reading a.tsv")) == list(range(10_000))
    assert capsys.readouterr().err.startswith("reading a.tsv: 2,048 so far, 0 s\n")
