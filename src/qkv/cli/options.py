"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    pass


beam_option = click.option("--beam", type=click.IntRange(min=1), help="Hypotheses to follow at a time; 1 is greedy.")


dtype_option = click.option(
    "--dtype",
    type=click.Choice(["blocks", "float32", "bfloat16", "int8", "stored"]),
    default="float32",
    help="How parameters are kept. Of published checkpoints alone: blocks (float32, but GGUF's stay) and stored.",
)


allow_pickle_option = click.option(
    "--allow-pickle", is_flag=True, help="Open files of torch.save, which are pickles, of a publisher."
)
