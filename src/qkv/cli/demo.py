"""qkv demo: the main job, start to end, on what comes along."""

from __future__ import annotations

import json
import time
from importlib import resources
from pathlib import Path

import click

from qkv.cli.models import write_page

WORDS = ("colonel", "attention", "transformer", "queue", "knight", "choir")
LOOKED = "colonel"


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.05), default=3.0, help="How long to train.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Keeps the run."
)
def demo(minutes: float, folder: Path) -> None:
    """Pronounce words, look inside one answer, train a small model and score it.

    Each part says the command that does the same.
    """
    from qkv import tasks

    runner = tasks.load("pronounce")
    _say(f"qkv run pronounce {' '.join(WORDS)}")
    for word, answers in zip(WORDS, runner.run(WORDS), strict=True):
        click.echo(f"{word:12} {answers[0].text}")

    _say(f"qkv look pronounce {LOOKED} --html look.html")
    write_page([("pronounce", runner)], LOOKED, Path("look.html"))
    click.echo(f"Open {Path('look.html').resolve()} in a browser: queries, keys and values of every head.")

    place = _fresh(folder)
    _say(f"qkv train pronounce-demo training.minutes={minutes:g} --folder {place}")
    begun = time.monotonic()
    learned = tasks.train("pronounce-demo", [f"training.minutes={minutes}"], place)
    if learned.result.stopped == "interrupted":
        raise click.exceptions.Exit(130)

    _say(f"qkv evaluate {place} --corpus cmudict --with split=valid --with stress=false")
    recipe = tasks.read_recipe("pronounce-demo")
    assert isinstance(recipe, tasks.Recipe) and isinstance(learned.runner, tasks.Runner)
    pairs = tasks.pairs_of([recipe.data.valid], runner.task)
    report = tasks.evaluate(learned.runner, pairs)
    rows = [(f"this one, {(time.monotonic() - begun) / 60:.1f} minutes", report.scores)]
    click.echo(f"{len(report.answers):,} words that none of these models learned from, without stress:\n")
    click.echo(f"{'':48} {'words wrong':>12} {'phonemes wrong':>15}")
    for name, scores in rows:
        click.echo(f"{name:48} {scores['wer'].value:11.1f}% {scores['per'].value:14.1f}%")
    for recorded in json.loads(resources.files("qkv").joinpath("shipped/recorded.json").read_text(encoding="utf-8")):
        click.echo(f"{recorded['name']:48} {recorded['wer']:11.1f}% {recorded['per']:14.1f}%   recorded")
    click.echo(f"\nYour model: qkv run {place} WORD.   The recorded numbers: docs/results.md")


def _say(command: str) -> None:
    click.secho(f"\n$ {command}", bold=True)


def _fresh(folder: Path) -> Path:
    """The first of demo, demo-2, demo-3 ... that is not there yet: nothing that was trained is overwritten."""
    number = 1
    while (place := folder / (f"demo-{number}" if number > 1 else "demo")).exists():
        number += 1
    return place
