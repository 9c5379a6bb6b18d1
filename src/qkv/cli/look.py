"""qkv look: what led to an answer, on a page."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qkv.errors import DataError

if TYPE_CHECKING:
    from qkv.tasks import Dtype, TaskModel

from qkv.cli.options import allow_pickle_option, dtype_option

_SLOW_TOKENS = 2**15  # tokens of a text that is looked at, beyond which it is said that this takes a while


@click.command()
@click.argument("model")
@click.argument("text", required=False)
@click.option("--answer", help="Look at how the model reads this answer, in place of its own.")
@click.option("--beside", metavar="MODEL", help="Show a second model, or another checkpoint of it, beside the first.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="The page to write: one file, for any browser.")
@click.option(
    "--plot-words", type=click.Path(path_type=Path), help="Of a sound: a picture (.svg) of when each word is said."
)
@click.option("--serve", is_flag=True, help="Answer what is asked and changed on the page, on this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where to serve; any free port unless given.")
@dtype_option
@allow_pickle_option
def look(
    model: str,
    text: str | None,
    answer: str | None,
    beside: str | None,
    page: Path | None,
    plot_words: Path | None,
    serve: bool,
    port: int,
    dtype: Dtype,
    allow_pickle: bool,
) -> None:
    """Show what led to an answer: on a page in a file (--html), or on one that you can ask and change (--serve).

    It shows the query, key, value, scores, weights and context of every attention, and needs no network. TEXT is what
    the model reads; - takes it from standard input.
    """
    from qkv import tasks

    if serve == (page is not None):
        raise click.UsageError("give one of --html FILE and --serve: a file to keep, or a page that answers")
    if text is None and not serve:
        raise click.UsageError("Missing argument 'TEXT': what shall the model read?")
    runners = [
        (name, tasks.load(name, dtype=dtype, allow_pickle=allow_pickle)) for name in (model, beside) if name is not None
    ]
    line = click.prompt("What shall it read") if text is None else sys.stdin.read() if text == "-" else text
    if plot_words is not None:
        _plot_words(runners[0][1], line, answer, plot_words)
    if page is not None:
        click.echo(f"{write_page(runners, line, page, answer)}\nLook inside: {page}")
    else:
        _serve(runners, line, answer, port)


def write_page(models: Sequence[tuple[str, TaskModel]], line: str, page: Path, answer: str | None = None) -> str:
    """Write the page about one answer of a model, or of two side by side, and return the answers."""
    from qkv import view

    _warn_of_long_text(models, line, answer)
    runs = [view.build_run(runner, line, answer, name=name) for name, runner in models]
    _warn_of_truncation(models, line)
    view.write_html(view.build_document(runs, line), page)
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
    """Say of a text whose weights are counted for minutes how long it is."""
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
    """Say how much of a line that is longer than a model reads was left out."""
    for name, runner in models:
        if unread := runner.n_truncated(line):
            click.echo(f"Note: {name} does not read all of the text, which is {unread:,} tokens too long.", err=True)


def _plot_words(runner: TaskModel, line: str, answer: str | None, path: Path) -> None:
    """Draw the sound that a line names, and when each word of the answer was said."""
    from qkv import tasks, view

    features = runner.audio_features
    if features is None or "word_times" not in runner.capabilities:
        raise DataError(f"--plot-words {path} was given; it needs a model that transcribes speech: leave it out")
    looked = runner.look(line, answer)
    assert isinstance(looked.input, tasks.AudioInput)
    samples = looked.input.samples
    view.plot_words(samples, features.sample_rate, features(samples), looked.word_times, path, line)
