"""qkv run, qkv evaluate, qkv look: what a trained model is asked."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qkv.errors import DataError

if TYPE_CHECKING:
    from qkv.tasks import Answer, Numbers, Opened


_SLOW = 2**15  # tokens of a text that is looked at, beyond which it is said that this takes a while

_beam = click.option("--beam", type=click.IntRange(min=1), help="Hypotheses to follow at a time; 1 is greedy.")


_numbers = click.option(
    "--numbers",
    type=click.Choice(["blocks", "float32", "bfloat16", "int8", "stored"]),
    default="float32",
    help="How parameters are kept. Of published checkpoints alone: blocks (float32, but GGUF's stay) and stored.",
)
_legacy = click.option("--legacy", is_flag=True, help="Open files of torch.save, which are pickles, of a publisher.")


@click.command()
@click.argument("model")
@click.argument("text", nargs=-1)
@_beam
@click.option("--n-best", type=click.IntRange(min=1), help="Answers to each line, best first, with tabs between them.")
@click.option("--json", "as_json", is_flag=True, help="Write each line's answers as JSON, with their scores.")
@click.option("--must", multiple=True, metavar="PHRASE", help="What every answer has to hold.")
@click.option("--never", multiple=True, metavar="PHRASE", help="What no answer may hold.")
@click.option(
    "--terms",
    type=click.Path(path_type=Path),
    help="A glossary, a term and a tab and its translation a line: answers to lines with the one hold the other.",
)
@click.option("--placeholders", is_flag=True, help="Keep {name}, %s, ${x} and the like as they are in the line.")
@click.option("--tags", is_flag=True, help="Put <b>tags</b> of a line around the same words of its answer.")
@click.option("--before", default="", metavar="TEXT", help="Put this before every line, such as <2de>.")
@_numbers
@_legacy
def run(
    model: str,
    text: tuple[str, ...],
    beam: int | None,
    n_best: int | None,
    as_json: bool,
    must: tuple[str, ...],
    never: tuple[str, ...],
    terms: Path | None,
    placeholders: bool,
    tags: bool,
    before: str,
    numbers: Numbers,
    legacy: bool,
) -> None:
    """Answer each TEXT or line of standard input.

    One line in, one line out, in order, whatever the options.
    """
    from qkv import tasks
    from qkv.data import reading

    glossary = () if terms is None else tuple(reading.Tsv(terms))
    wanted = tasks.Wanted(must, never, glossary, placeholders)
    runner = tasks.load(model, numbers=numbers, legacy=legacy)
    if (wanted or tags) and not isinstance(runner, tasks.Runner):
        raise DataError("phrases, placeholders or tags were given; they are for models that answer in words")
    decoding = tasks.with_method(runner.decoding, beam=beam, n_best=n_best)
    strange: dict[str, None] = {}
    unread: list[int] = []
    unled: list[str] = []
    wrong: list[DataError] = []
    missed: list[str] = []

    def noting(lines: Iterable[str]) -> Iterator[str]:
        """End at a line that cannot be answered, so that what came before it is answered first."""
        try:
            for given in lines:
                line = tasks.led(given, before)
                bare = tasks.without_tags(line) if tags else line
                runner.read([bare], next(number))
                wanted.of(bare)
                strange.update(dict.fromkeys(runner.unknown(bare)))
                unread.extend(filter(None, [runner.unread(bare)]))
                if isinstance(runner, tasks.Runner) and runner.unled(bare):
                    unled.append(bare)
                asked.append(bare)
                yield line
        except DataError as error:
            wrong.append(error)

    def answered(lines: Iterable[str]) -> Iterator[list[Answer]]:
        if not isinstance(runner, tasks.Runner):
            return runner.run(lines, decoding)
        if tags:
            return tasks.answer_marked(runner, lines, decoding, wanted)
        return runner.run(lines, decoding, wanted=wanted)

    number = itertools.count()
    for batch in [text] if text else _batches():
        asked: list[str] = []
        for answers, line in zip(answered(noting(batch)), asked, strict=False):
            answer = tasks.without_tags(answers[0].text) if tags else answers[0].text
            if line.strip() and (problems := wanted.of(line).missed(answer)):
                missed.append(f"{line[:40]!r}: {', '.join(problems)}")
            click.echo(_json(answers) if as_json else "\t".join(_line(answer) for answer in answers))
        if wrong:
            break
    for note in _notes(runner, list(strange), unread, unled, missed):
        click.echo(f"Note: {note}", err=True)
    if wrong:
        raise wrong[0]


def _notes(runner: Opened, strange: list[str], unread: list[int], unled: list[str], missed: list[str]) -> Iterator[str]:
    """What is to be said of the lines that were answered."""
    from qkv import tasks

    if strange:
        shown = ", ".join(map(ascii if not sys.stderr.isatty() else repr, strange[:10]))
        yield f"the model does not know {shown}; answers to lines with these are guesses."
    if unread:
        yield (
            f"{len(unread):,} of the lines are longer than the model reads; {sum(unread):,} tokens at their ends were "
            "not read."
        )
    if unled and isinstance(runner, tasks.Runner):
        yield (
            f"{len(unled):,} of the lines begin with none of {', '.join(runner.led_by)}, by which this model is told "
            f"what to answer, such as {unled[0][:40]!r}: give one with --before."
        )
    if missed:
        yield f"{len(missed):,} answers do not keep to what was asked for, such as {missed[0]}."


@click.command()
@click.argument("model")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--corpus", help="A named corpus (see `qkv data list`), in place of files.")
@click.option(
    "--with",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the corpus, as in --with split=valid; of a model that acts, --with episodes=100 or --with seed=1.",
)
@_beam
@click.option("--multi-bleu", metavar="LANGUAGE", help="Also score as multi-bleu.perl on lower-cased Moses tokens.")
@click.option("--baselines", is_flag=True, help="Of summaries: also score the first sentence, and the best one.")
@click.option("--answers", type=click.Path(path_type=Path), help="Write the answers to this file, one a line.")
@click.option("--plot", type=click.Path(path_type=Path), help="Of a model that acts: draw what it achieved (SVG).")
@_numbers
@_legacy
def evaluate(
    model: str,
    paths: tuple[Path, ...],
    corpus: str | None,
    options: tuple[str, ...],
    beam: int | None,
    multi_bleu: str | None,
    baselines: bool,
    answers: Path | None,
    plot: Path | None,
    numbers: Numbers,
    legacy: bool,
) -> None:
    """Score MODEL on held-out examples.

    PATHS is one file of pairs (.tsv, .jsonl, .gz of these), or two files with the same number of lines. For a language
    model, all other files and folders are texts, and each line of a .jsonl with a field `text`: it is told how well it
    foretells them. For a model that sees: a folder with one for each class, an .npz or Parquet file, or two IDX files.
    For one that compares images with texts, the same, or a .tsv of an image, the right text and others a line.
    For a model that hears, it is one manifest of recordings, a folder or an .npz file.
    For a model that acts, PATHS are the returns to ask it for, such as 100 200 500.
    """
    from qkv import evaluation, tasks, view

    if corpus is not None and paths:
        tasks.origin_of(paths, corpus, options)  # refuses both, before a model is opened
    runner = tasks.load(model, numbers=numbers, legacy=legacy)
    if isinstance(runner, tasks.Agent):
        if corpus or beam or multi_bleu or answers:
            raise DataError(
                "a model that acts is asked for returns; leave --corpus, --beam, --multi-bleu, --answers out"
            )
        asked, told = tasks.asked_of(paths, options)
        playing = tasks.measure(runner, asked, **told)
        click.echo(playing)
        if plot is not None:
            view.achieved(playing, plot)
        return
    if plot is not None:
        raise DataError("--plot was given; it draws what a model that acts achieved, and this one answers lines")
    if tasks.heard_by(runner) is not None:
        if multi_bleu or baselines:
            raise DataError("--multi-bleu or --baselines was given; they are for texts, and this model hears")
        found = tasks.recordings_of(paths, corpus, options)
        heard = tasks.evaluate_recordings(runner, found, tasks.with_method(runner.decoding, beam=beam))
        click.echo(heard)
        _write_answers(heard.answers, answers)
        return
    if runner.task.name == "continue" and (texts := tasks.texts_of(paths, corpus, options)) is not None:
        if beam or multi_bleu or baselines or answers:
            raise DataError(
                "--beam, --multi-bleu, --baselines or --answers were given; a text that is read has no answers"
            )
        click.echo(tasks.read_texts(runner, texts))
        return
    pairs = tasks.choices_of(paths, corpus, options) if isinstance(runner, tasks.Matcher) else None
    if isinstance(runner, tasks.Predictor) and runner.sees:
        pairs = tasks.pictures_of(paths, corpus, options, runner.labels)
    if pairs is None:
        pairs = tasks.pairs_of([tasks.origin_of(paths, corpus, options)], runner.task)
    report = tasks.evaluate(runner, pairs, tasks.with_method(runner.decoding, beam=beam), baselines=baselines)
    click.echo(report)
    _write_answers(report.answers, answers)
    if multi_bleu:
        single = [own[0] for own in report.references]
        click.echo(evaluation.multi_bleu(report.answers, single, multi_bleu))


@click.command()
@click.argument("model")
@click.argument("text", required=False)
@click.option("--answer", help="Look at how the model reads this answer, in place of its own.")
@click.option("--beside", metavar="MODEL", help="Show a second model, or another checkpoint of it, beside the first.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="The page to write: one file, for any browser.")
@click.option(
    "--words", type=click.Path(path_type=Path), help="Of a sound: a picture (.svg) of when each word is said."
)
@click.option("--serve", is_flag=True, help="Answer what is asked and changed on the page, on this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where to serve; any free port unless given.")
@_numbers
@_legacy
def look(
    model: str,
    text: str | None,
    answer: str | None,
    beside: str | None,
    page: Path | None,
    words: Path | None,
    serve: bool,
    port: int,
    numbers: Numbers,
    legacy: bool,
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
    runners = [(name, tasks.load(name, numbers=numbers, legacy=legacy)) for name in (model, beside) if name is not None]
    line = click.prompt("What shall it read") if text is None else sys.stdin.read() if text == "-" else text
    if words is not None:
        _draw_words(runners[0][1], line, answer, words)
    if page is not None:
        click.echo(f"{write_page(runners, line, page, answer)}\nLook inside: {page}")
    else:
        _serve(runners, line, answer, port)


def write_page(runners: Sequence[tuple[str, Opened]], line: str, page: Path, answer: str | None = None) -> str:
    """Write the page about one answer of a model, or of two side by side, and return the answers."""
    from qkv import view

    _tell_long(runners, line, answer)
    runs = [view.seen(runner, line, answer, name=name) for name, runner in runners]
    _tell_unread(runners, line)
    view.page(view.shown(runs, line), page)
    return "\n".join(_told(runners, [run.answer for run in runs]))


def _told(runners: Sequence[tuple[str, Opened]], answers: Sequence[str]) -> Iterator[str]:
    """Yield the answer of each model, of several with its name."""
    for (name, _), answer in zip(runners, answers, strict=True):
        yield answer if len(runners) == 1 else f"{name}: {answer}"


def _serve(runners: Sequence[tuple[str, Opened]], line: str, answer: str | None, port: int) -> None:
    """Serve the page until Ctrl-C."""
    from qkv import view

    _tell_long(runners, line, answer)
    session = view.Session(runners, line, answer)
    server = view.Server(session, port)
    _tell_unread(runners, line)
    for answer in _told(runners, [run.answer for run in session.runs]):
        click.echo(answer)
    # A KeyboardInterrupt is lost where it meets a callback that may raise nothing, such as a collector's: stop instead.
    before = {
        number: signal.signal(number, lambda *_: threading.Thread(target=server.stop).start())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        click.echo(f"Look inside: {server.address}\nCtrl-C ends it.")
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _tell_long(runners: Sequence[tuple[str, Opened]], line: str, answer: str | None) -> None:
    """Say of a text whose weights are counted for minutes how long it is."""
    from qkv import view

    for name, runner in runners:
        ids = view.long_text(runner, line) if answer is None else None
        if ids is not None and len(ids) > _SLOW:
            click.echo(
                f"{name} reads {len(ids):,} tokens, and {len(ids) ** 2:,} weights of a head are gone through: this "
                "takes a while, four times as long for twice the tokens.",
                err=True,
            )


def _tell_unread(runners: Sequence[tuple[str, Opened]], line: str) -> None:
    """Say how much of a line that is longer than a model reads was left out."""
    for name, runner in runners:
        if unread := runner.unread(line):
            click.echo(f"Note: {name} does not read all of the text, which is {unread:,} tokens too long.", err=True)


def _draw_words(runner: Opened, line: str, answer: str | None, path: Path) -> None:
    """Draw the sound that a line names, and when each word of the answer was said."""
    from qkv import tasks, view

    features = tasks.heard_by(runner) if isinstance(runner, tasks.Runner) else None
    if features is None or not isinstance(runner, tasks.Runner) or runner.hearing is None:
        raise DataError(f"--words {path} was given; this model writes down no sounds: leave it out")
    looked = runner.look(line, answer)
    assert isinstance(looked.perceived, tasks.Sound)
    samples = looked.perceived.samples
    view.draw_sound(samples, features.rate, runner.hearing.frames(samples)[0], looked.words, path, line)


def _write_answers(answers: list[str], path: Path | None) -> None:
    from qkv.training.checkpoint import replacing

    if path is not None:
        with replacing(path) as part:
            part.write_text("".join(f"{answer}\n" for answer in answers), encoding="utf-8")


def _batches() -> Iterator[Iterable[str]]:
    """The standard input: all of it at once from a file or pipe, line by line from a keyboard."""
    from qkv.data.reading import lines_of

    lines = lines_of(sys.stdin.buffer, "standard input")
    if sys.stdin.isatty():
        yield from ([line] for line in lines)
    else:
        yield lines


def _line(answer: Answer) -> str:
    return " ".join(answer.text.splitlines())


def _json(answers: list[Answer]) -> str:
    return json.dumps([asdict(answer) for answer in answers], ensure_ascii=False)
