"""Laws of runs that are disturbed: by another run, by a signal, by a lost display, by a lack of memory."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qkv.errors import TrainingError
from qkv.files import atomic_write, lock_folder, remove_leftovers
from qkv.training import checkpoints
from qkv.training.reporters import LineReporter, LiveReporter, NullReporter
from tests.training_runs import OPTIONS, build_trainer, validate_on_three


class Interrupting(NullReporter):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def on_step_end(self, step: int, progress: float) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("final", ["average_last", "average_best", "best", "last"])
@pytest.mark.parametrize("stop", [2, 5, 10, 11])
def test_an_interruption_does_not_change_which_steps_the_final_weights_come_from(
    tmp_path: Path, final: str, stop: int
) -> None:
    options = replace(OPTIONS, checkpointing=replace(OPTIONS.checkpointing, final_weights=final, keep_last=3))  # type: ignore[arg-type]
    whole = build_trainer(tmp_path / "whole", options, validate=validate_on_three)
    expected = whole.train()
    build_trainer(tmp_path / "parts", options, validate=validate_on_three, reporter=Interrupting(stop)).train()
    parts = build_trainer(tmp_path / "parts", options, validate=validate_on_three)
    assert parts.train(resume=True).weights == expected.weights
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_that_ends_a_program_saves_the_run(tmp_path: Path, number: signal.Signals) -> None:
    result = build_trainer(tmp_path, reporter=Interrupting(4, number)).train()
    assert (result.stop_reason, result.signal) == ("interrupted", number)
    assert (tmp_path / "checkpoint.safetensors").is_file()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert build_trainer(tmp_path, reporter=Interrupting(4, signal.SIGHUP)).train().stop_reason == "finished"
    finally:
        signal.signal(signal.SIGHUP, before)


class Broken(io.StringIO):
    """A stream that nobody can write to."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("make", [LineReporter, LiveReporter])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space"), ValueError("closed")])
def test_a_run_outlives_its_display(
    tmp_path: Path, make: Callable[[io.StringIO], LineReporter], error: Exception
) -> None:
    trainer = build_trainer(tmp_path, validate=validate_on_three, reporter=make(Broken(error)))
    assert trainer.train().stop_reason == "finished"


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from qkv.training.reporters import make_reporter
from tests.training_runs import build_trainer, validate_on_three
build_trainer(Path(sys.argv[2]), validate=validate_on_three, reporter=make_reporter()).train()
"""


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&1 >/dev/null | head -c 1"])
def test_a_process_outlives_its_standard_error(tmp_path: Path, redirection: str) -> None:
    command = f'"$0" -c "$1" "$2" "$3" {redirection}'
    arguments = ["bash", "-o", "pipefail", "-c", command, sys.executable, CHILD]
    done = subprocess.run([*arguments, str(Path(__file__).parents[2]), str(tmp_path)], timeout=100)
    assert done.returncode == 0
    _, state = checkpoints.load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert state["train_state"]["step"] == OPTIONS.max_steps


def test_a_folder_is_locked_once_and_a_kill_releases_it(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(TrainingError, match=f"{tmp_path} is in use"), lock_folder(tmp_path):
        pass
    if not (child := os.fork()):
        with lock_folder(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with lock_folder(tmp_path):
        pass


def test_two_writers_of_a_file_do_not_share_a_temporary_one_and_leftovers_are_removed(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as one:
        with atomic_write(tmp_path / "file") as other:
            one.write_text("one")
            other.write_text("other")
        assert (tmp_path / "file").read_text() == "other"
    assert (tmp_path / "file").read_text() == "one"
    (tmp_path / ".file.0123.part").write_text("half")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()]
)
def test_a_lack_of_memory_says_what_to_lower(tmp_path: Path, error: Exception) -> None:
    trainer = build_trainer(tmp_path)

    def fail(*given: object) -> None:
        raise error

    trainer.compute_loss = fail  # type: ignore[assignment]
    with pytest.raises(TrainingError, match=r"memory of cpu ran out after step 0.*data\.batch_tokens"):
        trainer.train()
