"""Several processes for one step: on a CPU, two of one thread each do more than one of two threads.

The parameters lie in shared memory. Of each batch the trainer keeps a part for itself and gives each helper another; a
helper computes the gradient of its part into memory that the trainer sees, and the trainer adds them up. All else
(optimizer, validation, saving, stopping) is the trainer's alone, so a run with helpers resumes like any other.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from qkv.errors import TrainingError

BatchLossFunction = Callable[[Any], tuple[Tensor, Tensor]]
"""From a batch to its summed loss, with a graph behind it, and to its summed cross entropy without smoothing."""


class WorkerPool:
    """Helpers that share the parameters of `model`; none of them with `processes` 1.

    loss, collate: as in the trainer. The helpers are forked when the crew is entered, so both may be anything.
    """

    def __init__(
        self, model: nn.Module, compute_loss: BatchLossFunction, collate: Callable[[Sequence[int]], Any], workers: int
    ) -> None:
        self._model, self._compute_loss, self._collate = model, compute_loss, collate
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._workers: list[_Worker] = []
        self.size = workers

    def __enter__(self) -> Self:
        if self.size > 1:
            if "fork" not in multiprocessing.get_all_start_methods() or self._parameters[0].device.type != "cpu":
                raise TrainingError(
                    f"workers={self.size} was given; it needs a CPU and a system that forks (Linux). Set it to 1."
                )
            torch.set_num_threads(1)  # one core each; idle threads of a pool would wait in the way of the others
            self._model.share_memory()
            self._workers = [self._start_worker() for _ in range(self.size - 1)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for helper in self._workers:
            helper.pipe.close()  # a helper whose pipe ends, ends
        for helper in self._workers:
            helper.process.join(timeout=5)
            if helper.process.is_alive():
                helper.process.kill()
        self._workers = []

    def dispatch(self, indices: Sequence[int], normalizer: float) -> Sequence[int]:
        """Give each helper its part of a batch whose loss is divided by `tokens`; return the part that is left.

        Parts are taken in turn, so that all are alike in length. Each helper draws its dropout from a seed that comes
        out of this process' generator, which a checkpoint keeps.
        """
        for place, helper in enumerate(self._workers, 1):
            seed = int(torch.randint(2**62, ()))
            try:
                helper.pipe.send((list(indices[place :: self.size]), normalizer, seed))
            except ConnectionError as error:
                raise _worker_exit_error() from error
        return indices[:: self.size]

    def collect(self) -> Tensor:
        """Add the helpers' gradients to those of the parameters, after the own backward; return their two losses."""
        total = torch.zeros(2)
        for helper in self._workers:
            try:
                total += torch.tensor(helper.pipe.recv())
            except (EOFError, ConnectionError) as error:
                raise _worker_exit_error() from error
            for parameter, gradient in zip(self._parameters, helper.gradients, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient.clone()
                else:
                    parameter.grad.add_(gradient)
        return total

    def _start_worker(self) -> _Worker:
        context = multiprocessing.get_context("fork")
        flat = torch.zeros(sum(parameter.numel() for parameter in self._parameters))
        flat.share_memory_()  # type: ignore[no-untyped-call]
        parts = torch.split(flat, [parameter.numel() for parameter in self._parameters])
        gradients = [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]
        ours, theirs = context.Pipe()
        arguments = (theirs, ours, flat, gradients)
        process = context.Process(target=self._run_worker, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, gradients)

    def _run_worker(
        self, pipe: Connection, parent_pipe: Connection, flat_gradient: Tensor, gradients: list[Tensor]
    ) -> None:
        """A helper's life: part by part, until the pipe ends."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer to hear
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        parent_pipe.close()
        for helper in self._workers:  # ends that were inherited would keep other helpers alive
            helper.pipe.close()
        torch.set_num_threads(1)
        self._model.train()
        for buffer in self._model.buffers():
            buffer.data = buffer.data.clone()  # what is remembered of batches, the trainer's part of them tells
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        while True:
            try:
                numbers, tokens, seed = pipe.recv()
            except EOFError:
                return
            torch.manual_seed(seed)
            flat_gradient.zero_()
            losses = 0.0, 0.0
            if numbers:
                loss, plain = (one / tokens for one in self._compute_loss(self._collate(numbers)))
                loss.backward()
                losses = float(loss.detach()), float(plain)
            pipe.send(losses)


class _Worker:
    def __init__(self, process: Any, pipe: Connection, gradients: list[Tensor]) -> None:
        self.process, self.pipe, self.gradients = process, pipe, gradients


def _worker_exit_error() -> TrainingError:
    return TrainingError(
        "A worker process ended early (out of memory?). Lower data.batch_tokens or training.workers, and "
        "resume from the last checkpoint."
    )
