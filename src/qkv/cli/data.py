"""qkv data: list the corpora, and report on the data of a recipe."""

from __future__ import annotations

import click


@click.group()
def data() -> None:
    """List the corpora, or report on the data of a recipe."""


@data.command("list")
def list_corpora() -> None:
    """List the named corpora.

    Each entry gives the splits with their sizes, the licence and the home page.
    """
    from qkv.data import corpora

    for entry in corpora.list_corpora():
        splits = ", ".join(f"{name} {count:,}" for name, count in entry.splits.items())
        languages = f"; languages {', '.join(entry.languages)}" if entry.languages else ""
        what = "pairs" if entry.load_images is None else "images"
        click.echo(f"{entry.name}\n  {entry.description}\n  {what}: {splits}{languages}")
        if entry.files:
            click.echo(f"  {entry.size / 1e6:,.1f} MB, sha256 {entry.checksum}")
        click.echo(f"  licence: {entry.license}\n  from: {entry.homepage}\n")


@data.command()
@click.argument("recipe")
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
def report(recipe: str, assignments: tuple[str, ...]) -> None:
    """Report on the data of a recipe.

    Read the training data of RECIPE; print how many examples there are, how many are left out, and which of the
    validation and test examples are also in the training data.
    """
    from qkv import tasks
    from qkv.tasks.text2text.data import describe_source

    tree = tasks.read_recipe(recipe, assignments)
    if not isinstance(tree, tasks.Text2TextConfig):
        for note in tasks.load_data(tree).notes:
            click.echo(note)
        return
    examples = tasks.load_pair_splits(tree.data, tasks.TASKS[tree.task])
    for part, pairs in zip(tree.data.train, examples.train, strict=True):
        click.echo(f"{describe_source(part)}: {len(pairs):,} examples to train on")
    click.echo(f"{describe_source(tree.data.valid)}: {len(examples.valid):,} examples to validate on")
    for note in examples.notes:
        click.echo(note)
