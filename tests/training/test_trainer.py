"""Laws of training: the loss, the schedules, the moving average, and what a run does with them."""

from __future__ import annotations

import io
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qkv.errors import CheckpointError, ConfigError, MissingExtraError, NonFiniteError, StorageError, TrainingError
from qkv.training import (
    CheckpointingConfig,
    Cosine,
    InverseSquareRoot,
    OptimizerConfig,
    TrainingConfig,
    ValidationConfig,
    ValidationResult,
    WarmupStableDecay,
    checkpoints,
    noam_peak_lr,
)
from qkv.training.loss import IGNORE_INDEX, cross_entropy, loss_normalizer
from qkv.training.optim import ExponentialMovingAverage, Optimizers, lr_multiplier
from qkv.training.reporters import LineReporter, LiveReporter, NullReporter, make_reporter
from tests.training_runs import (
    LENGTHS,
    OPTIONS,
    VOCAB,
    Pieces,
    Tiny,
    build_trainer,
    read_metrics,
    read_weights,
    validate_on_three,
)

# -- loss -----------------------------------------------------------------------------------------------------------


@given(st.floats(0, 0.9), st.integers(0, 2**31))
def test_smoothed_cross_entropy_is_the_cross_entropy_to_the_smoothed_target(smoothing: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, VOCAB, generator=generator)
    labels = torch.randint(VOCAB, (2, 3), generator=generator)
    labels[0, 2] = IGNORE_INDEX
    wanted = 0.0
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
        aim = torch.full((VOCAB,), smoothing / VOCAB)
        aim[labels[row, column]] += 1 - smoothing
        wanted -= float((aim * logits[row, column].log_softmax(-1)).sum())
    assert float(cross_entropy(logits, labels, smoothing)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("pieces", [2, 5, 10])
def test_accumulating_pieces_is_one_big_batch(tmp_path: Path, pieces: int) -> None:
    options = replace(
        OPTIONS, dropout=0.0, max_steps=3, optimizer=OptimizerConfig(learning_rate=1e-2, max_grad_norm=0.5)
    )
    whole = build_trainer(tmp_path / "whole", options, sampler=Pieces(20))
    whole.train()
    parts = build_trainer(
        tmp_path / "parts", replace(options, gradient_accumulation=pieces), sampler=Pieces(20 // pieces)
    )
    parts.train()
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("shares", [(3, 5), (1, 7), (4, 4)])
def test_ranks_share_the_tokens_of_the_step(shares: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(8, VOCAB, requires_grad=True)
    labels = torch.arange(8)
    (whole,) = torch.autograd.grad(cross_entropy(logits, labels) / loss_normalizer(8, logits.device), logits)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.fill_(8))
    gradient = torch.zeros_like(logits)
    for part in (slice(0, shares[0]), slice(shares[0], 8)):  # data-parallel training takes the mean over ranks
        loss = cross_entropy(logits[part], labels[part]) / loss_normalizer(len(labels[part]), logits.device)
        gradient += torch.autograd.grad(loss, logits)[0] / 2
    torch.testing.assert_close(gradient, whole)


# -- schedules, optimizer, moving average ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 1999, 4000, 4001, 100_000])
def test_inverse_square_root_is_equation_3_of_vaswani(step: int) -> None:
    wanted = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
    assert noam_peak_lr(512, 4000) * lr_multiplier(InverseSquareRoot(4000), step, 0.0) == pytest.approx(
        wanted, rel=1e-12
    )


def test_cosine_and_stable_schedules_by_hand() -> None:
    cosine = Cosine(warmup_ratio=0.2, min_lr_ratio=0.1)
    assert [lr_multiplier(cosine, 1, p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])
    stable = WarmupStableDecay(warmup_ratio=0.1, decay_ratio=0.4)
    assert [lr_multiplier(stable, 1, p) for p in (0.0, 0.05, 0.1, 0.6, 0.8, 1.0)] == pytest.approx(
        [0, 0.5, 1, 1, 0.5, 0]
    )
    assert lr_multiplier(WarmupStableDecay(warmup_ratio=0.0, decay_ratio=0.0), 1, 1.0) == 1.0


@given(
    st.sampled_from([InverseSquareRoot(7), Cosine(0.1, 0.2), Cosine(0.0), WarmupStableDecay(0.1, 0.9)]),
    st.integers(1, 1000),
    st.floats(0, 1),
)
def test_a_factor_is_never_above_the_peak_nor_below_zero(schedule: Any, step: int, progress: float) -> None:
    assert 0.0 <= lr_multiplier(schedule, step, progress) <= 1.0


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    model = Tiny()
    [adamw] = Optimizers(model, OptimizerConfig(kind="adamw", weight_decay=0.1)).optimizers
    groups = adamw.param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    assert decayed == {id(model.middle.weight), id(model.answer.weight)}
    assert all(group["fused"] for group in groups)


@settings(max_examples=20)
@given(st.floats(0.5, 0.999), st.integers(1, 30))
def test_the_moving_average_is_its_formula_and_swapping_twice_is_nothing(decay: float, steps: int) -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    average = ExponentialMovingAverage([parameter], decay)
    wanted = parameter.detach().double()
    for step in range(1, steps + 1):
        parameter.data = parameter.data * 0.9 + step
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        wanted = d * wanted + (1 - d) * parameter.detach().double()
    torch.testing.assert_close(average.averages[0].double(), wanted, rtol=1e-5, atol=1e-5)
    before = (parameter.detach().clone(), average.averages[0].clone())
    average.swap()
    assert torch.equal(parameter, before[1]) and torch.equal(average.averages[0], before[0])
    average.swap()
    assert torch.equal(parameter, before[0]) and torch.equal(average.averages[0], before[1])


# -- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: TrainingConfig(), "max_steps"),
        (lambda: TrainingConfig(max_steps=0), "max_steps"),
        (lambda: TrainingConfig(max_steps=1, dropout=1.0), "dropout"),
        (lambda: TrainingConfig(max_minutes=0), "max_minutes"),
        (lambda: TrainingConfig(max_steps=1, ema_decay=1.0), "ema_decay"),
        (lambda: OptimizerConfig(max_grad_norm=0.0), "max_grad_norm"),
        (lambda: WarmupStableDecay(warmup_ratio=0.5, decay_ratio=0.6), "decay_ratio"),
        (lambda: CheckpointingConfig(keep_best=0, final_weights="best"), "keep_best"),
        (lambda: CheckpointingConfig(keep_last=1, final_weights="average_last"), "keep_last"),
    ],
)
def test_options_that_contradict_themselves_name_field_and_rule(make: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\.{name}=.*expected"):
        make()


# -- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_learns_logs_keeps_and_shows(tmp_path: Path) -> None:
    options = replace(OPTIONS, max_steps=60, validation=ValidationConfig(every=20), dropout=0.0)
    result = build_trainer(tmp_path, options, validate=validate_on_three).train()
    written = read_metrics(tmp_path)
    validations = [line["loss"] for line in written if line["kind"] == "validation"]
    assert (result.stop_reason, result.step, len(validations)) == ("finished", 60, 3)
    assert validations[-1] < 0.95 * validations[0] and validations[-1] == result.metrics["loss"]
    training = [line for line in written if line["kind"] == "training"]
    assert [line["step"] for line in training] == list(range(2, 61, 2))
    assert 0 < training[0]["padding_fraction"] < 0.5 and training[-1]["epoch"] > 3
    assert sorted(read_weights(tmp_path)) == [f"step-{step:08}.safetensors" for step in (40, 57, 60)]


def test_the_cross_entropy_is_told_beside_the_smoothed_loss(tmp_path: Path) -> None:
    options = replace(
        OPTIONS, max_steps=1, dropout=0.0, gradient_accumulation=2, checkpointing=CheckpointingConfig(log_every=1)
    )
    told = {}
    for smoothing in (0.0, 0.3):
        build_trainer(tmp_path / str(smoothing), replace(options, label_smoothing=smoothing)).train()
        [told[smoothing]] = read_metrics(tmp_path / str(smoothing))
    assert told[0.0]["loss"] == told[0.0]["cross_entropy"] == pytest.approx(told[0.3]["cross_entropy"])
    assert abs(told[0.3]["loss"] - told[0.3]["cross_entropy"]) > 1e-3


@pytest.mark.parametrize("kind", [LineReporter, LiveReporter])
def test_what_is_shown(tmp_path: Path, kind: Any) -> None:
    stream = io.StringIO()
    build_trainer(tmp_path, validate=validate_on_three, reporter=kind(stream)).train()
    shown = stream.getvalue()
    for part in ("validation at step 4: loss ", "(best so far)\n", "    a -> b\n"):
        assert part in shown
    if kind is LiveReporter:
        assert "\r100.0% [####################] step 12 · loss " in shown and shown.endswith("\r\n")
        drawn = [line for line in shown.replace("\n", "\r").split("\r") if "%" in line]
        assert {len(line) for line in drawn} == {79}  # each hides all of the one before, and none wraps
    else:
        assert "\r" not in shown
        line = next(line for line in shown.splitlines() if line.startswith("step 2 "))
        for word in ("epoch", "loss", "target tokens/s", "padding", "lr", "eta"):
            assert f" · {word} " in line


def test_the_live_line_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for stream, kind in ((terminal, LiveReporter), (io.StringIO(), LineReporter)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert type(make_reporter()) is kind
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_reporter()) is LineReporter


def test_wandb_receives_the_numbers_and_resumes_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []

    class Run:
        id = "abc"

        def log(self, numbers: dict[str, float], step: int) -> None:
            logged.append((step, numbers))

        def finish(self) -> None:
            logged.append((-1, {}))

    def init(**arguments: Any) -> Run:
        started.append(arguments)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    options = replace(OPTIONS, checkpointing=replace(OPTIONS.checkpointing, wandb=True))
    build_trainer(tmp_path, options).train()
    build_trainer(tmp_path, options).train(resume=True)
    assert [one["id"] for one in started] == [None, "abc"]
    assert any("training/loss" in numbers for _, numbers in logged)
    assert logged[-1] == (-1, {})


def test_wandb_is_an_extra_that_explains_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="qkv.wandb.*metrics.jsonl"):
        build_trainer(tmp_path, replace(OPTIONS, checkpointing=CheckpointingConfig(wandb=True))).train()


def test_tensorboard_is_an_extra_that_explains_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match="qkv.tensorboard.*metrics.jsonl"):
        build_trainer(tmp_path, replace(OPTIONS, checkpointing=CheckpointingConfig(tensorboard=True))).train()


def test_validating_changes_nothing(tmp_path: Path) -> None:
    with_it = build_trainer(tmp_path / "with", replace(OPTIONS, ema_decay=0.9), validate=validate_on_three)
    without = build_trainer(tmp_path / "without", replace(OPTIONS, ema_decay=0.9))
    with_it.train()
    without.train()
    for one, other in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("end", [{"max_epochs": 2.0}, {"max_minutes": 0.01}])
def test_a_run_ends_by_epochs_or_minutes_and_decays_towards_it(tmp_path: Path, end: dict[str, Any]) -> None:
    trained = build_trainer(
        tmp_path, replace(OPTIONS, max_steps=None, checkpointing=CheckpointingConfig(log_every=1), **end)
    )
    result = trained.train()
    if "max_epochs" in end:
        assert len(LENGTHS) * 2 <= trained.state.examples < len(LENGTHS) * 2 + 20
    else:
        assert 0.6 <= result.seconds < 6.0
    rates = [line["learning_rate"] for line in read_metrics(tmp_path)]
    assert rates[-1] < 0.6 * max(rates)


def test_patience_stops_and_the_best_weights_are_returned(tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0, 1.5, 9.0])
    seen: list[list[Tensor]] = []

    def judge(model: nn.Module) -> ValidationResult:
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        return ValidationResult({"loss": next(scores)})

    options = replace(
        OPTIONS,
        max_steps=100,
        validation=ValidationConfig(every=4, patience=2),
        checkpointing=replace(OPTIONS.checkpointing, final_weights="best"),
    )
    trained = build_trainer(tmp_path, options, validate=judge)
    result = trained.train()
    assert (result.stop_reason, result.step, result.best) == ("early_stopping", 16, (1.0, 8))
    for parameter, best in zip(trained.model.parameters(), seen[1], strict=True):
        assert torch.equal(parameter, best)


def test_higher_can_be_better_and_the_best_are_averaged(tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0])
    options = replace(
        OPTIONS,
        validation=ValidationConfig(every=4, metric="bleu", mode="max"),
        checkpointing=replace(OPTIONS.checkpointing, final_weights="average_best"),
    )
    trained = build_trainer(tmp_path, options, validate=lambda model: ValidationResult({"bleu": next(scores)}))
    assert trained.train().weights == "mean of steps 4, 12"
    four, twelve = (checkpoints.load_checkpoint(tmp_path / "weights" / f"step-{s:08}.safetensors")[0] for s in (4, 12))
    for name, parameter in trained.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), (four[name] + twelve[name]) / 2)


@pytest.mark.parametrize("better", ["min", "max"])
def test_a_metric_that_is_no_number_is_never_the_best(tmp_path: Path, better: Any) -> None:
    scores = iter([math.nan, 2.0, math.nan])
    options = replace(OPTIONS, validation=ValidationConfig(every=4, mode=better))
    result = build_trainer(tmp_path, options, validate=lambda model: ValidationResult({"loss": next(scores)})).train()
    assert result.best == (2.0, 8)


def test_bfloat16_is_close_to_float32_and_keeps_float32_weights(tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        trained = build_trainer(tmp_path / precision, replace(OPTIONS, precision=precision, dropout=0.0))
        trained.train()
        assert all(parameter.dtype == torch.float32 for parameter in trained.model.parameters())
        losses.append(read_metrics(tmp_path / precision)[-1]["loss"])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_an_unknown_metric_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'loss'.*bleu, chrf"):
        build_trainer(tmp_path, validate=lambda model: ValidationResult({"bleu": 1.0, "chrf": 2.0})).train()


def test_the_moving_average_is_what_is_judged_kept_and_returned(tmp_path: Path) -> None:
    judged: list[Tensor] = []

    def judge(model: Any) -> ValidationResult:
        judged.append(model.middle.weight.detach().clone())
        return validate_on_three(model)

    trained = build_trainer(tmp_path, replace(OPTIONS, ema_decay=0.9), validate=judge)
    trained.train()
    kept, _ = checkpoints.load_checkpoint(tmp_path / "weights" / "step-00000012.safetensors")
    assert torch.equal(trained.model.get_parameter("middle.weight"), judged[-1])
    assert torch.equal(kept["middle.weight"], judged[-1])
    state, _ = checkpoints.load_checkpoint(trained.checkpoint_path)
    assert not torch.equal(state["model.middle.weight"], judged[-1])


# -- what goes wrong ------------------------------------------------------------------------------------------------


class Breaking(Tiny):
    """Gives NaN for the token 7 out of its middle layer."""

    def forward(self, source: Tensor | None, target: Tensor, source_mask: Tensor | None) -> Tensor:
        hidden = self.embedding(target)
        hidden = torch.where((target == 7).any(), hidden * math.nan, hidden)
        answer: Tensor = self.answer(self.middle(hidden))
        return answer


def test_nan_names_the_layer_and_the_batch_and_leaves_the_weights(tmp_path: Path) -> None:
    model = Breaking()
    with pytest.raises(NonFiniteError, match=r"Step 1: .*middle \(Linear\).*batch of 10 examples .*Expected finite"):
        build_trainer(tmp_path, replace(OPTIONS, gradient_accumulation=4), model=model, sampler=Pieces(10)).train()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_infinite_gradients_and_parameters_are_named(tmp_path: Path) -> None:
    model = Tiny()
    model.middle.weight.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    with pytest.raises(NonFiniteError, match="gradient of middle.weight"):
        build_trainer(tmp_path / "one", model=model).train()
    model = Tiny()
    model.middle.bias.data[2] = math.nan
    with pytest.raises(NonFiniteError, match="parameter middle.bias itself"):
        build_trainer(tmp_path / "two", model=model).train()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    build_trainer(tmp_path).train()
    before = read_weights(tmp_path)
    with pytest.raises(TrainingError, match="already holds a run"):
        build_trainer(tmp_path).train()
    assert read_weights(tmp_path) == before


def test_resuming_with_other_options_or_another_model_is_refused(tmp_path: Path) -> None:
    build_trainer(tmp_path).train()
    with pytest.raises(TrainingError, match=r"dropout=0.2.*another dropout"):
        build_trainer(tmp_path, replace(OPTIONS, dropout=0.3)).train(resume=True)
    with pytest.raises(CheckpointError, match=r"shape .*expected"):
        build_trainer(tmp_path, model=Tiny(width=4)).train(resume=True)
    with pytest.raises(CheckpointError, match="another model"):
        build_trainer(tmp_path, model=nn.Sequential(Tiny())).train(resume=True)


def test_an_interrupt_saves_says_where_and_resumes_to_the_same_end(tmp_path: Path) -> None:
    class Interrupting(NullReporter):
        notes: list[str] = []

        def on_step_end(self, step: int, progress: float) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)

        def message(self, text: str) -> None:
            self.notes.append(text)

    whole = build_trainer(tmp_path / "whole", validate=validate_on_three)
    whole.train()
    show = Interrupting()
    result = build_trainer(tmp_path / "parts", validate=validate_on_three, reporter=show).train()
    assert result.stop_reason == "interrupted" and result.step <= 6
    assert any("checkpoint.safetensors" in note for note in show.notes)
    with pytest.raises(TrainingError):
        build_trainer(tmp_path / "parts").train()
    parts = build_trainer(tmp_path / "parts", validate=validate_on_three)
    assert parts.train(resume=True).stop_reason == "finished"
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_trainer(tmp_path, replace(OPTIONS, max_steps=3)).train()
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(*places: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left.*free some space"):
        checkpoints.save_checkpoint(tmp_path / "checkpoint.safetensors", {"a": torch.zeros(3)}, {})
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))
