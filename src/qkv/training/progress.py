"""What a run shows and writes while it goes: a live display or plain lines, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from qkv.errors import MissingExtraError, StorageError
from qkv.training.checkpoint import replacing
from qkv.training.standing import Standing

_BAR = 20  # characters


@dataclass(frozen=True)
class Record:
    """A stretch of training: where it ended and its means. Times in seconds, losses in nats per target token.

    `loss` is what is optimised, label smoothing included; `cross_entropy` is without, as validation has it.
    `padding` is the fraction of places in the batches that held no token; `left` the seconds until the end.
    """

    step: int
    epoch: float
    progress: float
    loss: float
    cross_entropy: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    padding: float
    seconds: float
    left: float


@dataclass
class Window:
    """Sums over the steps since the last record; a checkpoint keeps them, so that resuming leaves no gap."""

    steps: int = 0
    tokens: int = 0
    places: int = 0
    filled: int = 0
    loss: float = 0.0
    cross_entropy: float = 0.0
    norm: float = 0.0
    rate: float = 0.0
    seconds: float = 0.0

    def add(
        self,
        batches: Sequence[Any],
        tokens: int,
        loss: float,
        cross_entropy: float,
        norm: float,
        rate: float,
        seconds: float,
    ) -> None:
        """Take in a step: its batches, their target tokens, mean losses, gradient norm, learning rate and seconds."""
        self.steps += 1
        self.tokens += tokens
        self.filled += tokens
        for batch in batches:
            self.places += batch.labelled
            if batch.source_mask is not None:
                self.places += batch.source_mask.numel()
                self.filled += int(batch.source_mask.count_nonzero())
        self.loss += loss * tokens
        self.cross_entropy += cross_entropy * tokens
        self.norm = max(self.norm, norm)
        self.rate = rate
        self.seconds += seconds

    def record(self, standing: Standing, progress: float, examples: int) -> Record | None:
        """Return the means, or None if there was no step."""
        if not self.steps:
            return None
        return Record(
            step=standing.step,
            epoch=standing.examples / examples,
            progress=progress,
            loss=self.loss / max(self.tokens, 1),
            cross_entropy=self.cross_entropy / max(self.tokens, 1),
            learning_rate=self.rate,
            gradient_norm=self.norm,
            tokens_per_second=self.tokens / max(self.seconds, 1e-9),
            padding=1.0 - self.filled / max(self.places, 1),
            seconds=standing.seconds,
            left=standing.seconds * (1.0 - progress) / max(progress, 1e-9),
        )


class Display(Protocol):
    """What the trainer tells while it trains."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def tick(self, step: int, progress: float) -> None:
        """A step is done; called after each, so it must cost nearly nothing."""

    def record(self, record: Record) -> None:
        """A stretch of `log_every` steps is done."""

    def validated(self, step: int, metrics: Mapping[str, float], samples: Sequence[str], best: bool) -> None:
        """The model was validated."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Silent:
    """Shows nothing; the base of the displays that do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def tick(self, step: int, progress: float) -> None:
        """See Display."""

    def record(self, record: Record) -> None:
        """See Display."""

    def validated(self, step: int, metrics: Mapping[str, float], samples: Sequence[str], best: bool) -> None:
        """See Display."""

    def note(self, text: str) -> None:
        """See Display."""


class Lines(Silent):
    """Plain lines, at most one per `every` seconds beside validations: for logs and pipes."""

    def __init__(self, stream: TextIO, every: float = 10.0) -> None:
        self.stream = stream
        self.every = every
        self._next = 0.0

    def record(self, record: Record) -> None:
        """Print one line if the last one is long enough ago."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.every
            self._print(" · ".join(f"{name} {value}" for name, value in _words(record)))

    def validated(self, step: int, metrics: Mapping[str, float], samples: Sequence[str], best: bool) -> None:
        """Print the metrics and the samples."""
        self._print(_verdict(step, metrics, best))
        for sample in samples:
            self._print(f"    {sample}")

    def note(self, text: str) -> None:
        """Print the text."""
        self._print(text)

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class LiveDisplay(Lines):
    """One line with a bar and the newest numbers that stays at the bottom of a terminal; all else scrolls above it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, every=0.0)
        self._line = self._numbers = ""
        self._drawn = 0.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line:
            self._draw(self._line)
            print(file=self.stream)

    def tick(self, step: int, progress: float) -> None:
        """Redraw, twice a second."""
        filled = round(progress * _BAR)
        self._line = f"{progress:6.1%} [{'#' * filled:.<{_BAR}}] step {step:,}{self._numbers}"
        now = time.monotonic()
        if now - self._drawn >= 0.5:
            self._drawn = now
            self._draw(self._line)

    def record(self, record: Record) -> None:
        """Keep the numbers for the next redrawing, the most wanted first: a narrow terminal cuts off the rest."""
        numbers = dict(_words(record))
        wanted = (
            *("loss", "targets/s", "padding", "left", "epoch"),
            *("cross entropy", "time", "learning rate", "gradient"),
        )
        self._numbers = "".join(f" · {name} {numbers[name]}" for name in wanted)

    def _draw(self, line: str) -> None:
        """Put the line in the place of the one before."""
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80  # some terminals say 0
        except OSError:
            columns = 80
        width = columns - 1  # a line that fills the last column would wrap
        print(f"\r{line[:width]:{width}}\r", end="", file=self.stream, flush=True)

    def _print(self, text: str) -> None:
        self._draw("")
        super()._print(text)
        self._draw(self._line)


def display() -> Display:
    """Return the live display on a terminal, plain lines elsewhere; both on the standard error."""
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return LiveDisplay(sys.stderr) if live else Lines(sys.stderr)


def duration(seconds: float) -> str:
    """Return seconds in the form 1:02:03 or 2:03."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _words(record: Record) -> list[tuple[str, str]]:
    return [
        ("step", f"{record.step:,}"),
        ("epoch", f"{record.epoch:.2f}"),
        ("loss", f"{record.loss:.4f}"),
        ("cross entropy", f"{record.cross_entropy:.4f}"),
        ("targets/s", f"{record.tokens_per_second:,.0f}"),
        ("padding", f"{record.padding:.1%}"),
        ("learning rate", f"{record.learning_rate:.2e}"),
        ("gradient", f"{record.gradient_norm:.2f}"),
        ("time", duration(record.seconds)),
        ("left", duration(record.left)),
    ]


def _verdict(step: int, metrics: Mapping[str, float], best: bool) -> str:
    numbers = " · ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return f"validation at step {step:,}: {numbers}{'  (best so far)' if best else ''}"


class Metrics:
    """metrics.jsonl: one JSON object a line, `kind` "training" or "validation", in the order of steps."""

    def __init__(self, path: Path, *, upto: int, tensorboard: Path | None = None) -> None:
        """Open to append after dropping every line later than step `upto` (a resumed run writes them again)."""
        self._board = _tensorboard(tensorboard, upto) if tensorboard else None
        lines = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= upto:
                        lines.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # the half line of a run that was killed while it wrote
        with replacing(path) as part:
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def training(self, record: Record) -> None:
        """Append a stretch of training."""
        self._write("training", record.step, {k: v for k, v in asdict(record).items() if k != "step"})

    def validation(self, step: int, metrics: Mapping[str, float], samples: Sequence[str]) -> None:
        """Append a validation; TensorBoard gets the numbers alone."""
        self._write("validation", step, {**metrics, "samples": list(samples)})

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"{self.path} could not be written: {error}. Expected room on the disk. The last checkpoint is whole: "
                "free some space and resume."
            ) from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)


def _tensorboard(folder: Path, upto: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "saving.tensorboard is on, but the package tensorboard is not installed. Install it with "
            '`pip install "qkv[tensorboard]"`, or turn the option off: metrics.jsonl holds the same numbers.'
        ) from error
    return SummaryWriter(log_dir=str(folder), purge_step=upto + 1)
