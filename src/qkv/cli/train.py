"""qkv train: train a model."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

import click

_SEVERAL = ("--valid", "--test")
"""Options that take every word up to the next option or KEY=VALUE."""


class _TrainCommand(click.Command):
    """A command whose --valid and --test take several files, and whose --help lists a recipe's options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat --valid and --test for each of their files, which is what click understands."""
        spread: list[str] = []
        option = ""
        for word in args:
            if word in _SEVERAL:
                option = word
                continue
            if word.startswith("-") or "=" in word:
                option = ""
            spread += [option, word] if option else [word]
        if any(word in ("-h", "--help") for word in spread):
            ctx.meta["recipe"] = next((word for word in spread if not word.startswith("-")), None)
        return super().parse_args(ctx, spread)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options of the recipe that was named before --help."""
        if (name := ctx.meta.get("recipe")) is None:
            return
        from qkv.tasks.recipe_options import list_options
        from qkv.tasks.recipes import read_recipe

        with formatter.section(f"Options of the recipe {name}, changed by KEY=VALUE"):
            formatter.write_dl(
                [
                    (f"{key}={default}", f"{meaning}  [{expected}]".strip())
                    for key, expected, default, meaning in list_options(read_recipe(name))
                ]
            )


@click.command(cls=_TrainCommand)
@click.argument("recipe", required=False)
@click.argument("words", nargs=-1, metavar="[FILE]... [KEY=VALUE]...")
@click.option("--valid", multiple=True, metavar="FILE...", help="Validate on these files, which are not trained on.")
@click.option("--test", multiple=True, metavar="FILE...", help="Check that none of these examples is trained on.")
@click.option("--from", "init_from", metavar="MODEL", help="Fine-tune this model instead of training a new one.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the run here.  [default: runs/RECIPE]")
@click.option("--resume", is_flag=True, help="Continue the run in the folder, from its last checkpoint.")
@click.option("--seed", type=int, help="Seed of the random numbers.")
@click.option("--device", help="Train on this device, such as cpu or cuda.  [default: a GPU if there is one]")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), help="Precision of the matrix products.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that share each step on a CPU.")
@click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after this many minutes.")
@click.option("--tensorboard", is_flag=True, help="Also write the metrics for TensorBoard.")
@click.option("--wandb", is_flag=True, help="Also send the metrics to Weights & Biases.")
@click.option("--show", is_flag=True, help="Print the whole recipe and train nothing.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained on, its size and time, and train nothing.")
def train(recipe: str | None, words: tuple[str, ...], **options: Any) -> None:
    """Train a model.

    RECIPE is a task (translation, pronunciation, summarization, language-modeling, image-classification,
    speech-recognition, audio-classification, decision-transformer), the name of another recipe that comes with the
    package, or a YAML file. Each FILE takes the place of the recipe's own data: two files of lines, one file of pairs
    (.tsv, .csv, .jsonl), a folder of texts or of images. KEY=VALUE changes the recipe, as in training.dropout=0.1.

    \b
    qkv train translation train.en train.de
    qkv train translation train.en train.de --valid valid.en valid.de
    qkv train language-modeling novels --from gpt2 --max-minutes 30
    qkv train --resume runs/translation

    Ctrl-C saves the run and stops it. `qkv train translation --help` lists the options of that recipe.
    """
    from qkv import config, tasks
    from qkv.tasks.own_data import OwnData
    from qkv.tasks.recipes import read_recipe

    folder: Path | None = options["folder"]
    if options["resume"] and recipe is not None and (Path(recipe) / "recipe.yaml").is_file():
        folder, recipe = Path(recipe), str(Path(recipe) / "recipe.yaml")
    if recipe is None:
        raise click.UsageError("Missing argument 'RECIPE': a task, a recipe or a YAML file; or --resume FOLDER.")
    folder = folder or Path("runs") / Path(recipe).stem
    own = OwnData(
        tuple(word for word in words if "=" not in word), options["valid"], options["test"], options["init_from"]
    )
    tree = read_recipe(recipe, [*_assignments(options), *(word for word in words if "=" in word)], own)
    if options["show"]:
        click.echo(config.dump_yaml(config.to_dict(tree)), nl=False)
        return
    if options["dry_run"]:
        from qkv.tasks.dry_run import describe_training

        click.echo(describe_training(tree))
        return
    trained = tasks.train(tree, folder=folder, resume=options["resume"], device=options["device"])
    place = shlex.quote(str(folder))
    if trained.result.stop_reason == "interrupted":
        click.echo(f"The run was saved and stopped. Continue it with: qkv train --resume {place}", err=True)
        raise SystemExit(128 + (trained.result.signal or signal.SIGINT))  # the exit codes of a shell: 130, 143
    click.echo(f"The model is in {folder}. Try: qkv run {place}", err=True)


def _assignments(options: dict[str, Any]) -> list[str]:
    """Return the options of the command that every recipe has, as KEY=VALUE."""
    keys = {
        "seed": "training.seed",
        "dtype": "training.precision",
        "workers": "training.workers",
        "max_minutes": "training.max_minutes",
    }
    given = [f"{key}={options[name]}" for name, key in keys.items() if options[name] is not None]
    return given + [f"training.checkpointing.{name}=true" for name in ("tensorboard", "wandb") if options[name]]
