"""qkv demo: a tour of the commands, with the models and the data that come with the package."""

from __future__ import annotations

import json
import time
from importlib import resources
from pathlib import Path

import click

from qkv.cli.look import write_page

WORDS = ("knight", "queue", "attention")
LOOK_WORD = "knight"


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.05), default=3.0, show_default=True, help="How long to train.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder to keep the run in.",
)
def demo(minutes: float, folder: Path) -> None:
    """Pronounce words, look inside one answer, then train a small model and evaluate it.

    Each step prints the command that does the same.
    """
    from qkv import tasks

    runner = tasks.load("pronunciation")
    _echo_command(f"qkv run pronunciation {' '.join(WORDS)}")
    for word, answers in zip(WORDS, runner.predict_ranked(WORDS), strict=True):
        click.echo(f"{word:12} {answers[0].text}")

    _echo_command(f"qkv look pronunciation {LOOK_WORD} --html look.html")
    write_page([("pronunciation", runner)], LOOK_WORD, Path("look.html"))
    click.echo(f"Open {Path('look.html').resolve()} in a browser: it shows the queries, keys and values of every head.")

    place = _find_unused_folder(folder)
    _echo_command(f"qkv train pronunciation-demo training.max_minutes={minutes:g} --folder {place}")
    started = time.monotonic()
    learned = tasks.train("pronunciation-demo", [f"training.max_minutes={minutes}"], place)
    if learned.result.stop_reason == "interrupted":
        raise click.exceptions.Exit(130)

    _echo_command(f"qkv evaluate {place} --corpus cmudict --option split=valid --option stress=false")
    recipe = tasks.read_recipe("pronunciation-demo")
    assert isinstance(recipe, tasks.Text2TextConfig)
    assert recipe.data.valid is not None
    pairs = tasks.prepare_pairs([recipe.data.valid], runner.task)
    report = tasks.evaluate(learned.model, pairs)
    rows = [(f"this one, {(time.monotonic() - started) / 60:.1f} minutes", report.scores)]
    click.echo(f"{len(report.answers):,} words that none of these models was trained on, without stress:\n")
    click.echo(f"{'':48} {'words wrong':>12} {'phonemes wrong':>15}")
    for name, scores in rows:
        click.echo(f"{name:48} {scores['wer'].value:11.1f}% {scores['per'].value:14.1f}%")
    for recorded in json.loads(
        resources.files("qkv").joinpath("shipped/reference_scores.json").read_text(encoding="utf-8")
    ):
        click.echo(f"{recorded['name']:48} {recorded['wer']:11.1f}% {recorded['per']:14.1f}%   recorded")
    click.echo(f"\nYour model: qkv run {place} WORD.   The recorded scores: docs/results/pronunciation.md")


def _echo_command(command: str) -> None:
    click.secho(f"\n$ {command}", bold=True)


def _find_unused_folder(folder: Path) -> Path:
    """Return the first of demo, demo-2, demo-3 ... that does not exist, so that no run is overwritten."""
    number = 1
    while (place := folder / (f"demo-{number}" if number > 1 else "demo")).exists():
        number += 1
    return place
