"""The training loop: one class that makes steps, judges, saves, stops and resumes to the exact next step."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from qkv.data.batch import Batch
from qkv.errors import CheckpointError, TrainingError
from qkv.layers import set_dropout
from qkv.training import checkpoint, optimizer
from qkv.training.crew import Crew
from qkv.training.loss import step_tokens, with_plain
from qkv.training.nonfinite import explain
from qkv.training.options import Training
from qkv.training.progress import Display, Metrics, Window, display
from qkv.training.signals import interruptible
from qkv.training.standing import Shelf, Standing

_CHECKPOINT = "checkpoint.safetensors"


class Sampler(Protocol):
    """Chooses the examples of each batch, for ever. `state` and `restore` take it to the exact next batch."""

    def __iter__(self) -> Iterator[Sequence[int]]: ...
    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON; under "examples", how many of them make an epoch."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` says."""


@dataclass(frozen=True)
class Validated:
    """What validating found: metrics by name, and a few lines for people to read."""

    metrics: Mapping[str, float]
    samples: Sequence[str] = ()


@dataclass(frozen=True)
class Result:
    """How a run ended. `best` is the best validation's metric and step; `weights` says which the model now has."""

    stopped: Literal["finished", "patience", "interrupted"]
    step: int
    seconds: float
    metrics: Mapping[str, float]
    best: tuple[float, int] | None
    weights: str


Losses: TypeAlias = Callable[[Any, Batch], tuple[Tensor, Tensor]]


class Trainer:
    """Trains `model` as `options` say, on batches that `sampler` chooses and `collate` makes.

    `folder` receives checkpoint.safetensors (all that resuming needs), weights/ and metrics.jsonl. `validate` is given
    the model in evaluation mode with the weights to be judged (the moving average, if there is one). `losses`, of the
    model and a batch: the loss summed over the batch's target tokens, and what is told beside it, likewise and without
    a gradient; without, cross entropy, and that without smoothing.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Training,
        sampler: Sampler,
        collate: Callable[[Sequence[int]], Batch],
        folder: Path | str,
        *,
        validate: Callable[[Any], Validated] | None = None,
        show: Display | None = None,
        device: torch.device | str = "cpu",
        losses: Losses | None = None,
    ) -> None:
        self.losses = losses
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.options = options
        self.sampler = sampler
        self.examples = int(sampler.state()["examples"])
        self.collate = collate
        self.folder = Path(folder)
        self.validate = validate
        self.show = show if show is not None else display()
        self.standing = Standing()
        self.shelf = Shelf(self.folder / "weights")
        set_dropout(model, options.dropout, attention=options.attention_dropout)
        self.autocast = _half(options.precision, self.device)
        self.optimizers = optimizer.Optimizers(model, options.optimizer)
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(self._named.values())
        # what normalises over batches remembers means and variances: they go with the parameters they were found with
        running = {
            name: tensor
            for name, tensor in self._weights().items()
            if not isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        }
        self._averaged = self._named | running
        self.average = (
            optimizer.MovingAverage(list(self._averaged.values()), options.ema) if options.ema is not None else None
        )
        self._crew = Crew(model, self._forward, collate, options.processes)

    @property
    def checkpoint(self) -> Path:
        """The file to resume from."""
        return self.folder / _CHECKPOINT

    def run(self, resume: bool = False) -> Result:
        """Train to the end and leave the final weights in the model, in evaluation mode.

        With `resume` a run that was stopped or killed goes on from its checkpoint, or begins if it had none. Raises
        NonFiniteError on NaN or infinity, StorageError on a full disk, CheckpointError on a damaged checkpoint and
        TrainingError if the folder holds a run that was not to be resumed.
        """
        self._window = Window()
        self._begin(resume)
        self._metrics = Metrics(
            self.folder / "metrics.jsonl",
            upto=self.standing.step,
            tensorboard=self.folder / "tensorboard" if self.options.saving.tensorboard else None,
        )
        try:
            with interruptible(self.show) as interrupted, self._crew, self.show:
                stopped = self._loop(interrupted)
                return self._finish(stopped)
        finally:
            self._metrics.close()

    def _loop(self, interrupted: threading.Event) -> Literal["finished", "patience", "interrupted"]:
        options, standing = self.options, self.standing
        begun = time.monotonic() - standing.seconds
        batches = iter(self.sampler)
        saved = validated = standing.step
        stopped: Literal["finished", "patience", "interrupted"] | None = self._ended()
        self.model.train()
        while stopped is None:
            self._step(batches)
            standing.seconds = time.monotonic() - begun
            stopped = "interrupted" if interrupted.is_set() else self._ended()
            self.show.tick(standing.step, standing.progress(options, self.examples))
            if standing.step % options.saving.log_every == 0 or stopped:
                self._log()
            due = standing.step % options.validation.every == 0 or stopped == "finished"
            if due and self.validate is not None:
                self._validate()
                validated = standing.step
                standing.seconds = time.monotonic() - begun
                stopped = "interrupted" if interrupted.is_set() else self._ended()
            if stopped or validated == standing.step or standing.step % options.saving.every == 0:
                self._save()
                saved = standing.step
        if stopped == "interrupted":
            self.show.note(f"Stopped at step {saved:,}. Saved in {self.checkpoint}: resume to go on from here.")
        return stopped

    def _ended(self) -> Literal["finished", "patience"] | None:
        patience = self.options.validation.patience
        if patience is not None and self.standing.stale >= patience:
            return "patience"
        return "finished" if self.standing.progress(self.options, self.examples) >= 1.0 else None

    def _step(self, choices: Iterator[Sequence[int]]) -> None:
        """Make one optimizer step out of `accumulate` batches."""
        started = time.perf_counter()
        options, standing = self.options, self.standing
        chosen = [next(choices) for _ in range(options.accumulate)]
        batches = [self.collate(numbers) for numbers in chosen]
        tokens = sum(batch.target_tokens for batch in batches)
        share = step_tokens(tokens, self.device)
        random = torch.get_rng_state()
        total = torch.zeros(2, device=self.device)  # the loss, and the cross entropy without smoothing
        for numbers, batch in zip(chosen, batches, strict=True):
            own = self._crew.share(numbers, share)
            losses = self._forward(batch if len(own) == len(numbers) else self.collate(own))
            loss, plain = (one / share for one in losses)
            loss.backward()  # type: ignore[no-untyped-call]
            total += torch.stack((loss.detach(), plain)) + self._crew.gather().to(self.device)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None], foreach=True)
        # one transfer a step: the only place where the processor waits for an accelerator
        loss_value, plain_value, norm_value = torch.stack((*total, norm)).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            torch.set_rng_state(random)  # the same dropout, so that the same numbers arise
            raise explain(self.model, lambda batch: self._forward(batch)[0], batches, standing.step + 1, self._remedy())
        largest = options.optimizer.clip
        if largest is not None and norm_value > largest:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, largest, norm, foreach=True)
        progress = standing.progress(options, self.examples, ahead=0.5)  # the middle of this step
        peak_share = optimizer.factor(options.schedule, standing.step + 1, progress)
        self.optimizers.step(peak_share)
        standing.step += 1
        if self.average is not None:
            self.average.update(standing.step)
        standing.examples += sum(len(batch.index) for batch in batches)
        standing.target_tokens += tokens
        seconds = time.perf_counter() - started
        rate = options.optimizer.learning_rate * peak_share
        self._window.add(batches, tokens, loss_value, plain_value, norm_value, rate, seconds)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss summed over the batch's target tokens, and the cross entropy without smoothing likewise."""
        batch = batch.to(self.device)
        # only a model that can keep texts of a row apart is given several
        more = {} if batch.documents is None else {"documents": batch.documents}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            if self.losses is not None:
                return self.losses(self.model, batch)
            logits = self.model(source=batch.source, target=batch.target, source_mask=batch.source_mask, **more)
        return with_plain(logits, batch.labels, self.options.label_smoothing)

    def _remedy(self) -> str:
        way = "Look at these examples; lower optimizer.learning_rate, set optimizer.clip or use precision: float32."
        kept = f" The checkpoint of the last save is whole: {self.checkpoint}." if self.checkpoint.exists() else ""
        return way + kept

    def _log(self) -> None:
        standing = self.standing
        progress = standing.progress(self.options, self.examples)
        record = self._window.record(standing, progress, self.examples)
        if record is not None:
            self._metrics.training(record)
            self.show.record(record)
        self._window = Window()

    def _validate(self) -> None:
        assert self.validate is not None
        wanted = self.options.validation.metric
        devices = [self.device] if self.device.type == "cuda" else []
        with self._judged(), torch.random.fork_rng(devices), torch.no_grad():
            found = self.validate(self.model)
        if wanted not in found.metrics:
            raise TrainingError(
                f"validation.metric is {wanted!r}, and validating gave {', '.join(sorted(found.metrics)) or 'nothing'}."
                " Expected one of these: change validation.metric and resume."
            )
        metrics = {name: float(value) for name, value in found.metrics.items()}
        best = self.standing.judge(metrics[wanted], self.options)
        self.standing.metrics = metrics
        self._metrics.validation(self.standing.step, metrics, found.samples)
        self.show.validated(self.standing.step, metrics, found.samples, best)

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Have the model as it would be used: in evaluation mode, with the moving average."""
        if self.average is not None:
            self.average.swap()
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            if self.average is not None:
                self.average.swap()

    # -- saving and resuming ------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Tensor]:
        """The model's parameters and buffers by name, each once, as they are (not copies)."""
        kept = self.model.state_dict(keep_vars=True)
        names = [name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())]
        return {name: kept[name] for name in names if name in kept}

    def _save(self) -> None:
        """Write the weights to keep, then the checkpoint that speaks of them, then drop what it no longer names."""
        standing, saving = self.standing, self.options.saving
        standing.last = [standing.step, *(s for s in standing.last if s != standing.step)][: saving.keep_last]
        kept = {*standing.last, *(step for _, step in standing.best[: saving.keep_best])}
        if standing.step in kept:
            with self._judged():
                checkpoint.write(self.shelf.path(standing.step), self._weights(), {"step": standing.step})
        tensors = {f"model.{name}": tensor for name, tensor in self._weights().items()}
        for name, parameter in self._named.items():
            for part, tensor in self.optimizers.state(parameter).items():
                tensors[f"optimizer.{name}.{part}"] = tensor
        if self.average is not None:
            tensors |= {f"average.{name}": t for name, t in zip(self._averaged, self.average.average, strict=True)}
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            "standing": standing.to_json(),
            "window": asdict(self._window),
            "sampler": self.sampler.state(),
            "options": _fixed(self.options),
        }
        checkpoint.write(self.checkpoint, tensors, state)
        self.shelf.keep(kept)

    def _begin(self, resume: bool) -> None:
        claim(self.folder, resume)
        self.optimizers.forget()
        if not self.checkpoint.exists():
            if resume:
                self.show.note(f"{self.folder} holds no checkpoint to resume from: beginning anew.")
            torch.manual_seed(self.options.seed)
            return
        tensors, state = checkpoint.read(self.checkpoint)
        if "random" not in tensors or not state.keys() >= {"options", "standing", "window", "sampler"}:
            raise CheckpointError(
                f"{self.checkpoint} holds no state of a training run; expected a checkpoint to resume from, not a "
                "model's weights. Copy it again, or begin a new run."
            )
        changed = [name for name, value in _fixed(self.options).items() if state["options"].get(name) != value]
        if changed:
            was = ", ".join(f"{name}={state['options'].get(name)}" for name in changed)
            raise TrainingError(
                f"This run began with {was} and would go on with another {', '.join(changed)}. Expected the same: only "
                "when it ends, validation and saving may change on resuming. Change it back, or begin a new run."
            )
        self._restore(tensors)
        self.standing = Standing.from_json(state["standing"])
        self._window = Window(**state["window"])
        self.sampler.restore(state["sampler"])
        self.shelf.keep({*self.standing.last, *(step for _, step in self.standing.best)})
        self.show.note(f"Resuming from step {self.standing.step:,}.")

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        places = {f"model.{name}": tensor for name, tensor in self._weights().items()}
        for name, parameter in self._named.items():
            parts = ("step", "exp_avg", "exp_avg_sq", "momentum")  # of Adam, and of Muon
            state = {part: tensors.pop(f"optimizer.{name}.{part}", None) for part in parts}
            # copies, because what was read may still lie in the file that the next save replaces
            copies = {part: t.to(self.device, copy=True) for part, t in state.items() if t is not None}
            if copies:
                self.optimizers.restore(parameter, copies)
        if self.average is not None:
            places |= {f"average.{name}": t for name, t in zip(self._averaged, self.average.average, strict=True)}
        random, cuda = tensors.pop("random"), tensors.pop("random.cuda", None)
        _fill(places, tensors, self.checkpoint)
        torch.set_rng_state(random)
        if cuda is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(cuda, self.device)

    def _finish(self, stopped: Literal["finished", "patience", "interrupted"]) -> Result:
        """Put the final weights into the model."""
        standing, final = self.standing, self.options.saving.final
        best = [step for _, step in standing.best[: self.options.saving.keep_best]]
        chosen = {"last": [], "best": best[:1], "average_last": standing.last, "average_best": best}[final]
        if self.average is not None:
            self.average.swap()
        weights = f"step {standing.step}" if self.average is None else f"moving average at step {standing.step}"
        if chosen:
            paths = [self.shelf.path(step) for step in sorted(chosen)]
            found = checkpoint.average(paths) if len(paths) > 1 else checkpoint.read(paths[0])[0]
            with torch.no_grad():
                _fill(dict(self._weights()), found, paths[0])
            weights = f"{'mean of steps' if len(paths) > 1 else 'step'} {', '.join(map(str, sorted(chosen)))}"
        self.model.eval()
        first = standing.best[0] if standing.best else None
        return Result(stopped, standing.step, standing.seconds, standing.metrics, first, weights)


def claim(folder: Path, resume: bool) -> None:
    """Raise TrainingError if the folder holds a saved run that is not to be resumed: a new one would overwrite it."""
    if not resume and (folder / _CHECKPOINT).exists():
        raise TrainingError(
            f"{folder} already holds a run. Resume it (--resume), or choose another folder for a new one (--folder)."
        )


def _half(precision: str, device: torch.device) -> bool:
    """Whether to compute matrix products in bfloat16: always where asked, else where the hardware does it natively."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _fixed(options: Training) -> dict[str, str]:
    """The options that may not change on resuming, in words."""
    free = {"steps", "epochs", "minutes", "validation", "saving"}
    return {f.name: repr(getattr(options, f.name)) for f in fields(options) if f.name not in free}


def _fill(places: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    """Copy every tensor of a file into its place; each place must be filled and each tensor used."""
    wrong = sorted(places.keys() ^ tensors.keys())
    if wrong:
        where = "the file" if wrong[0] in tensors else "this model"
        raise CheckpointError(
            f"{path} was made for another model: {wrong[0]!r} is only in {where} ({len(wrong)} such names). Expected a "
            "checkpoint of the same spec."
        )
    for name, place in places.items():
        if place.shape != tensors[name].shape:
            raise CheckpointError(
                f"{path} was made for another model: {name} has shape {tuple(tensors[name].shape)}, expected "
                f"{tuple(place.shape)}. Use the spec the run began with."
            )
        place.data.copy_(tensors[name])
