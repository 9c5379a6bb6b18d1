"""Helpers change how fast a step is made, not what it is."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qkv.data import Batch, BatchSampler, TokenPairs, collate
from qkv.errors import TrainingError
from qkv.models import build
from qkv.presets import encoder_decoder
from qkv.training import Optimizer, Saving, Trainer, Training
from qkv.training.progress import Silent
from training_runs import lines


class Special:
    pad, bos, eos = 0, 1, 2


EXAMPLES = TokenPairs.from_lists([[4, 5, 6][: 1 + n % 3] for n in range(30)], [[7, 8][: 1 + n % 2] for n in range(30)])


def numbered(numbers: Sequence[int]) -> Batch:
    return collate([EXAMPLES[n] for n in numbers], Special, Special, numbers)


def trained(folder: Path, *, show: Silent | None = None, resume: bool = False, **options: object) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = build(encoder_decoder(source_vocab=9, target_vocab=9, d_model=8, heads=2, d_ff=8, layers=1))
    saving = Saving(every=2, keep_last=0, keep_best=0)
    steady = Optimizer(
        epsilon=1e-2
    )  # Adam's own makes full steps of a gradient that is rounding alone, as a key's bias
    training = Training(steps=6, optimizer=steady, saving=saving, precision="float32", **options)  # type: ignore[arg-type]
    trainer = Trainer(model, training, BatchSampler(EXAMPLES.lengths, 40, 1), numbered, folder, show=show or Silent())
    trainer.run(resume=resume)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("processes", [2, 3])
def test_helpers_make_the_same_steps(tmp_path: Path, processes: int) -> None:
    alone = trained(tmp_path / "alone", dropout=0.0)
    together = trained(tmp_path / "together", dropout=0.0, processes=processes)
    for one, other in zip(lines(tmp_path / "alone"), lines(tmp_path / "together"), strict=True):
        assert [other[name] for name in ("loss", "cross_entropy")] == pytest.approx([one["loss"], one["cross_entropy"]])
    for name, parameter in alone.items():
        torch.testing.assert_close(together[name], parameter, rtol=1e-4, atol=1e-5)


class Stopping(Silent):
    """Presses Ctrl-C after the third step."""

    def tick(self, step: int, progress: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_with_helpers_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", dropout=0.3, processes=2)
    trained(tmp_path / "parts", dropout=0.3, processes=2, show=Stopping())
    resumed = trained(tmp_path / "parts", dropout=0.3, processes=2, resume=True)
    assert all(torch.equal(resumed[name], parameter) for name, parameter in whole.items())


class Killing(Silent):
    """Kills every child of this process after the first step, as a system out of memory would."""

    def tick(self, step: int, progress: float) -> None:
        for task in Path(f"/proc/{os.getpid()}/task").iterdir():
            for child in (task / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)


def test_a_helper_that_dies_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="helper process ended"):
        trained(tmp_path / "run", processes=2, show=Killing())
