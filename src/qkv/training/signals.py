"""Handle Ctrl-C and SIGTERM: the training loop stops after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from qkv.training.reporters import Reporter


@contextmanager
def handle_interrupts(reporter: Reporter) -> Iterator[threading.Event]:
    """Set an event at the first SIGINT or SIGTERM, which the loop checks after each step; a second one acts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)
        reporter.message(
            "Stopping after this step and saving the run. Press Ctrl-C again to stop at once, without saving."
        )

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
