"""The command `qkv`: it parses arguments, calls the library, and turns errors into messages.

No module of this package imports torch before a command needs it, so that `qkv --help` answers at once.
"""

from __future__ import annotations

import errno
import os
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
from qkv.cli.runs import runs
from qkv.cli.train import train
from qkv.errors import ConfigError, QkvError

_EXIT_INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended


class _UserError(click.ClickException):
    """A user's mistake, of which only the message is printed; exit code 2."""

    exit_code = 2


class _ErrorReportingGroup(click.Group):
    """A group that prints the errors that a user can correct as messages."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command with streams that are open."""
        _open_streams()
        return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit with 2 for a user's mistake, 130 for Ctrl-C, 1 when nobody reads the output."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(_EXIT_INTERRUPTED)
        except (QkvError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click exits without a message
            if ctx.params["debug"]:
                traceback.print_exc()
            raise _UserError(_format_error(error)) from error


@click.group(cls=_ErrorReportingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
@click.version_option(__version__, prog_name="qkv", message="%(prog)s %(version)s")
def main(debug: bool) -> None:
    """Train, run and look inside Transformers.

    MODEL is a model folder, a published checkpoint, or a model that comes with the package: pronunciation, translation.
    """


def _open_streams() -> None:
    """Connect closed standard streams to the null device: otherwise the next file to be opened takes their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open as long as the process)


def _format_error(error: Exception) -> str:
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        return "\n  ".join([f"{len(error.problems)} problems", *error.problems])
    return str(error)


for _command in (demo, train, runs, run, evaluate, look, convert, data, describe):
    main.add_command(_command)
