"""Handle Ctrl-C, SIGTERM and SIGHUP: the training loop stops after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from qkv.training.reporters import Reporter


class Interruption(threading.Event):
    """An event that knows by which signal it was set.

    number: the number of the signal.
    """

    number: int | None = None


@contextmanager
def handle_interrupts(reporter: Reporter) -> Iterator[Interruption]:
    """Set an event at the first of these signals, which the loop checks after each step; a second one acts at once.

    A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """
    event = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    before = {number: signal.getsignal(number) for number in (signal.Signals[name] for name in names)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def handle(number: int, frame: FrameType | None) -> None:
        event.number = number
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
