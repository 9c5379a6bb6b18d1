"""Progress of a run: a progress bar or plain lines, metrics.jsonl, TensorBoard and Weights & Biases."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from qkv.errors import MissingExtraError, StorageError
from qkv.files import atomic_write, parse_json, replace_nonfinite
from qkv.training import restore
from qkv.training.state import TrainState

_BAR_WIDTH = 20  # characters


@dataclass(frozen=True)
class StepMetrics:
    """The means over a number of steps, and where they ended. Times are in seconds, losses in nats per target token.

    `loss` is what is optimized, with label smoothing; `cross_entropy` is without it, as in validation.
    `padding_fraction` is the fraction of positions in the batches without a token.
    """

    step: int
    epoch: float
    progress: float
    loss: float
    cross_entropy: float
    learning_rate: float
    grad_norm: float
    target_tokens_per_second: float
    padding_fraction: float
    seconds: float
    eta_seconds: float


@dataclass
class MetricsWindow:
    """Sums over the steps since the last log; checkpoints keep them, so that resuming leaves no gap."""

    steps: int = 0
    target_tokens: int = 0
    positions: int = 0
    filled_positions: int = 0
    loss: float = 0.0
    cross_entropy: float = 0.0
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    seconds: float = 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path) -> MetricsWindow:
        """Read the sums that the checkpoint `path` holds. Raises CheckpointError for a value that is not a sum."""
        given = restore.check_names("metrics_window", values, {one.name for one in fields(cls)}, path)
        for name, value in given.items():
            check = restore.check_count if isinstance(getattr(cls, name), int) else restore.check_number
            check(name, value, path)
        return cls(**given)

    def update(
        self,
        batches: Sequence[Any],
        target_tokens: int,
        loss: float,
        cross_entropy: float,
        grad_norm: float,
        learning_rate: float,
        seconds: float,
    ) -> None:
        """Add a step: its batches, their target tokens, mean losses, gradient norm, learning rate and seconds."""
        self.steps += 1
        self.target_tokens += target_tokens
        self.filled_positions += target_tokens
        for batch in batches:
            self.positions += batch.label_positions
            if batch.source_mask is not None:
                self.positions += batch.source_mask.numel()
                self.filled_positions += int(batch.source_mask.count_nonzero())
        self.loss += loss * target_tokens
        self.cross_entropy += cross_entropy * target_tokens
        self.grad_norm = max(self.grad_norm, grad_norm)
        self.learning_rate = learning_rate
        self.seconds += seconds

    def summarize(self, state: TrainState, progress: float, examples_per_epoch: int) -> StepMetrics | None:
        """Return the means, or None if there was no step."""
        if not self.steps:
            return None
        return StepMetrics(
            step=state.step,
            epoch=state.examples / examples_per_epoch,
            progress=progress,
            loss=self.loss / max(self.target_tokens, 1),
            cross_entropy=self.cross_entropy / max(self.target_tokens, 1),
            learning_rate=self.learning_rate,
            grad_norm=self.grad_norm,
            target_tokens_per_second=self.target_tokens / max(self.seconds, 1e-9),
            padding_fraction=1.0 - self.filled_positions / max(self.positions, 1),
            seconds=state.seconds,
            eta_seconds=state.seconds * (1.0 - progress) / max(progress, 1e-9),
        )


class Reporter(Protocol):
    """What the trainer calls while it trains."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def on_step_end(self, step: int, progress: float) -> None:
        """Handle the end of a step. It is called after each step, so it must be fast."""

    def on_log(self, metrics: StepMetrics) -> None:
        """Handle the metrics of the last `log_every` steps."""

    def on_validation_end(self, step: int, metrics: Mapping[str, float], samples: Sequence[str], is_best: bool) -> None:
        """Handle the result of a validation."""

    def message(self, text: str) -> None:
        """Print a line of text."""


class NullReporter:
    """Shows nothing; the base class of the others."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def on_step_end(self, step: int, progress: float) -> None:
        """See Reporter."""

    def on_log(self, metrics: StepMetrics) -> None:
        """See Reporter."""

    def on_validation_end(self, step: int, metrics: Mapping[str, float], samples: Sequence[str], is_best: bool) -> None:
        """See Reporter."""

    def message(self, text: str) -> None:
        """See Reporter."""


class LineReporter(NullReporter):
    """Prints plain lines, at most one every `every` seconds besides validations: for logs and pipes.

    Once the stream is closed, full or no longer read, it prints nothing more: a run does not end with its display.
    """

    def __init__(self, stream: TextIO, every: float = 10.0) -> None:
        self.stream = stream
        self.every = every
        self._next = 0.0

    def on_log(self, metrics: StepMetrics) -> None:
        """Print one line if the last one was long enough ago."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.every
            self._print(" · ".join(f"{name} {value}" for name, value in _format_metrics(metrics)))

    def on_validation_end(self, step: int, metrics: Mapping[str, float], samples: Sequence[str], is_best: bool) -> None:
        """Print the metrics and the samples."""
        self._print(_format_validation(step, metrics, is_best))
        for sample in samples:
            self._print(f"    {sample}")

    def message(self, text: str) -> None:
        """Print the text."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except RuntimeError:
            return  # a signal came while a line was being printed
        except (OSError, ValueError):
            self._silence()

    def _silence(self) -> None:
        """Discard everything from now on, so that the rest of the stream's buffer can be flushed at the end."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        self.stream = io.StringIO()


class LiveReporter(LineReporter):
    """Keeps a line with a progress bar and the newest metrics at the bottom of a terminal, below all other lines."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, every=0.0)
        self._line = self._numbers = ""
        self._last_draw = 0.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line:
            self._draw(self._line)
            self._write("\n")

    def on_step_end(self, step: int, progress: float) -> None:
        """Redraw, twice a second."""
        filled = round(progress * _BAR_WIDTH)
        self._line = f"{progress:6.1%} [{'#' * filled:.<{_BAR_WIDTH}}] step {step:,}{self._numbers}"
        now = time.monotonic()
        if now - self._last_draw >= 0.5:
            self._last_draw = now
            self._draw(self._line)

    def on_log(self, metrics: StepMetrics) -> None:
        """Keep the metrics for the next redraw, the most useful first: a narrow terminal cuts off the rest."""
        numbers = dict(_format_metrics(metrics))
        metric_names = (
            *("loss", "eta", "target tokens/s", "padding", "epoch"),
            *("cross entropy", "elapsed", "lr", "grad_norm"),
        )
        self._numbers = "".join(f" · {name} {numbers[name]}" for name in metric_names)

    def _draw(self, line: str) -> None:
        """Overwrite the previous line."""
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns or 80  # some terminals report 0
        except (OSError, ValueError):
            columns = 80
        width = columns - 1  # a line that fills the last column would wrap
        self._write(f"\r{line[:width]:{width}}\r")

    def _print(self, text: str) -> None:
        self._draw("")
        super()._print(text)
        self._draw(self._line)


def make_reporter() -> Reporter:
    """Return a progress bar on a terminal and plain lines elsewhere, both on standard error if it is open."""
    if sys.stderr is None:
        return NullReporter()
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return LiveReporter(sys.stderr) if live else LineReporter(sys.stderr)


def format_duration(seconds: float) -> str:
    """Return seconds in the form 1:02:03 or 2:03."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _format_metrics(metrics: StepMetrics) -> list[tuple[str, str]]:
    return [
        ("step", f"{metrics.step:,}"),
        ("epoch", f"{metrics.epoch:.2f}"),
        ("loss", f"{metrics.loss:.4f}"),
        ("cross entropy", f"{metrics.cross_entropy:.4f}"),
        ("target tokens/s", f"{metrics.target_tokens_per_second:,.0f}"),
        ("padding", f"{metrics.padding_fraction:.1%}"),
        ("lr", f"{metrics.learning_rate:.2e}"),
        ("grad_norm", f"{metrics.grad_norm:.2f}"),
        ("elapsed", format_duration(metrics.seconds)),
        ("eta", format_duration(metrics.eta_seconds)),
    ]


def _format_validation(step: int, metrics: Mapping[str, float], is_best: bool) -> str:
    numbers = " · ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return f"validation at step {step:,}: {numbers}{'  (best so far)' if is_best else ''}"


class MetricsLogger:
    """Writes metrics.jsonl: one JSON object per line, of `kind` "training" or "validation", in the order of steps."""

    def __init__(
        self, path: Path, *, last_step: int, tensorboard_folder: Path | None = None, wandb: bool = False
    ) -> None:
        """Open to append, without the lines after `last_step`: a resumed run writes them again."""
        self._summary_writer = _open_tensorboard(tensorboard_folder, last_step) if tensorboard_folder else None
        self._wandb_run = _open_wandb(path.parent) if wandb else None
        lines = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if parse_json(line)["step"] <= last_step:
                        lines.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # the incomplete line of a run that was killed while writing
        with atomic_write(path) as part:
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def log_training(self, metrics: StepMetrics) -> None:
        """Append the metrics of `log_every` steps."""
        self._write("training", metrics.step, {k: v for k, v in asdict(metrics).items() if k != "step"})

    def log_validation(self, step: int, metrics: Mapping[str, float], samples: Sequence[str]) -> None:
        """Append a validation; TensorBoard and Weights & Biases get only the numbers."""
        self._write("validation", step, {**metrics, "samples": list(samples)})

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._summary_writer is not None:
            self._summary_writer.close()
        if self._wandb_run is not None:
            self._wandb_run.finish()

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        try:
            record = replace_nonfinite({"kind": kind, "step": step, **values})
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(
                f"{self.path} could not be written: {error}. Expected free space on the disk. The last checkpoint is "
                "complete: free some space and resume."
            ) from error
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        if self._summary_writer is not None:
            for name, value in numbers.items():
                self._summary_writer.add_scalar(name, value, step)
        if self._wandb_run is not None:
            self._wandb_run.log(numbers, step=step)


def _open_tensorboard(folder: Path, last_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "checkpointing.tensorboard is on, but the package tensorboard is not installed. Install it with "
            '`pip install "qkv[tensorboard]"`, or turn the option off: metrics.jsonl has the same numbers.'
        ) from error
    return SummaryWriter(log_dir=str(folder), purge_step=last_step + 1)


def _open_wandb(folder: Path) -> Any:
    """Start or resume the Weights & Biases run of a run folder, so that a resumed run continues the same curves."""
    try:
        import wandb
    except ImportError as error:
        raise MissingExtraError(
            "checkpointing.wandb is on, but the package wandb is not installed. Install it with "
            '`pip install "qkv[wandb]"`, or turn the option off: metrics.jsonl has the same numbers.'
        ) from error
    path = folder / "wandb.json"
    run_id = json.loads(path.read_text(encoding="utf-8"))["id"] if path.is_file() else None
    run = wandb.init(project="qkv", name=folder.name, dir=str(folder), id=run_id, resume="allow")
    with atomic_write(path) as part:
        part.write_text(json.dumps({"id": run.id}), encoding="utf-8")
    return run
