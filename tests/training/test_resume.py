"""Laws of checkpoints: whole or not there, altered ones refused, and killed runs end as if never stopped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import CheckpointError, StorageError
from qkv.training import TrainingConfig, checkpoints
from tests.training_runs import (
    INTERRUPTED_OPTIONS,
    OPTIONS,
    build_trainer,
    read_metrics,
    read_weights,
    validate_on_three,
)

RUN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.training_runs import INTERRUPTED_OPTIONS, NullReporter, validate_on_three, build_trainer
import torch._dynamo  # which every optimizer imports: once here, rather than in each child

class KillingReporter(NullReporter):
    def on_step_end(self, step, progress):
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

for killed_at in map(int, sys.argv[3:]):
    if not (child := os.fork()):
        build_trainer(Path(sys.argv[2]), INTERRUPTED_OPTIONS, validate=validate_on_three,
        reporter=KillingReporter()).train(resume=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status) == -signal.SIGKILL)
"""


def test_killed_runs_end_in_the_same_bytes_as_one_that_was_not(tmp_path: Path) -> None:
    whole = build_trainer(tmp_path / "whole", INTERRUPTED_OPTIONS, validate=validate_on_three)
    whole.train()
    assert whole.state.examples > 2 * whole.examples_per_epoch  # it went past the first epochs
    steps = ["2", "10", "23"]  # before the first save, within the first epochs, past them
    command = [sys.executable, "-c", RUN, str(Path(__file__).parents[2]), str(tmp_path / "parts"), *steps]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert killed.stdout.split() == ["True"] * 3, killed.stderr
    parts = build_trainer(tmp_path / "parts", INTERRUPTED_OPTIONS, validate=validate_on_three)
    assert parts.train(resume=True).stop_reason == "finished"
    assert read_weights(tmp_path / "parts") == read_weights(tmp_path / "whole")
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    one, _ = checkpoints.load_checkpoint(whole.checkpoint_path)
    other, _ = checkpoints.load_checkpoint(parts.checkpoint_path)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, ema_decay=0.9)])
def test_a_finished_run_can_be_made_longer(tmp_path: Path, options: TrainingConfig) -> None:
    build_trainer(tmp_path, options).train()
    longer = build_trainer(tmp_path, replace(options, max_steps=20))
    assert longer.train(resume=True).step == 20
    again = build_trainer(tmp_path, replace(options, max_steps=20))
    assert again.train(resume=True).step == 20
    for one, other in zip(longer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_written_is_read_and_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 2), "a": torch.tensor(3, dtype=torch.int64), "c": torch.zeros(0).bfloat16()}
    checkpoints.save_checkpoint(tmp_path / "one", tensors, {"step": 3, "word": "Wörter"})
    checkpoints.save_checkpoint(tmp_path / "two", tensors, {"word": "Wörter", "step": 3})
    found, state = checkpoints.load_checkpoint(tmp_path / "one")
    assert state == {"step": 3, "word": "Wörter"}
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "sound.safetensors"
    checkpoints.save_checkpoint(path, {"a": torch.arange(12.0), "b": torch.ones(2, 2)}, {"step": 1})
    return path


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_altered_byte_is_noticed(sound: Path, where: float, bit: int) -> None:
    data = bytearray(sound.read_bytes())
    tensors, state = checkpoints.load_checkpoint(sound)
    data[int(where * len(data))] ^= 1 << bit
    altered = sound.with_name("altered.safetensors")
    altered.write_bytes(data)
    try:
        found, other = checkpoints.load_checkpoint(altered)
    except CheckpointError:
        return
    # a byte of white space in the header may change without changing what is said
    assert other == state and all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda data: data[:-5], "truncated"),
        (lambda data: data[:3], "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "altered"),
        (lambda data: b"\x80\x04\x95pickle", "not a checkpoint"),
    ],
)
def test_a_harmed_file_is_refused_with_what_to_do(
    sound: Path, tmp_path: Path, harm: Callable[[bytes], bytes], said: str
) -> None:
    (tmp_path / "harmed").write_bytes(harm(sound.read_bytes()))
    with pytest.raises(CheckpointError, match=f"harmed.*{said}.*Copy it again"):
        checkpoints.load_checkpoint(tmp_path / "harmed")
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoints.load_checkpoint(tmp_path / "absent")


def test_an_average_is_the_mean_and_needs_one_model(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        paths.append(tmp_path / str(number))
        tensors = {"a": torch.full((2,), float(number**2)), "count": torch.tensor(number)}
        checkpoints.save_checkpoint(paths[-1], tensors, {})
    found = checkpoints.average_checkpoints(paths)
    torch.testing.assert_close(found["a"], torch.full((2,), 5 / 3))
    assert found["count"] == 2
    checkpoints.save_checkpoint(tmp_path / "other", {"a": torch.zeros(3)}, {})
    with pytest.raises(CheckpointError, match="same parameters"):
        checkpoints.average_checkpoints([paths[0], tmp_path / "other"])


def test_a_disk_that_is_really_full_leaves_the_old_file_whole(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.save_checkpoint(path, {"a": torch.ones(3)}, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match="checkpoint.safetensors could not be written"):
            checkpoints.save_checkpoint(path, {"a": torch.zeros(1_000_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.load_checkpoint(path)[1] == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_half_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    build_trainer(tmp_path, validate=validate_on_three).train()
    before = read_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "training", "step": 99, "loss": 1}\n{"kind": "trai')
    build_trainer(tmp_path, validate=validate_on_three).train(resume=True)
    assert read_metrics(tmp_path) == before
