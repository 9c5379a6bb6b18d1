"""The training loop: one class that makes steps, judges, saves, stops and resumes to the exact next step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from qkv.data.batch import Batch
from qkv.errors import CheckpointError, TrainingError, is_out_of_memory
from qkv.layers import set_dropout
from qkv.training import checkpoints, optim, restore
from qkv.training.config import TrainingConfig
from qkv.training.loss import loss_normalizer, smoothed_and_plain_cross_entropy
from qkv.training.nonfinite import locate_nonfinite
from qkv.training.reporters import MetricsLogger, MetricsWindow, Reporter, make_reporter
from qkv.training.signals import Interruption, handle_interrupts
from qkv.training.state import CheckpointManager, TrainState
from qkv.training.workers import WorkerPool

CHECKPOINT_NAME = "checkpoint.safetensors"


class Sampler(Protocol):
    """Chooses the examples of each batch, for ever. `state` and `restore` take it to the exact next batch."""

    def __iter__(self) -> Iterator[Sequence[int]]: ...
    def state(self) -> dict[str, Any]:
        """Return the position as JSON, with the number of examples of an epoch under "examples"."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` says."""


@dataclass(frozen=True)
class ValidationResult:
    """What validating found: metrics by name, and a few lines for people to read."""

    metrics: Mapping[str, float]
    samples: Sequence[str] = ()


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `best` is the best validation's metric and step; `weights` says which the model now has.

    signal: the number of the signal that interrupted the run.
    """

    stop_reason: Literal["finished", "early_stopping", "interrupted"]
    step: int
    seconds: float
    metrics: Mapping[str, float]
    best: tuple[float, int] | None
    weights: str
    signal: int | None = None


LossFunction: TypeAlias = Callable[[Any, Batch], tuple[Tensor, Tensor]]


class Trainer:
    """Trains `model` as `config` says, on batches that `sampler` chooses and `collate` builds.

    folder: receives checkpoint.safetensors (all that resuming needs), weights/ and metrics.jsonl.
    validate: is called with the model in evaluation mode and the weights to be judged (the moving average, if any).
    compute_loss: from the model and a batch to the loss to minimize and the loss to report, each summed over the target
        tokens of the batch; by default the cross entropy with and without label smoothing.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        sampler: Sampler,
        collate: Callable[[Sequence[int]], Batch],
        folder: Path | str,
        *,
        validate: Callable[[Any], ValidationResult] | None = None,
        reporter: Reporter | None = None,
        compute_loss: LossFunction | None = None,
    ) -> None:
        self.compute_loss = compute_loss
        self.device = next(model.parameters()).device  # the model lies where it is to be trained
        self.model = model
        self.config = config
        self.sampler = sampler
        self.examples_per_epoch = int(sampler.state()["examples"])
        self.collate = collate
        self.folder = Path(folder)
        self.validate = validate
        self.reporter = reporter if reporter is not None else make_reporter()
        self.state = TrainState()
        self.checkpoint_manager = CheckpointManager(self.folder / "weights")
        set_dropout(model, config.dropout, attention=config.attention_dropout)
        self.is_autocast_enabled = _use_bfloat16(config.precision, self.device)
        self.optimizers = optim.Optimizers(model, config.optimizer)
        self._named_parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(self._named_parameters.values())
        # what normalises over batches remembers means and variances: they go with the parameters they were found with
        running = {
            name: tensor
            for name, tensor in self._model_tensors().items()
            if not isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        }
        self._ema_tensors = self._named_parameters | running
        self.ema = (
            optim.ExponentialMovingAverage(list(self._ema_tensors.values()), config.ema_decay)
            if config.ema_decay is not None
            else None
        )
        self._worker_pool = WorkerPool(model, self._compute_losses, collate, config.workers)

    @property
    def checkpoint_path(self) -> Path:
        """The file to resume from."""
        return self.folder / CHECKPOINT_NAME

    def train(self, resume: bool = False) -> TrainResult:
        """Train to the end and leave the final weights in the model, in evaluation mode.

        With `resume` a run that was stopped or killed continues from its checkpoint, or begins if it had none. Raises
        NonFiniteError on NaN or infinity, StorageError on a full disk, CheckpointError on a damaged checkpoint and
        TrainingError if the folder holds a run that was not to be resumed.
        """
        self._metrics_window = MetricsWindow()
        self._start_or_resume(resume)
        self._metrics_logger = MetricsLogger(
            self.folder / "metrics.jsonl",
            last_step=self.state.step,
            tensorboard_folder=self.folder / "tensorboard" if self.config.checkpointing.tensorboard else None,
            wandb=self.config.checkpointing.wandb,
        )
        try:
            with handle_interrupts(self.reporter) as interrupted, self._worker_pool, self.reporter:
                stopped = self._train_loop(interrupted)
                return replace(self._load_final_weights(stopped), signal=interrupted.number)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"The memory of {self.device} ran out after step {self.state.step} ({str(error)[:200]}). Make "
                "the batches smaller (data.batch_tokens; training.gradient_accumulation makes up for it) or the model, "
                "and resume from the last checkpoint."
            ) from error
        finally:
            self._metrics_logger.close()

    def _train_loop(self, interrupted: Interruption) -> Literal["finished", "early_stopping", "interrupted"]:
        options, standing = self.config, self.state
        started = time.monotonic() - standing.seconds
        batches = iter(self.sampler)
        saved = validated = standing.step
        stopped: Literal["finished", "early_stopping", "interrupted"] | None = self._stop_reason()
        self.model.train()
        while stopped is None:
            self._train_step(batches)
            standing.seconds = time.monotonic() - started
            stopped = "interrupted" if interrupted.is_set() else self._stop_reason()
            self.reporter.on_step_end(standing.step, standing.compute_progress(options, self.examples_per_epoch))
            if standing.step % options.checkpointing.log_every == 0 or stopped:
                self._log_metrics()
            due = standing.step % options.validation.every == 0 or stopped == "finished"
            if due and self.validate is not None:
                self._validate()
                validated = standing.step
                standing.seconds = time.monotonic() - started
                stopped = "interrupted" if interrupted.is_set() else self._stop_reason()
            if stopped or validated == standing.step or standing.step % options.checkpointing.every == 0:
                is_regular = validated == standing.step or standing.step % options.checkpointing.every == 0
                self._save_checkpoint(keep=is_regular or stopped != "interrupted")
                saved = standing.step
        if stopped == "interrupted":
            self.reporter.message(
                f"Stopped at step {saved:,}. Saved in {self.checkpoint_path}: resume to go on from here."
            )
        return stopped

    def _stop_reason(self) -> Literal["finished", "early_stopping"] | None:
        patience = self.config.validation.patience
        if patience is not None and self.state.validations_since_best >= patience:
            return "early_stopping"
        return "finished" if self.state.compute_progress(self.config, self.examples_per_epoch) >= 1.0 else None

    def _train_step(self, index_batches: Iterator[Sequence[int]]) -> None:
        """Make one optimizer step out of `gradient_accumulation` batches."""
        started = time.perf_counter()
        options, standing = self.config, self.state
        chosen = [next(index_batches) for _ in range(options.gradient_accumulation)]
        batches = [self.collate(numbers) for numbers in chosen]
        tokens = sum(batch.target_tokens for batch in batches)
        share = loss_normalizer(tokens, self.device)
        random = torch.get_rng_state()
        total = torch.zeros(2, device=self.device)  # the loss, and the cross entropy without smoothing
        for numbers, batch in zip(chosen, batches, strict=True):
            own = self._worker_pool.dispatch(numbers, share)
            losses = self._compute_losses(batch if len(own) == len(numbers) else self.collate(own))
            loss, plain = (one / share for one in losses)
            loss.backward()  # type: ignore[no-untyped-call]
            total += torch.stack((loss.detach(), plain)) + self._worker_pool.collect().to(self.device)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None], foreach=True)
        # one transfer a step: the only place where the processor waits for an accelerator
        loss_value, plain_value, norm_value = torch.stack((*total, norm)).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            torch.set_rng_state(random)  # the same dropout, so that the same numbers arise
            raise locate_nonfinite(
                self.model,
                lambda batch: self._compute_losses(batch)[0],
                batches,
                standing.step + 1,
                self._suggest_remedy(),
            )
        largest = options.optimizer.max_grad_norm
        if largest is not None and norm_value > largest:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, largest, norm, foreach=True)
        progress = standing.compute_progress(
            options, self.examples_per_epoch, steps_ahead=0.5
        )  # the middle of this step
        peak_share = optim.lr_multiplier(options.schedule, standing.step + 1, progress)
        self.optimizers.step(peak_share)
        standing.step += 1
        if self.ema is not None:
            self.ema.update(standing.step)
        standing.examples += sum(len(batch.index) for batch in batches)
        standing.target_tokens += tokens
        seconds = time.perf_counter() - started
        rate = options.optimizer.learning_rate * peak_share
        self._metrics_window.update(batches, tokens, loss_value, plain_value, norm_value, rate, seconds)

    def _compute_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss summed over the batch's target tokens, and the cross entropy without smoothing likewise."""
        batch = batch.to(self.device)
        # only a model that can keep texts of a row apart is given several
        more = {} if batch.documents is None else {"documents": batch.documents}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_autocast_enabled):
            if self.compute_loss is not None:
                return self.compute_loss(self.model, batch)
            logits = self.model(source=batch.source, target=batch.target, source_mask=batch.source_mask, **more)
        return smoothed_and_plain_cross_entropy(logits, batch.labels, self.config.label_smoothing)

    def _suggest_remedy(self) -> str:
        way = "Look at these examples; lower optimizer.learning_rate, set optimizer.max_grad_norm or use precision: "
        "float32."
        kept = (
            f" The checkpoint of the last save is whole: {self.checkpoint_path}."
            if self.checkpoint_path.exists()
            else ""
        )
        return way + kept

    def _log_metrics(self) -> None:
        standing = self.state
        progress = standing.compute_progress(self.config, self.examples_per_epoch)
        record = self._metrics_window.summarize(standing, progress, self.examples_per_epoch)
        if record is not None:
            self._metrics_logger.log_training(record)
            self.reporter.on_log(record)
        self._metrics_window = MetricsWindow()

    def _validate(self) -> None:
        assert self.validate is not None
        metric = self.config.validation.metric
        devices = [self.device] if self.device.type == "cuda" else []
        with self._evaluation_mode(), torch.random.fork_rng(devices), torch.no_grad():
            found = self.validate(self.model)
        if metric not in found.metrics:
            raise TrainingError(
                f"validation.metric is {metric!r}, and validating gave {', '.join(sorted(found.metrics)) or 'nothing'}."
                " Expected one of these: change validation.metric and resume."
            )
        metrics = {name: float(value) for name, value in found.metrics.items()}
        best = self.state.update_best(metrics[metric], self.config)
        self.state.metrics = metrics
        self._metrics_logger.log_validation(self.state.step, metrics, found.samples)
        self.reporter.on_validation_end(self.state.step, metrics, found.samples, best)

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        """Have the model as it would be used: in evaluation mode, with the moving average."""
        if self.ema is not None:
            self.ema.swap()
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            if self.ema is not None:
                self.ema.swap()

    # -- saving and resuming ------------------------------------------------------------------------------------

    def _model_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the model by name, each once and not copied."""
        kept = self.model.state_dict(keep_vars=True)
        names = [name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())]
        return {name: kept[name] for name in names if name in kept}

    def _save_checkpoint(self, *, keep: bool) -> None:
        """Write the weights to keep, then the checkpoint that names them, then remove those it no longer names.

        keep: whether these weights count among the last: not after an interruption, or a resumed run would average
        other steps than one that was never interrupted.
        """
        standing, saving = self.state, self.config.checkpointing
        if keep:
            others = (step for step in standing.last_checkpoints if step != standing.step)
            standing.last_checkpoints = [standing.step, *others][: saving.keep_last]
        kept = {*standing.last_checkpoints, *(step for _, step in standing.best_checkpoints[: saving.keep_best])}
        if standing.step in kept:
            with self._evaluation_mode():
                checkpoints.save_checkpoint(
                    self.checkpoint_manager.weights_path(standing.step), self._model_tensors(), {"step": standing.step}
                )
        tensors = {f"model.{name}": tensor for name, tensor in self._model_tensors().items()}
        for name, parameter in self._named_parameters.items():
            for part, tensor in self.optimizers.get_state(parameter).items():
                tensors[f"optimizer.{name}.{part}"] = tensor
        if self.ema is not None:
            tensors |= {f"ema.{name}": t for name, t in zip(self._ema_tensors, self.ema.averages, strict=True)}
        tensors["rng_state"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng_state.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            "train_state": standing.to_json(),
            "metrics_window": asdict(self._metrics_window),
            "sampler": self.sampler.state(),
            "config": _settings_fixed_on_resume(self.config),
        }
        checkpoints.save_checkpoint(self.checkpoint_path, tensors, state)
        self.checkpoint_manager.prune(kept)

    def _start_or_resume(self, resume: bool) -> None:
        check_run_folder(self.folder, resume)
        self.optimizers.zero_grad()
        if not self.checkpoint_path.exists():
            if resume:
                self.reporter.message(f"{self.folder} holds no checkpoint to resume from: starting a new run.")
            torch.manual_seed(self.config.seed)
            return
        tensors, state = checkpoints.load_checkpoint(self.checkpoint_path)
        parts = {"config", "train_state", "metrics_window", "sampler"}
        if "rng_state" not in tensors or not all(isinstance(state.get(part), dict) for part in parts):
            raise CheckpointError(
                f"{self.checkpoint_path} holds no state of a training run; expected a checkpoint to resume from, not a "
                "model's weights. Copy it again, or begin a new run."
            )
        changed = [
            name for name, value in _settings_fixed_on_resume(self.config).items() if state["config"].get(name) != value
        ]
        if changed:
            was = ", ".join(f"{name}={state['config'].get(name)}" for name in changed)
            raise TrainingError(
                f"This run began with {was} and would continue with another {', '.join(changed)}. Expected the same: "
                "only when it ends, validation and checkpointing may change. Change it back, or begin a new run."
            )
        standing = TrainState.from_json(state["train_state"], self.checkpoint_path)
        window = MetricsWindow.from_json(state["metrics_window"], self.checkpoint_path)
        self.sampler.restore(state["sampler"])
        self._restore_tensors(tensors)
        self.state, self._metrics_window = standing, window
        self.checkpoint_manager.prune(
            {*self.state.last_checkpoints, *(step for _, step in self.state.best_checkpoints)}
        )
        self.reporter.message(f"Resuming from step {self.state.step:,}.")

    @torch.no_grad()
    def _restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put the tensors of a checkpoint into their places. Raises CheckpointError, with nothing changed yet."""
        path = self.checkpoint_path
        places = {f"model.{name}": tensor for name, tensor in self._model_tensors().items()}
        states: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self._named_parameters.items():
            prefix, parts = f"optimizer.{name}.", self.optimizers.get_state_names(parameter)
            states[name] = {part: tensors.pop(prefix + part) for part in parts if prefix + part in tensors}
            restore.check_optimizer_state(name, parameter, states[name], parts, path)
        if self.ema is not None:
            places |= {f"ema.{name}": t for name, t in zip(self._ema_tensors, self.ema.averages, strict=True)}
        random, cuda = tensors.pop("rng_state"), tensors.pop("rng_state.cuda", None)
        restore.check_random_state(random, torch.device("cpu"), path)
        if cuda is not None and self.device.type == "cuda":
            restore.check_random_state(cuda, self.device, path)
        restore.check_tensors(places, tensors, path)
        for name, place in places.items():
            if place.is_floating_point():
                restore.check_finite(name, tensors[name], path)
        restore.copy_tensors(places, tensors, path)
        for name, parameter in self._named_parameters.items():
            if states[name]:
                # copies, because what was read may still lie in the file that the next save replaces
                copies = {part: tensor.to(self.device, copy=True) for part, tensor in states[name].items()}
                self.optimizers.set_state(parameter, copies)
        torch.set_rng_state(random)
        if cuda is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(cuda, self.device)

    def _load_final_weights(self, stop_reason: Literal["finished", "early_stopping", "interrupted"]) -> TrainResult:
        """Put the final weights into the model."""
        standing, final = self.state, self.config.checkpointing.final_weights
        best = [step for _, step in standing.best_checkpoints[: self.config.checkpointing.keep_best]]
        chosen = {"last": [], "best": best[:1], "average_last": standing.last_checkpoints, "average_best": best}[final]
        if self.ema is not None:
            self.ema.swap()
        weights = f"step {standing.step}" if self.ema is None else f"moving average at step {standing.step}"
        if chosen:
            paths = [self.checkpoint_manager.weights_path(step) for step in sorted(chosen)]
            found = (
                checkpoints.average_checkpoints(paths) if len(paths) > 1 else checkpoints.load_checkpoint(paths[0])[0]
            )
            with torch.no_grad():
                restore.copy_tensors(self._model_tensors(), found, paths[0])
            weights = f"{'mean of steps' if len(paths) > 1 else 'step'} {', '.join(map(str, sorted(chosen)))}"
        self.model.eval()
        first = standing.best_checkpoints[0] if standing.best_checkpoints else None
        return TrainResult(stop_reason, standing.step, standing.seconds, standing.metrics, first, weights)


def check_run_folder(folder: Path, resume: bool) -> None:
    """Raise TrainingError if the folder holds a saved run that is not to be resumed: a new one would overwrite it."""
    if not resume and (folder / CHECKPOINT_NAME).exists():
        raise TrainingError(
            f"{folder} already holds a run. Resume it (--resume), or choose another folder for the new one (--folder)."
        )


def _use_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether to compute products in bfloat16: as the recipe says, or where the hardware does so natively."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _settings_fixed_on_resume(config: TrainingConfig) -> dict[str, str]:
    """Return the options that may not change on resuming, in words."""
    free = {"max_steps", "max_epochs", "max_minutes", "validation", "checkpointing"}
    return {f.name: repr(getattr(config, f.name)) for f in fields(config) if f.name not in free}
