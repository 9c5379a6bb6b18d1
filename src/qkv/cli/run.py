"""qkv run: answer lines with a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qkv.cli.options import allow_pickle_option, beam_option, dtype_option
from qkv.errors import DataError
from qkv.files import replace_nonfinite

if TYPE_CHECKING:
    from qkv.decoding import DecodingConfig
    from qkv.tasks import Answer, OutputConstraints, TaskModel


@click.command()
@click.argument("model")
@click.argument("text", nargs=-1)
@beam_option
@click.option("--n-best", type=click.IntRange(min=1), help="Print this many answers to each line, separated by tabs.")
@click.option("--json", "as_json", is_flag=True, help="Print the answers to each line as JSON, with their scores.")
@click.option("--input", "input_path", type=click.Path(path_type=Path), help="Read the lines from this file.")
@click.option("--output", "output_path", type=click.Path(path_type=Path), help="Write the answers to this file.")
@click.option("--include", multiple=True, metavar="PHRASE", help="A phrase that every answer must contain.")
@click.option("--exclude", multiple=True, metavar="PHRASE", help="A phrase that no answer may contain.")
@click.option(
    "--glossary",
    "glossary_path",
    type=click.Path(path_type=Path),
    help="A file with a term, a tab and its translation on each line: the answer to a line with the term contains the "
    "translation.",
)
@click.option("--placeholders", is_flag=True, help="Keep {name}, %s, ${x} and the like as they are in the line.")
@click.option(
    "--tags", is_flag=True, help="Put the <b>tags</b> of a line around the corresponding words of its answer."
)
@click.option("--prefix", default="", metavar="TEXT", help="Put this text before every line, such as <2de>.")
@dtype_option
@allow_pickle_option
def run(model: str, text: tuple[str, ...], **options: Any) -> None:
    """Answer each TEXT, or each line of standard input or of --input.

    Every line gets one line of answers, in order. Further arguments after MODEL that are model folders make an
    ensemble, which answers with the mean of the models' probabilities.
    """
    from qkv import tasks
    from qkv.data.text.pairs import Tsv
    from qkv.tasks.ensemble import combine

    glossary = () if options["glossary_path"] is None else tuple(Tsv(options["glossary_path"]))
    constraints = tasks.OutputConstraints(options["include"], options["exclude"], glossary, options["placeholders"])
    members, text = _split_models(text)
    names = [model, *members]
    runner = combine([tasks.load(name, dtype=options["dtype"], allow_pickle=options["allow_pickle"]) for name in names])
    if (constraints or options["tags"]) and "generation" not in runner.capabilities:
        raise DataError("phrases, placeholders or tags were given; they are for models that generate text")
    session = _Run(runner, constraints, tags=options["tags"], prefix=options["prefix"])
    decoding = tasks.override_method(runner.decoding, beam=options["beam"], n_best=options["n_best"])
    with _open_output(options["output_path"]) as write:
        for batch in _read_batches(text, options["input_path"]):
            for answers in session.answer(batch, decoding):
                write(_format_json(answers) if options["as_json"] else "\t".join(map(_format_line, answers)))
            if session.error is not None:
                break
    for note in session.notes():
        click.echo(f"Note: {note}", err=True)
    if session.error is not None:
        raise session.error


class _Run:
    """A model that answers lines, with notes for the user."""

    def __init__(self, model: TaskModel, constraints: OutputConstraints, *, tags: bool, prefix: str) -> None:
        self.model, self.constraints, self.tags, self.prefix = model, constraints, tags, prefix
        self.n_read = 0
        self.unknown: dict[str, None] = {}
        self.truncated: list[int] = []
        self.without_prefix: list[str] = []
        self.violations: list[str] = []
        self.error: DataError | None = None

    def answer(self, lines: Iterable[str], decoding: DecodingConfig) -> Iterator[list[Answer]]:
        """Yield the answers to each line; stop at a line that cannot be answered, whose error is then in `error`."""
        from qkv import tasks

        questions: list[str] = []
        checked = self._check(lines, questions)
        generator: Any = self.model
        if self.tags:
            found = tasks.translate_tagged(generator, checked, decoding, self.constraints)
        elif self.constraints:
            found = generator.predict_ranked(checked, decoding, constraints=self.constraints)
        else:
            found = self.model.predict_ranked(checked, decoding)
        for number, answers in enumerate(found):
            line = questions[number]
            answer = tasks.strip_tags(answers[0].text) if self.tags else answers[0].text
            if line.strip() and (problems := self.constraints.for_line(line).violations(answer)):
                self.violations.append(f"{line[:40]!r}: {', '.join(problems)}")
            yield answers

    def _check(self, lines: Iterable[str], questions: list[str]) -> Iterator[str]:
        from qkv import tasks

        try:
            for given in lines:
                line = tasks.with_prefix(given, self.prefix)
                bare = tasks.strip_tags(line) if self.tags else line
                self.model.validate_inputs([bare], self.n_read)
                self.constraints.for_line(bare)
                self.n_read += 1
                self.unknown.update(dict.fromkeys(self.model.unknown_symbols(bare)))
                self.truncated.extend(filter(None, [self.model.n_truncated(bare)]))
                if self.model.missing_prefix(bare):
                    self.without_prefix.append(bare)
                questions.append(bare)
                yield line
        except DataError as error:
            self.error = error

    def notes(self) -> Iterator[str]:
        """Yield the notes on the lines that were answered."""
        if self.unknown:
            shown = ", ".join(map(ascii if not sys.stderr.isatty() else repr, list(self.unknown)[:10]))
            yield f"the model does not know {shown}; its answers to lines that contain them are guesses."
        if self.truncated:
            yield (
                f"{len(self.truncated):,} of the lines are longer than the model reads; {sum(self.truncated):,} tokens "
                "at their ends were not read."
            )
        if self.without_prefix:
            yield (
                f"{len(self.without_prefix):,} of the lines begin with none of {', '.join(self.model.prefixes)}, which "
                f"tell this model what to answer, such as {self.without_prefix[0][:40]!r}: give one with --prefix."
            )
        if self.violations:
            count = len(self.violations)
            violations = "1 answer violates" if count == 1 else f"{count:,} answers violate"
            yield f"{violations} the constraints, such as {self.violations[0]}."


def _split_models(words: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """Return the leading arguments that are model folders, and the texts after them."""
    members: list[str] = []
    while len(members) < len(words) and any(
        (Path(words[len(members)]) / name).is_file() for name in ("spec.json", "config.json")
    ):
        members.append(words[len(members)])
    return members, words[len(members) :]


@contextmanager
def _open_output(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes a line to standard output, or to a file that appears once it is complete."""
    if path is None:
        yield click.echo
        return
    from qkv.files import atomic_write

    with atomic_write(path) as part, open(part, "w", encoding="utf-8") as file:
        yield lambda line: print(line, file=file)


def _read_batches(text: tuple[str, ...], path: Path | None) -> Iterator[Iterable[str]]:
    """Yield the texts, the lines of a file, or standard input: all at once from a pipe, line by line from a
    terminal."""
    from qkv.data.text.pairs import decode_lines, read_lines

    if text and path is not None:
        raise DataError(f"texts and --input {path} were given; expected one of the two")
    if text:
        yield text
    elif path is not None:
        yield read_lines(path)
    elif sys.stdin.isatty():
        yield from ([line] for line in decode_lines(sys.stdin.buffer, "standard input"))
    else:
        yield decode_lines(sys.stdin.buffer, "standard input")


def _format_line(answer: Answer) -> str:
    from qkv.data.text.pairs import to_single_line

    return to_single_line(answer.text)


def _format_json(answers: list[Answer]) -> str:
    fields = [{name: value for name, value in asdict(one).items() if name != "alternatives"} for one in answers]
    return json.dumps(replace_nonfinite(fields), ensure_ascii=False, allow_nan=False)
