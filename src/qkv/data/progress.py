"""A line on the terminal that shows the progress of long reading."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_QUIET = 2.0  # seconds before anything is shown
_REDRAW, _REPEAT = 0.5, 10.0  # seconds between lines on a terminal, which are redrawn, and elsewhere
_STRIDE = 2048  # items between two looks at the clock

Item = TypeVar("Item")


def track(items: Iterable[Item], what: str) -> Iterator[Item]:
    """Yield the items and, after two seconds, print their number so far to standard error.

    what: the description of the work, such as "reading pairs.tsv".
    """
    started = shown = time.monotonic()
    is_terminal, count, was_shown = sys.stderr.isatty(), 0, False
    for item in items:
        yield item
        count += 1
        if count % _STRIDE:
            continue
        now = time.monotonic()
        if now - started >= _QUIET and now - shown >= (_REDRAW if is_terminal else _REPEAT if was_shown else 0.0):
            end = "\r" if is_terminal else "\n"
            print(f"{what}: {count:,} so far, {now - started:.0f} s", end=end, file=sys.stderr, flush=True)
            shown, was_shown = now, True
    if was_shown and is_terminal:
        print("\033[2K", end="\r", file=sys.stderr, flush=True)
