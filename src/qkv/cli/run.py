"""qkv run: what a model answers."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qkv.errors import DataError

if TYPE_CHECKING:
    from qkv.tasks import Answer, Dtype, TaskModel

from qkv.cli.options import allow_pickle_option, beam_option, dtype_option


@click.command()
@click.argument("model")
@click.argument("text", nargs=-1)
@beam_option
@click.option("--n-best", type=click.IntRange(min=1), help="Answers to each line, best first, with tabs between them.")
@click.option("--json", "as_json", is_flag=True, help="Write each line's answers as JSON, with their scores.")
@click.option("--include", multiple=True, metavar="PHRASE", help="What every answer has to hold.")
@click.option("--exclude", multiple=True, metavar="PHRASE", help="What no answer may hold.")
@click.option(
    "--glossary",
    "glossary_path",
    type=click.Path(path_type=Path),
    help="A glossary, a term and a tab and its translation a line: answers to lines with the one hold the other.",
)
@click.option("--placeholders", is_flag=True, help="Keep {name}, %s, ${x} and the like as they are in the line.")
@click.option("--tags", is_flag=True, help="Put <b>tags</b> of a line around the same words of its answer.")
@click.option("--prefix", default="", metavar="TEXT", help="Put this before every line, such as <2de>.")
@dtype_option
@allow_pickle_option
def run(
    model: str,
    text: tuple[str, ...],
    beam: int | None,
    n_best: int | None,
    as_json: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    glossary_path: Path | None,
    placeholders: bool,
    tags: bool,
    prefix: str,
    dtype: Dtype,
    allow_pickle: bool,
) -> None:
    """Answer each TEXT or line of standard input.

    One line in, one line out, in order, whatever the options.
    """
    from qkv import tasks
    from qkv.data.text import pairs as reading

    glossary = () if glossary_path is None else tuple(reading.Tsv(glossary_path))
    wanted = tasks.OutputConstraints(include, exclude, glossary, placeholders)
    runner = tasks.load(model, dtype=dtype, allow_pickle=allow_pickle)
    if (wanted or tags) and "generation" not in runner.capabilities:
        raise DataError("phrases, placeholders or tags were given; they are for models that answer in words")
    decoding = tasks.override_method(runner.decoding, beam=beam, n_best=n_best)
    strange: dict[str, None] = {}
    unread: list[int] = []
    unled: list[str] = []
    wrong: list[DataError] = []
    missed: list[str] = []

    def noting(lines: Iterable[str]) -> Iterator[str]:
        """End at a line that cannot be answered, so that what came before it is answered first."""
        try:
            for given in lines:
                line = tasks.with_prefix(given, prefix)
                bare = tasks.strip_tags(line) if tags else line
                runner.validate_inputs([bare], next(number))
                wanted.for_line(bare)
                strange.update(dict.fromkeys(runner.unknown_symbols(bare)))
                unread.extend(filter(None, [runner.n_truncated(bare)]))
                if runner.missing_prefix(bare):
                    unled.append(bare)
                asked.append(bare)
                yield line
        except DataError as error:
            wrong.append(error)

    def answered(lines: Iterable[str]) -> Iterator[list[Answer]]:
        if tags:
            generator: Any = runner
            return tasks.translate_tagged(generator, lines, decoding, wanted)
        options: dict[str, Any] = {"constraints": wanted} if wanted else {}
        return runner.predict_ranked(lines, decoding, **options)

    number = itertools.count()
    for batch in [text] if text else _read_stdin_batches():
        asked: list[str] = []
        for answers, line in zip(answered(noting(batch)), asked, strict=False):
            answer = tasks.strip_tags(answers[0].text) if tags else answers[0].text
            if line.strip() and (problems := wanted.for_line(line).violations(answer)):
                missed.append(f"{line[:40]!r}: {', '.join(problems)}")
            click.echo(_format_json(answers) if as_json else "\t".join(_format_line(answer) for answer in answers))
        if wrong:
            break
    for note in _format_notes(runner, list(strange), unread, unled, missed):
        click.echo(f"Note: {note}", err=True)
    if wrong:
        raise wrong[0]


def _format_notes(
    runner: TaskModel,
    unknown_symbols: list[str],
    truncated: list[int],
    without_prefix: list[str],
    violations: list[str],
) -> Iterator[str]:
    """What is to be said of the lines that were answered."""

    if unknown_symbols:
        shown = ", ".join(map(ascii if not sys.stderr.isatty() else repr, unknown_symbols[:10]))
        yield f"the model does not know {shown}; answers to lines with these are guesses."
    if truncated:
        yield (
            f"{len(truncated):,} of the lines are longer than the model reads; {sum(truncated):,} tokens at their "
            f"ends were "
            "not read."
        )
    if without_prefix:
        yield (
            f"{len(without_prefix):,} of the lines begin with none of {', '.join(runner.prefixes)}, by which this "
            f"model is told "
            f"what to answer, such as {without_prefix[0][:40]!r}: give one with --prefix."
        )
    if violations:
        yield f"{len(violations):,} answers do not keep to what was asked for, such as {violations[0]}."


def _read_stdin_batches() -> Iterator[Iterable[str]]:
    """The standard input: all of it at once from a file or pipe, line by line from a keyboard."""
    from qkv.data.text.pairs import decode_lines

    lines = decode_lines(sys.stdin.buffer, "standard input")
    if sys.stdin.isatty():
        yield from ([line] for line in lines)
    else:
        yield lines


def _format_line(answer: Answer) -> str:
    return " ".join(answer.text.splitlines())


def _format_json(answers: list[Answer]) -> str:
    return json.dumps([asdict(answer) for answer in answers], ensure_ascii=False)
