"""What every score is, and what all of them check first."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qkv.errors import DataError, MissingExtraError


@dataclass(frozen=True)
class Score:
    """A number, what it is called, and the signature that says how it was counted."""

    name: str
    value: float
    signature: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value:.{2 if abs(self.value) >= 10 else 3}f} [{self.signature}]"


def check_paired(hypotheses: Sequence[Any], references: Sequence[Any]) -> None:
    """Raise DataError unless there is one hypothesis for each reference, and at least one."""
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise DataError("a single string was given; a list of lines was expected: put it in a list")
    if len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} hypotheses and {len(references)} references were given; one hypothesis for each "
            "reference was expected: score the output of the same lines, in the same order"
        )
    if not hypotheses:
        raise DataError("no hypotheses were given; at least one line was expected: nothing can be scored")


def import_library(name: str) -> Any:
    """Import a scoring library. Raises MissingExtraError naming the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"this score needs {name}, which is not installed; install it with: pip install 'qkv[evaluate]'"
        ) from error
