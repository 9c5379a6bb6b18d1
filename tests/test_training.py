"""Laws of training: the loss, the schedules, the moving average, and what a run does with them."""

from __future__ import annotations

import io
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qkv.errors import CheckpointError, ConfigError, MissingExtraError, NonFiniteError, StorageError, TrainingError
from qkv.training import (
    Cosine,
    InverseSquareRoot,
    Optimizer,
    Saving,
    Training,
    Validated,
    Validation,
    WarmupStableDecay,
    checkpoint,
    vaswani_peak,
)
from qkv.training.loss import IGNORE, cross_entropy, step_tokens
from qkv.training.optimizer import MovingAverage, Optimizers, factor
from qkv.training.progress import Lines, LiveDisplay, Silent, display
from training_runs import LENGTHS, OPTIONS, VOCAB, Pieces, Tiny, lines, loss_on_three, trainer, weights

# -- loss -----------------------------------------------------------------------------------------------------------


@given(st.floats(0, 0.9), st.integers(0, 2**31))
def test_smoothed_cross_entropy_is_the_cross_entropy_to_the_smoothed_target(smoothing: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, VOCAB, generator=generator)
    labels = torch.randint(VOCAB, (2, 3), generator=generator)
    labels[0, 2] = IGNORE
    wanted = 0.0
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
        aim = torch.full((VOCAB,), smoothing / VOCAB)
        aim[labels[row, column]] += 1 - smoothing
        wanted -= float((aim * logits[row, column].log_softmax(-1)).sum())
    assert float(cross_entropy(logits, labels, smoothing)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("pieces", [2, 5, 10])
def test_accumulating_pieces_is_one_big_batch(tmp_path: Path, pieces: int) -> None:
    options = replace(OPTIONS, dropout=0.0, steps=3, optimizer=Optimizer(learning_rate=1e-2, clip=0.5))
    whole = trainer(tmp_path / "whole", options, sampler=Pieces(20))
    whole.run()
    parts = trainer(tmp_path / "parts", replace(options, accumulate=pieces), sampler=Pieces(20 // pieces))
    parts.run()
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("shares", [(3, 5), (1, 7), (4, 4)])
def test_ranks_share_the_tokens_of_the_step(shares: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(8, VOCAB, requires_grad=True)
    labels = torch.arange(8)
    (whole,) = torch.autograd.grad(cross_entropy(logits, labels) / step_tokens(8, logits.device), logits)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.fill_(8))
    gradient = torch.zeros_like(logits)
    for part in (slice(0, shares[0]), slice(shares[0], 8)):  # data-parallel training takes the mean over ranks
        loss = cross_entropy(logits[part], labels[part]) / step_tokens(len(labels[part]), logits.device)
        gradient += torch.autograd.grad(loss, logits)[0] / 2
    torch.testing.assert_close(gradient, whole)


# -- schedules, optimizer, moving average ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 1999, 4000, 4001, 100_000])
def test_inverse_square_root_is_equation_3_of_vaswani(step: int) -> None:
    wanted = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
    assert vaswani_peak(512, 4000) * factor(InverseSquareRoot(4000), step, 0.0) == pytest.approx(wanted, rel=1e-12)


def test_cosine_and_stable_schedules_by_hand() -> None:
    cosine = Cosine(warmup=0.2, final=0.1)
    assert [factor(cosine, 1, p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])
    stable = WarmupStableDecay(warmup=0.1, decay=0.4)
    assert [factor(stable, 1, p) for p in (0.0, 0.05, 0.1, 0.6, 0.8, 1.0)] == pytest.approx([0, 0.5, 1, 1, 0.5, 0])
    assert factor(WarmupStableDecay(warmup=0.0, decay=0.0), 1, 1.0) == 1.0


@given(
    st.sampled_from([InverseSquareRoot(7), Cosine(0.1, 0.2), Cosine(0.0), WarmupStableDecay(0.1, 0.9)]),
    st.integers(1, 1000),
    st.floats(0, 1),
)
def test_a_factor_is_never_above_the_peak_nor_below_zero(schedule: Any, step: int, progress: float) -> None:
    assert 0.0 <= factor(schedule, step, progress) <= 1.0


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    model = Tiny()
    [adamw] = Optimizers(model, Optimizer(kind="adamw", weight_decay=0.1)).each
    groups = adamw.param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    assert decayed == {id(model.middle.weight), id(model.answer.weight)}
    assert all(group["fused"] for group in groups)


@settings(max_examples=20)
@given(st.floats(0.5, 0.999), st.integers(1, 30))
def test_the_moving_average_is_its_formula_and_swapping_twice_is_nothing(decay: float, steps: int) -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    average = MovingAverage([parameter], decay)
    wanted = parameter.detach().double()
    for step in range(1, steps + 1):
        parameter.data = parameter.data * 0.9 + step
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        wanted = d * wanted + (1 - d) * parameter.detach().double()
    torch.testing.assert_close(average.average[0].double(), wanted, rtol=1e-5, atol=1e-5)
    before = (parameter.detach().clone(), average.average[0].clone())
    average.swap()
    assert torch.equal(parameter, before[1]) and torch.equal(average.average[0], before[0])
    average.swap()
    assert torch.equal(parameter, before[0]) and torch.equal(average.average[0], before[1])


# -- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Training(), "steps"),
        (lambda: Training(steps=0), "steps"),
        (lambda: Training(steps=1, dropout=1.0), "dropout"),
        (lambda: Training(minutes=0), "minutes"),
        (lambda: Training(steps=1, ema=1.0), "ema"),
        (lambda: Optimizer(clip=0.0), "clip"),
        (lambda: WarmupStableDecay(warmup=0.5, decay=0.6), "decay"),
        (lambda: Saving(keep_best=0, final="best"), "keep_best"),
        (lambda: Saving(keep_last=1, final="average_last"), "keep_last"),
    ],
)
def test_options_that_contradict_themselves_name_field_and_rule(make: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\.{name}=.*expected"):
        make()


# -- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_learns_logs_keeps_and_shows(tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=60, validation=Validation(every=20), dropout=0.0)
    result = trainer(tmp_path, options, validate=loss_on_three).run()
    written = lines(tmp_path)
    validations = [line["loss"] for line in written if line["kind"] == "validation"]
    assert (result.stopped, result.step, len(validations)) == ("finished", 60, 3)
    assert validations[-1] < 0.95 * validations[0] and validations[-1] == result.metrics["loss"]
    training = [line for line in written if line["kind"] == "training"]
    assert [line["step"] for line in training] == list(range(2, 61, 2))
    assert 0 < training[0]["padding"] < 0.5 and training[-1]["epoch"] > 3
    assert sorted(weights(tmp_path)) == [f"step-{step:08}.safetensors" for step in (40, 57, 60)]


def test_the_cross_entropy_is_told_beside_the_smoothed_loss(tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=1, dropout=0.0, accumulate=2, saving=Saving(log_every=1))
    told = {}
    for smoothing in (0.0, 0.3):
        trainer(tmp_path / str(smoothing), replace(options, label_smoothing=smoothing)).run()
        [told[smoothing]] = lines(tmp_path / str(smoothing))
    assert told[0.0]["loss"] == told[0.0]["cross_entropy"] == pytest.approx(told[0.3]["cross_entropy"])
    assert abs(told[0.3]["loss"] - told[0.3]["cross_entropy"]) > 1e-3


@pytest.mark.parametrize("kind", [Lines, LiveDisplay])
def test_what_is_shown(tmp_path: Path, kind: Any) -> None:
    stream = io.StringIO()
    trainer(tmp_path, validate=loss_on_three, show=kind(stream)).run()
    shown = stream.getvalue()
    for part in ("validation at step 4: loss ", "(best so far)\n", "    a -> b\n"):
        assert part in shown
    if kind is LiveDisplay:
        assert "\r100.0% [####################] step 12 · loss " in shown and shown.endswith("\r\n")
        drawn = [line for line in shown.replace("\n", "\r").split("\r") if "%" in line]
        assert {len(line) for line in drawn} == {79}  # each hides all of the one before, and none wraps
    else:
        assert "\r" not in shown
        line = next(line for line in shown.splitlines() if line.startswith("step 2 "))
        for word in ("epoch", "loss", "targets/s", "padding", "learning rate", "left"):
            assert f" · {word} " in line


def test_the_live_line_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for stream, kind in ((terminal, LiveDisplay), (io.StringIO(), Lines)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert type(display()) is kind
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert type(display()) is Lines


def test_tensorboard_is_an_extra_that_explains_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match="qkv.tensorboard.*metrics.jsonl"):
        trainer(tmp_path, replace(OPTIONS, saving=Saving(tensorboard=True))).run()


def test_validating_changes_nothing(tmp_path: Path) -> None:
    with_it = trainer(tmp_path / "with", replace(OPTIONS, ema=0.9), validate=loss_on_three)
    without = trainer(tmp_path / "without", replace(OPTIONS, ema=0.9))
    with_it.run()
    without.run()
    for one, other in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("end", [{"epochs": 2.0}, {"minutes": 0.01}])
def test_a_run_ends_by_epochs_or_minutes_and_decays_towards_it(tmp_path: Path, end: dict[str, Any]) -> None:
    trained = trainer(tmp_path, replace(OPTIONS, steps=None, saving=Saving(log_every=1), **end))
    result = trained.run()
    if "epochs" in end:
        assert len(LENGTHS) * 2 <= trained.standing.examples < len(LENGTHS) * 2 + 20
    else:
        assert 0.6 <= result.seconds < 6.0
    rates = [line["learning_rate"] for line in lines(tmp_path)]
    assert rates[-1] < 0.6 * max(rates)


def test_patience_stops_and_the_best_weights_are_returned(tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0, 1.5, 9.0])
    seen: list[list[Tensor]] = []

    def judge(model: nn.Module) -> Validated:
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        return Validated({"loss": next(scores)})

    options = replace(
        OPTIONS, steps=100, validation=Validation(every=4, patience=2), saving=replace(OPTIONS.saving, final="best")
    )
    trained = trainer(tmp_path, options, validate=judge)
    result = trained.run()
    assert (result.stopped, result.step, result.best) == ("patience", 16, (1.0, 8))
    for parameter, best in zip(trained.model.parameters(), seen[1], strict=True):
        assert torch.equal(parameter, best)


def test_higher_can_be_better_and_the_best_are_averaged(tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0])
    options = replace(
        OPTIONS,
        validation=Validation(every=4, metric="bleu", better="higher"),
        saving=replace(OPTIONS.saving, final="average_best"),
    )
    trained = trainer(tmp_path, options, validate=lambda model: Validated({"bleu": next(scores)}))
    assert trained.run().weights == "mean of steps 4, 12"
    four, twelve = (checkpoint.read(tmp_path / "weights" / f"step-{s:08}.safetensors")[0] for s in (4, 12))
    for name, parameter in trained.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), (four[name] + twelve[name]) / 2)


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_a_metric_that_is_no_number_is_never_the_best(tmp_path: Path, better: Any) -> None:
    scores = iter([math.nan, 2.0, math.nan])
    options = replace(OPTIONS, validation=Validation(every=4, better=better))
    result = trainer(tmp_path, options, validate=lambda model: Validated({"loss": next(scores)})).run()
    assert result.best == (2.0, 8)


def test_bfloat16_is_close_to_float32_and_keeps_float32_weights(tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        trained = trainer(tmp_path / precision, replace(OPTIONS, precision=precision, dropout=0.0))
        trained.run()
        assert all(parameter.dtype == torch.float32 for parameter in trained.model.parameters())
        losses.append(lines(tmp_path / precision)[-1]["loss"])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_an_unknown_metric_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'loss'.*bleu, chrf"):
        trainer(tmp_path, validate=lambda model: Validated({"bleu": 1.0, "chrf": 2.0})).run()


def test_the_moving_average_is_what_is_judged_kept_and_returned(tmp_path: Path) -> None:
    judged: list[Tensor] = []

    def judge(model: Any) -> Validated:
        judged.append(model.middle.weight.detach().clone())
        return loss_on_three(model)

    trained = trainer(tmp_path, replace(OPTIONS, ema=0.9), validate=judge)
    trained.run()
    kept, _ = checkpoint.read(tmp_path / "weights" / "step-00000012.safetensors")
    assert torch.equal(trained.model.get_parameter("middle.weight"), judged[-1])
    assert torch.equal(kept["middle.weight"], judged[-1])
    state, _ = checkpoint.read(trained.checkpoint)
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
        trainer(tmp_path, replace(OPTIONS, accumulate=4), model=model, sampler=Pieces(10)).run()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_infinite_gradients_and_parameters_are_named(tmp_path: Path) -> None:
    model = Tiny()
    model.middle.weight.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    with pytest.raises(NonFiniteError, match="gradient of middle.weight"):
        trainer(tmp_path / "one", model=model).run()
    model = Tiny()
    model.middle.bias.data[2] = math.nan
    with pytest.raises(NonFiniteError, match="parameter middle.bias itself"):
        trainer(tmp_path / "two", model=model).run()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    before = weights(tmp_path)
    with pytest.raises(TrainingError, match="already holds a run"):
        trainer(tmp_path).run()
    assert weights(tmp_path) == before


def test_resuming_with_other_options_or_another_model_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(TrainingError, match=r"dropout=0.2.*another dropout"):
        trainer(tmp_path, replace(OPTIONS, dropout=0.3)).run(resume=True)
    with pytest.raises(CheckpointError, match=r"shape .*expected"):
        trainer(tmp_path, model=Tiny(width=4)).run(resume=True)
    with pytest.raises(CheckpointError, match="another model"):
        trainer(tmp_path, model=nn.Sequential(Tiny())).run(resume=True)


def test_an_interrupt_saves_says_where_and_resumes_to_the_same_end(tmp_path: Path) -> None:
    class Interrupting(Silent):
        notes: list[str] = []

        def tick(self, step: int, progress: float) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)

        def note(self, text: str) -> None:
            self.notes.append(text)

    whole = trainer(tmp_path / "whole", validate=loss_on_three)
    whole.run()
    show = Interrupting()
    result = trainer(tmp_path / "parts", validate=loss_on_three, show=show).run()
    assert result.stopped == "interrupted" and result.step <= 6
    assert any("checkpoint.safetensors" in note for note in show.notes)
    with pytest.raises(TrainingError):
        trainer(tmp_path / "parts").run()
    parts = trainer(tmp_path / "parts", validate=loss_on_three)
    assert parts.run(resume=True).stopped == "finished"
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(tmp_path, replace(OPTIONS, steps=3)).run()
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(*places: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left.*free some space"):
        checkpoint.write(tmp_path / "checkpoint.safetensors", {"a": torch.zeros(3)}, {})
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))
