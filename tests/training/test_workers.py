"""Helpers change how fast a step is made, not what it is."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qkv.data import Batch, BatchSampler, TokenStore, collate
from qkv.errors import TrainingError
from qkv.models import build
from qkv.presets import encoder_decoder
from qkv.training import CheckpointingConfig, OptimizerConfig, Trainer, TrainingConfig
from qkv.training.reporters import NullReporter
from tests.training_runs import read_metrics


class Special:
    pad, bos, eos = 0, 1, 2


EXAMPLES = TokenStore.from_lists([[4, 5, 6][: 1 + n % 3] for n in range(30)], [[7, 8][: 1 + n % 2] for n in range(30)])


def collate_numbers(numbers: Sequence[int]) -> Batch:
    return collate([EXAMPLES[n] for n in numbers], Special, Special, numbers)


def train(
    folder: Path, *, reporter: NullReporter | None = None, resume: bool = False, **options: object
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = build(encoder_decoder(source_vocab=9, target_vocab=9, d_model=8, heads=2, d_ff=8, layers=1))
    saving = CheckpointingConfig(every=2, keep_last=0, keep_best=0)
    steady = OptimizerConfig(
        epsilon=1e-2
    )  # Adam's own makes full steps of a gradient that is rounding alone, as a key's bias
    training = TrainingConfig(max_steps=6, optimizer=steady, checkpointing=saving, precision="float32", **options)  # type: ignore[arg-type]
    trainer = Trainer(
        model,
        training,
        BatchSampler(EXAMPLES.lengths, 40, 1),
        collate_numbers,
        folder,
        reporter=reporter or NullReporter(),
    )
    trainer.train(resume=resume)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("workers", [2, 3])
def test_helpers_make_the_same_steps(tmp_path: Path, workers: int) -> None:
    alone = train(tmp_path / "alone", dropout=0.0)
    together = train(tmp_path / "together", dropout=0.0, workers=workers)
    for one, other in zip(read_metrics(tmp_path / "alone"), read_metrics(tmp_path / "together"), strict=True):
        assert [other[name] for name in ("loss", "cross_entropy")] == pytest.approx([one["loss"], one["cross_entropy"]])
    for name, parameter in alone.items():
        torch.testing.assert_close(together[name], parameter, rtol=1e-4, atol=1e-5)


class StoppingReporter(NullReporter):
    """Presses Ctrl-C after the third step."""

    def on_step_end(self, step: int, progress: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_with_helpers_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", dropout=0.3, workers=2)
    train(tmp_path / "parts", dropout=0.3, workers=2, reporter=StoppingReporter())
    resumed = train(tmp_path / "parts", dropout=0.3, workers=2, resume=True)
    assert all(torch.equal(resumed[name], parameter) for name, parameter in whole.items())


class KillingReporter(NullReporter):
    """Kills every child of this process after the first step, as a system out of memory would."""

    def on_step_end(self, step: int, progress: float) -> None:
        for task in Path(f"/proc/{os.getpid()}/task").iterdir():
            for child in (task / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)


def test_a_helper_that_dies_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="worker process ended"):
        train(tmp_path / "run", workers=2, reporter=KillingReporter())
