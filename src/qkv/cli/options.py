"""Options that several commands share."""

from __future__ import annotations

import click

beam_option = click.option(
    "--beam", type=click.IntRange(min=1), help="Number of hypotheses of the beam search; 1 is greedy."
)


dtype_option = click.option(
    "--dtype",
    type=click.Choice(["blocks", "float32", "bfloat16", "int8", "stored"]),
    default="float32",
    help="Precision of the parameters. Only for published checkpoints: blocks (float32, but GGUF blocks stay) and "
    "stored.",
)


allow_pickle_option = click.option(
    "--allow-pickle", is_flag=True, help="Open files of torch.save, which are pickles; only for a publisher you trust."
)
