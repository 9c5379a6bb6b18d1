"""scripts/screenshot makes a picture of the view that an address names, and says what is wrong where it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "screenshot"
PAGE = "<body style='margin:0'><div style='height:100vh'></div><script>\
document.querySelector('div').style.background = location.hash === '#green' ? '#00ff00' : '#ff0000'</script>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def take_screenshot(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "page.html").write_text(PAGE, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["absent.html", "a.png"], "there is no such page; write one with qkv look"),
        (["page.html", "a.jpg"], "pictures are written as .png"),
        (["page.html", "a.png", "decoder.0"], "from # on"),
        (["page.html", "a.png", "--size", "big"], "expected WIDTHxHEIGHT"),
        (["page.html", "a.png"], "CHROMIUM=/nowhere/browser is no program; install Chromium"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], expected: str, tmp_path: Path) -> None:
    done = take_screenshot(tmp_path, *words, CHROMIUM="/nowhere/browser")
    assert done.returncode and expected in done.stderr and not list(tmp_path.glob("a.*"))


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_view_is_pictured_in_the_size_asked_for(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra qkv[see]")
    done = take_screenshot(tmp_path, "page.html", "new/a.png", "#green", "--size", "320x200")
    assert done.returncode == 0 and "new/a.png: " in done.stdout, done.stderr
    with image.open(tmp_path / "new" / "a.png") as made:
        assert made.size == (320, 200) and made.convert("RGB").getpixel((160, 100)) == (0, 255, 0)
