"""qkv look: show what led to an answer, on a page."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qkv.errors import DataError

if TYPE_CHECKING:
    from qkv.tasks import TaskModel

from qkv.cli.options import allow_pickle_option, dtype_option

_CAPTURE_SUFFIX = ".qkv"
_SLOW_TOKENS = 2**15  # tokens of a text that is looked at, beyond which it is said that this takes a while


@click.command()
@click.argument("model")
@click.argument("text", required=False)
@click.option("--answer", metavar="TEXT", help="Look at how the model reads this answer, in place of its own.")
@click.option("--compare", metavar="MODEL", help="Show a second model, or another checkpoint, next to the first.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write the page to this file.")
@click.option("--capture", type=click.Path(path_type=Path), help="Keep everything that was seen in this file.")
@click.option(
    "--plot-words", type=click.Path(path_type=Path), help="Of an audio file: plot when each word is said (SVG)."
)
@click.option("--serve", is_flag=True, help="Serve the page on this machine, and answer its questions.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to serve on; any free one unless given.")
@dtype_option
@allow_pickle_option
def look(model: str, text: str | None, **options: Any) -> None:
    """Show what led to an answer, on a page in one file (--html) or a live one (--serve).

    The page shows the query, key, value, scores, weights and context of every attention, and needs no network. TEXT is
    what the model reads; - takes it from standard input. `qkv look FILE --html PAGE` opens a file that --capture wrote.
    """
    from qkv import tasks

    page, capture, answer = options["page"], options["capture"], options["answer"]
    if text is None and _is_capture(Path(model)):
        if page is None:
            raise click.UsageError("give --html FILE: the page to write from the capture")
        _reopen(Path(model), page)
        return
    if sum((options["serve"], page is not None, capture is not None)) != 1:
        raise click.UsageError("give one of --html FILE, --capture FILE and --serve")
    if text is None and not options["serve"]:
        raise click.UsageError("Missing argument 'TEXT': what the model is to read.")
    models = [
        (name, tasks.load(name, dtype=options["dtype"], allow_pickle=options["allow_pickle"]))
        for name in (model, options["compare"])
        if name is not None
    ]
    line = click.prompt("Text to read") if text is None else sys.stdin.read() if text == "-" else text
    if options["plot_words"] is not None:
        _plot_words(models[0][1], line, answer, options["plot_words"])
    if page is not None:
        click.echo(f"{write_page(models, line, page, answer)}\nLook inside: {page}")
    elif capture is not None:
        _write_capture(models[0][1], line, answer, capture)
    else:
        _serve(models, line, answer, options["port"])


def _is_capture(path: Path) -> bool:
    return path.is_file() and path.suffix == _CAPTURE_SUFFIX


def _write_capture(model: TaskModel, line: str, answer: str | None, path: Path) -> None:
    from qkv import lens

    if path.suffix != _CAPTURE_SUFFIX:
        raise click.UsageError(f"--capture {path}: expected a file name that ends in {_CAPTURE_SUFFIX}")
    trace = model.look(line, answer)
    lens.write_capture(
        trace, path, source_tokens=trace.source_tokens or None, target_tokens=trace.target_tokens or None
    )
    click.echo(f"{trace.answer}\nOpen it again: qkv look {path} --html look.html")


def _reopen(path: Path, page: Path) -> None:
    """Write the page about a capture, which is verified first."""
    from dataclasses import replace

    from qkv import lens, view

    found = lens.read_capture(path)
    trace = replace(found.trace, source_tokens=found.source_tokens or (), target_tokens=found.target_tokens or ())
    view.write_html(trace, page, title=path.name)
    click.echo(f"Look inside: {page}")


def write_page(models: Sequence[tuple[str, TaskModel]], line: str, page: Path, answer: str | None = None) -> str:
    """Write the page about one answer of a model, or of two side by side, and return the answers."""
    from qkv import view

    _warn_of_long_text(models, line, answer)
    runs = [view.build_run(runner, line, answer, name=name) for name, runner in models]
    _warn_of_truncation(models, line)
    view.write_html(runs, page)
    return "\n".join(_label_answers(models, [run.answer for run in runs]))


def _label_answers(models: Sequence[tuple[str, TaskModel]], answers: Sequence[str]) -> Iterator[str]:
    """Yield the answer of each model, of several with its name."""
    for (name, _), answer in zip(models, answers, strict=True):
        yield answer if len(models) == 1 else f"{name}: {answer}"


def _serve(models: Sequence[tuple[str, TaskModel]], line: str, answer: str | None, port: int) -> None:
    """Serve the page until Ctrl-C."""
    from qkv import view

    _warn_of_long_text(models, line, answer)
    session = view.Session(models, line, answer)
    server = view.Server(session, port)
    _warn_of_truncation(models, line)
    for answer in _label_answers(models, [run.answer for run in session.runs]):
        click.echo(answer)
    # A KeyboardInterrupt is lost where it meets a callback that may raise nothing, such as a collector's: stop instead.
    before = {
        number: signal.signal(number, lambda *_: threading.Thread(target=server.stop).start())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        click.echo(f"Look inside: {server.url}\nCtrl-C ends it.")
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _warn_of_long_text(models: Sequence[tuple[str, TaskModel]], line: str, answer: str | None) -> None:
    """Print a note on the length of a text whose statistics take minutes."""
    from qkv import view

    for name, runner in models:
        ids = view.encode_long_text(runner, line) if answer is None else None
        if ids is not None and len(ids) > _SLOW_TOKENS:
            click.echo(
                f"{name} reads {len(ids):,} tokens, and {len(ids) ** 2:,} weights of a head are gone through: this "
                "takes a while, four times as long for twice the tokens.",
                err=True,
            )


def _warn_of_truncation(models: Sequence[tuple[str, TaskModel]], line: str) -> None:
    """Print a note on how much of a line was truncated."""
    for name, runner in models:
        if n_truncated := runner.n_truncated(line):
            click.echo(
                f"Note: {name} does not read all of the text, which is {n_truncated:,} tokens too long.", err=True
            )


def _plot_words(runner: TaskModel, line: str, answer: str | None, path: Path) -> None:
    """Draw the audio file that a line names, and the time of each word of the answer."""
    from qkv import tasks, view

    features = runner.audio_features
    if features is None or "word_times" not in runner.capabilities:
        raise DataError(f"--plot-words {path} was given; it needs a model that transcribes speech: leave it out")
    looked = runner.look(line, answer)
    assert isinstance(looked.input, tasks.AudioInput)
    samples = looked.input.samples
    view.plot_words(samples, features.sample_rate, features(samples), looked.word_times, path, line)
