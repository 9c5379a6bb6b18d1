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
    help="For a corpus, as in --option split=valid; for an agent, --option episodes=100 or --option seed=1.",
)
@beam_option
@click.option("--multi-bleu", metavar="LANGUAGE", help="Also score as multi-bleu.perl on lower-cased Moses tokens.")
@click.option("--baselines", is_flag=True, help="For summaries: also score the first sentence and the best one.")
@click.option("--answers", type=click.Path(path_type=Path), help="Write the answers to this file, one per line.")
@click.option(
    "--plot-returns", type=click.Path(path_type=Path), help="For an agent: draw the returns that it achieved (SVG)."
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
    model, any other files and folders are texts, as is each line of a .jsonl file with a field `text`: the perplexity
    of these is measured. For a model of images: a folder with one folder per class, an .npz or Parquet file, or two IDX
    files. For a model that matches images with texts: the same, or a .tsv file with an image, the right text and
    others on each line. For a model of speech: a manifest of recordings, a folder or an .npz file. For an agent: the
    returns to ask it for, such as 100 200 500.
    """
    from qkv import evaluation, tasks, view
    from qkv.tasks.evaluator import load_examples

    if corpus is not None and paths:
        tasks.parse_data_source(paths, corpus, options)  # refuses both, before a model is opened
    runner = tasks.load(model, dtype=dtype, allow_pickle=allow_pickle)
    if "rollout" in runner.capabilities:
        if corpus or beam or multi_bleu or answers:
            raise DataError(
                "--corpus, --beam, --multi-bleu or --answers was given; an agent is asked for returns: leave them out"
            )
        returns, rollout_options = tasks.parse_evaluation_options(paths, options)
        rollouts = tasks.evaluate(runner, returns, **rollout_options)
        click.echo(rollouts)
        if plot_returns is not None:
            view.plot_returns(rollouts, plot_returns)
        return
    if plot_returns is not None:
        raise DataError("--plot-returns was given; it draws the returns of an agent, and this model answers lines")
    if runner.audio_features is not None and (multi_bleu or baselines):
        raise DataError("--multi-bleu or --baselines was given; they are for texts, and this model reads audio")
    examples: Any = load_examples(runner, paths, corpus, options)
    if examples and isinstance(examples[0], str):
        if beam or multi_bleu or baselines or answers:
            raise DataError(
                "--beam, --multi-bleu, --baselines or --answers was given; the perplexity of a text has no answers"
            )
        click.echo(tasks.evaluate(runner, examples))
        return
    decoding = tasks.override_method(runner.decoding, beam=beam)
    report = tasks.evaluate(runner, examples, decoding, **({"baselines": True} if baselines else {}))
    click.echo(report)
    _write_answers(report.answers, answers)
    if multi_bleu:
        single = [own[0] for own in report.references]
        click.echo(evaluation.multi_bleu(report.answers, single, multi_bleu))


def _write_answers(answers: list[str], path: Path | None) -> None:
    from qkv.data.text.pairs import to_single_line
    from qkv.files import atomic_write

    if path is not None:
        with atomic_write(path) as part:
            part.write_text(
                "".join(f"{to_single_line(answer)}\n" for answer in answers), encoding="utf-8", newline="\n"
            )
