"""qkv train."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("recipe")
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the run is kept  [default: runs/RECIPE's name]")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, from its last checkpoint.")
def train(recipe: str, assignments: tuple[str, ...], folder: Path | None, resume: bool) -> None:
    """Train a model as RECIPE says.

    RECIPE is a YAML file, or the name of a recipe that comes along. KEY=VALUE changes it, as in training.max_minutes=3.
    Ctrl-C saves and stops; --resume goes on from there.
    """
    from qkv import tasks

    place = folder or Path("runs") / Path(recipe).stem
    learned = tasks.train(recipe, assignments, place, resume=resume)
    if learned.result.stop_reason == "interrupted":
        again = " ".join(["qkv train", recipe, *assignments, "--folder", str(place), "--resume"])
        click.echo(f"Stopped and saved. Go on with: {again}", err=True)
        raise SystemExit(130)
    click.echo(f"The model is in {place}. Try: qkv run {place}", err=True)
