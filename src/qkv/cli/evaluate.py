"""qkv evaluate: scores of a model on held-out examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qkv.errors import DataError

if TYPE_CHECKING:
    from qkv.tasks import Dtype

from qkv.cli.options import allow_pickle_option, beam_option, dtype_option


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
@beam_option
@click.option("--multi-bleu", metavar="LANGUAGE", help="Also score as multi-bleu.perl on lower-cased Moses tokens.")
@click.option("--baselines", is_flag=True, help="Of summaries: also score the first sentence, and the best one.")
@click.option("--answers", type=click.Path(path_type=Path), help="Write the answers to this file, one a line.")
@click.option(
    "--plot-returns", type=click.Path(path_type=Path), help="Of a model that acts: draw what it achieved (SVG)."
)
@dtype_option
@allow_pickle_option
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
    runner: Any = tasks.load(model, dtype=dtype, allow_pickle=allow_pickle)
    if "rollout" in runner.capabilities:
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
    if runner.audio_features is not None:
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
    pairs = tasks.load_image_candidates(paths, corpus, options) if "candidates" in runner.capabilities else None
    if "image" in runner.capabilities:
        pairs = tasks.load_image_labels(paths, corpus, options, runner.labels)
    if pairs is None:
        pairs = tasks.prepare_pairs([tasks.parse_data_source(paths, corpus, options)], runner.task)
    report = tasks.evaluate(runner, pairs, tasks.override_method(runner.decoding, beam=beam), baselines=baselines)
    click.echo(report)
    _write_answers(report.answers, answers)
    if multi_bleu:
        single = [own[0] for own in report.references]
        click.echo(evaluation.multi_bleu(report.answers, single, multi_bleu))


def _write_answers(answers: list[str], path: Path | None) -> None:
    from qkv.training.checkpoints import atomic_write

    if path is not None:
        with atomic_write(path) as part:
            part.write_text("".join(f"{answer}\n" for answer in answers), encoding="utf-8")
