"""qkv runs: list the runs in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

_RUNNING_SECONDS = 120  # a run that wrote metrics this recently, and has no model yet, is assumed to be running


class _Run(NamedTuple):
    folder: Path
    task: str
    state: str
    steps: int
    minutes: float
    best: str
    date: str


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
def runs(folder: Path) -> None:
    """List the runs in FOLDER, the newest last.  [default: runs]

    For each run, print its task, state (finished, stopped, running or started), steps, minutes, best validation score
    and date.
    """
    found = sorted((_read_run(path.parent) for path in folder.glob("*/recipe.yaml")), key=lambda run: run.date)
    if not found:
        click.echo(f"There are no runs in {folder}. Start one with: qkv train TASK FILE...", err=True)
        return
    rows = [("run", "task", "state", "steps", "minutes", "best", "date")]
    rows += [
        (str(run.folder), run.task, run.state, f"{run.steps:,}", f"{run.minutes:.1f}", run.best, run.date)
        for run in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{text:>{width}}" if number in (3, 4) else f"{text:{width}}"
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _read_run(folder: Path) -> _Run:
    from qkv import config

    recipe = config.load_yaml(folder / "recipe.yaml")
    metrics = folder / "metrics.jsonl"
    lines = list(_read_metrics(metrics))
    newest = max((path.stat().st_mtime for path in folder.iterdir()), default=folder.stat().st_mtime)
    trained = [line for line in lines if line["kind"] == "training"]
    if (folder / "card.json").is_file() and not (folder / "tokens").exists():
        state = "finished"
    elif not (folder / "card.json").is_file() and datetime.now().timestamp() - newest < _RUNNING_SECONDS:
        state = "running"
    else:
        state = "stopped" if (folder / "checkpoint.safetensors").is_file() else "started"
    return _Run(
        folder,
        str(recipe.get("task", "?")),
        state,
        max((line["step"] for line in lines), default=0),
        trained[-1]["seconds"] / 60 if trained else 0.0,
        _format_best(lines, recipe.get("training", {}).get("validation", {})),
        f"{datetime.fromtimestamp(newest):%Y-%m-%d %H:%M}",
    )


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the last line of a run that is writing it, or was killed
    return found


def _format_best(lines: Sequence[dict[str, Any]], validation: dict[str, Any]) -> str:
    metric, choose = validation.get("metric", "loss"), max if validation.get("mode") == "max" else min
    values = [line[metric] for line in lines if line["kind"] == "validation" and metric in line]
    return f"{metric} {choose(values):.4g}" if values else ""
