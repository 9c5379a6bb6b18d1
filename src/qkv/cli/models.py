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
    from qkv.tasks import Answer, Dtype, TaskModel


_SLOW_TOKENS = 2**15  # tokens of a text that is looked at, beyond which it is said that this takes a while

_beam_option = click.option("--beam", type=click.IntRange(min=1), help="Hypotheses to follow at a time; 1 is greedy.")


_dtype_option = click.option(
    "--dtype",
    type=click.Choice(["blocks", "float32", "bfloat16", "int8", "stored"]),
    default="float32",
    help="How parameters are kept. Of published checkpoints alone: blocks (float32, but GGUF's stay) and stored.",
)
_allow_pickle_option = click.option(
    "--allow-pickle", is_flag=True, help="Open files of torch.save, which are pickles, of a publisher."
)


@click.command()
@click.argument("model")
@click.argument("text", nargs=-1)
@_beam_option
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
@_dtype_option
@_allow_pickle_option
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
    if (wanted or tags) and not isinstance(runner, tasks.TextGenerator):
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
                if isinstance(runner, tasks.TextGenerator) and runner.missing_prefix(bare):
                    unled.append(bare)
                asked.append(bare)
                yield line
        except DataError as error:
            wrong.append(error)

    def answered(lines: Iterable[str]) -> Iterator[list[Answer]]:
        if not isinstance(runner, tasks.TextGenerator):
            return runner.predict(lines, decoding)
        if tags:
            return tasks.translate_tagged(runner, lines, decoding, wanted)
        return runner.predict(lines, decoding, constraints=wanted)

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
    from qkv import tasks

    if unknown_symbols:
        shown = ", ".join(map(ascii if not sys.stderr.isatty() else repr, unknown_symbols[:10]))
        yield f"the model does not know {shown}; answers to lines with these are guesses."
    if truncated:
        yield (
            f"{len(truncated):,} of the lines are longer than the model reads; {sum(truncated):,} tokens at their ends were "
            "not read."
        )
    if without_prefix and isinstance(runner, tasks.TextGenerator):
        yield (
            f"{len(without_prefix):,} of the lines begin with none of {', '.join(runner.prefixes)}, by which this model is told "
            f"what to answer, such as {without_prefix[0][:40]!r}: give one with --prefix."
        )
    if violations:
        yield f"{len(violations):,} answers do not keep to what was asked for, such as {violations[0]}."


@click.command()
@click.argument("model")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--corpus", help="A named corpus (see `qkv data list`), in place of files.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the corpus, as in --option split=valid; of a model that acts, --option episodes=100 or --option seed=1.",
)
@_beam_option
@click.option("--multi-bleu", metavar="LANGUAGE", help="Also score as multi-bleu.perl on lower-cased Moses tokens.")
@click.option("--baselines", is_flag=True, help="Of summaries: also score the first sentence, and the best one.")
@click.option("--answers", type=click.Path(path_type=Path), help="Write the answers to this file, one a line.")
@click.option(
    "--plot-returns", type=click.Path(path_type=Path), help="Of a model that acts: draw what it achieved (SVG)."
)
@_dtype_option
@_allow_pickle_option
def evaluate(
    model: str,
    paths: tuple[Path, ...],
    corpus: str | None,
    options: tuple[str, ...],
    beam: int | None,
    multi_bleu: str | None,
    baselines: bool,
    answers: Path | None,
    plot_returns: Path | None,
    dtype: Dtype,
    allow_pickle: bool,
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
        tasks.parse_data_source(paths, corpus, options)  # refuses both, before a model is opened
    runner = tasks.load(model, dtype=dtype, allow_pickle=allow_pickle)
    if isinstance(runner, tasks.DecisionTransformerAgent):
        if corpus or beam or multi_bleu or answers:
            raise DataError(
                "a model that acts is asked for returns; leave --corpus, --beam, --multi-bleu, --answers out"
            )
        asked, told = tasks.parse_evaluation_options(paths, options)
        playing = tasks.evaluate_agent(runner, asked, **told)
        click.echo(playing)
        if plot_returns is not None:
            view.plot_returns(playing, plot_returns)
        return
    if plot_returns is not None:
        raise DataError(
            "--plot-returns was given; it draws what a model that acts achieved, and this one answers lines"
        )
    if tasks.get_audio_features(runner) is not None:
        if multi_bleu or baselines:
            raise DataError("--multi-bleu or --baselines was given; they are for texts, and this model hears")
        found = tasks.load_recordings(paths, corpus, options)
        heard = tasks.evaluate_recordings(runner, found, tasks.override_method(runner.decoding, beam=beam))
        click.echo(heard)
        _write_answers(heard.answers, answers)
        return
    if runner.task.name == "text-generation" and (texts := tasks.load_texts(paths, corpus, options)) is not None:
        if beam or multi_bleu or baselines or answers:
            raise DataError(
                "--beam, --multi-bleu, --baselines or --answers were given; a text that is read has no answers"
            )
        click.echo(tasks.evaluate_perplexity(runner, texts))
        return
    pairs = tasks.load_image_candidates(paths, corpus, options) if isinstance(runner, tasks.ImageTextModel) else None
    if isinstance(runner, tasks.EncoderModel) and runner.is_vision_model:
        pairs = tasks.load_image_labels(paths, corpus, options, runner.labels)
    if pairs is None:
        pairs = tasks.prepare_pairs([tasks.parse_data_source(paths, corpus, options)], runner.task)
    report = tasks.evaluate(runner, pairs, tasks.override_method(runner.decoding, beam=beam), baselines=baselines)
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
    "--plot-words", type=click.Path(path_type=Path), help="Of a sound: a picture (.svg) of when each word is said."
)
@click.option("--serve", is_flag=True, help="Answer what is asked and changed on the page, on this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where to serve; any free port unless given.")
@_dtype_option
@_allow_pickle_option
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

    features = tasks.get_audio_features(runner) if isinstance(runner, tasks.TextGenerator) else None
    if features is None or not isinstance(runner, tasks.TextGenerator) or runner.frontend is None:
        raise DataError(f"--plot-words {path} was given; this model writes down no sounds: leave it out")
    looked = runner.look(line, answer)
    assert isinstance(looked.input, tasks.AudioInput)
    samples = looked.input.samples
    view.plot_words(
        samples, features.sample_rate, runner.frontend.extract_features(samples)[0], looked.word_times, path, line
    )


def _write_answers(answers: list[str], path: Path | None) -> None:
    from qkv.training.checkpoints import atomic_write

    if path is not None:
        with atomic_write(path) as part:
            part.write_text("".join(f"{answer}\n" for answer in answers), encoding="utf-8")


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
