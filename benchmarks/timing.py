"""How the benchmarks measure: variants take turns in one process, and are compared round by round.

A busy machine slows all variants of a round alike, so a ratio is taken within each round, and its median reported
with the range. With one thread the clock is the processor time of this process, which leaves out what other
processes take; with more it is the wall clock, because waiting threads spin.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

Seconds = dict[str, list[float]]
"""Of every variant, what each round took."""


def build_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each variant has its turn (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    return parser


def set_up(options: argparse.Namespace) -> None:
    """Set the threads and the seed, and print where and how this is measured."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cpu = next(
        (line.split(":")[1].strip() for line in _read_cpuinfo() if line.startswith("model name")), platform.machine()
    )
    clock = "processor time" if options.threads == 1 else "wall time"
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    print(f"`{command}`\n")
    print(
        f"{cpu}, {os.cpu_count()} processors, torch {torch.__version__}, {options.threads} thread(s), {clock}; "
        f"medians of {options.rounds} rounds, with the range of the ratio.\n"
    )


def _read_cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def take_turns(variants: Mapping[str, Callable[[], object]], options: argparse.Namespace) -> Seconds:
    """Run every variant once unmeasured and then once a round, each round beginning with the next variant."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    names, seconds = list(variants), {name: [0.0] * options.rounds for name in variants}
    for variant in variants.values():
        variant()
    for turn in range(options.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = clock()
            variants[name]()
            seconds[name][turn] = clock() - started
    return seconds


def measure_memory(run: Callable[[], object]) -> float:
    """Bytes that a run takes at most beyond what the process had before; NaN where the system (Linux) does not tell."""
    run()  # what is made once, such as threads and code, does not count
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, so that it cannot be taken again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _read_status("VmRSS")
    except (OSError, AttributeError):
        return math.nan
    kept = run()
    peak = _read_status("VmHWM") - before
    del kept
    return peak


def _read_status(name: str) -> float:
    """A size of this process in bytes, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def format_speed_up(seconds: Seconds, name: str, baseline: str) -> str:
    """How many times as fast as `baseline`: the median over rounds, and the least and the greatest."""
    ratios = [theirs / ours for theirs, ours in zip(seconds[baseline], seconds[name], strict=True)]
    return _format_range(ratios)


def format_cost(seconds: Seconds, name: str, baseline: str) -> str:
    """How many times the time of `baseline`: the median over rounds, and the least and the greatest."""
    return format_speed_up(seconds, baseline, name)


def _format_range(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def print_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in Markdown, numbers to the right."""
    print("| " + " | ".join(heads) + " |")
    print("|" + "|".join(" --- " if column == 0 else " ---: " for column in range(len(heads))) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)
