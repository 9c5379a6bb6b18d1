"""The reference of the command line, from the click commands.

Names this file relies on: `qkv.cli.main`, the click group. Everything else is found by walking it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click
from api import markdown

from qkv.cli import main

PROGRAM = "qkv"


def text() -> str:
    """Return the MyST text about every command, in the order in which they were added."""
    context = click.Context(main, info_name=PROGRAM)
    return "\n\n".join(_command(main, context, depth=2))


def _command(command: click.Command, context: click.Context, depth: int) -> Iterator[str]:
    yield f"{'#' * depth} `{context.command_path}`"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```"
    yield from _help(command.help or "")
    yield from _parameters(command, context)
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            if not inner.hidden:
                below = click.Context(inner, info_name=name, parent=context)
                yield from _command(inner, below, depth + 1 if context.parent else depth)


def _help(said: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; one that starts with \\b keeps its lines."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(said.partition("\f")[0])):
        if block.startswith("\b"):
            yield "```text\n" + block.removeprefix("\b").strip("\n") + "\n```"
        elif block.strip():
            yield markdown(" ".join(block.split()))


def _parameters(command: click.Command, context: click.Context) -> Iterator[str]:
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            names, meaning = record
            code = "`" + names.replace("|", "\\|") + "`"
            rows.append(f"| {code} | {markdown(' '.join(meaning.split()))} |")
    if rows:
        yield "\n".join(["| option | meaning |", "| --- | --- |", *rows])
