"""Ctrl-C and its like, turned into a wish that the training loop honours between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from qkv.training.reporters import Reporter


@contextmanager
def handle_interrupts(reporter: Reporter) -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event that the loop looks at; a second one acts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals belong to the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)
        reporter.message("Stopping after this step and saving; once more to stop at once, without saving.")

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
