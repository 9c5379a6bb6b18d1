"""The command `qkv`. What it does is in the library; here are names, options, and errors said in one line.

No file of this folder imports torch before a command that needs it runs, so that `qkv --help` answers at once.
"""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Any

import click

from qkv import __version__
from qkv.cli.convert import convert
from qkv.cli.data import data
from qkv.cli.demo import demo
from qkv.cli.describe import describe
from qkv.cli.evaluate import evaluate
from qkv.cli.look import look
from qkv.cli.run import run
from qkv.cli.train import runs, train
from qkv.errors import ConfigError, QkvError

_EXIT_INTERRUPTED = 130  # what a shell gives a program that Ctrl-C ended


class _UserError(click.ClickException):
    """A user's mistake: its message alone, and exit code 2."""

    exit_code = 2


class _ErrorReportingGroup(click.Group):
    """Turns the errors a user can mend into messages."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit code 2 for a user's mistake, 130 for Ctrl-C, 1 when nobody reads the answer."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(_EXIT_INTERRUPTED)
        except (QkvError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click ends without a word
            if ctx.params["debug"]:
                traceback.print_exc()
            raise _UserError(_format_error(error)) from error


@click.group(cls=_ErrorReportingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where an error arose.")
@click.version_option(__version__, prog_name="qkv", message="%(prog)s %(version)s")
def main(debug: bool) -> None:
    """See-through Transformers: train, run and look inside.

    MODEL is the folder of a finished run, or the name of a model that comes along: pronunciation.
    """


def _format_error(error: Exception) -> str:
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        return "\n  ".join([f"{len(error.problems)} problems", *error.problems])
    return str(error)


for _command in (demo, train, runs, run, evaluate, look, convert, data, describe):
    main.add_command(_command)
