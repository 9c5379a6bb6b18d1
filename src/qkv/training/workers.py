"""Worker processes that share each step: on a CPU, two processes of one thread are faster than one of two threads.

The parameters are in shared memory. The trainer keeps one part of each batch and sends every worker another. A worker
writes the gradient of its part into shared memory, and the trainer adds the gradients up. The optimizer, validation,
checkpoints and stopping remain in the trainer, so a run with workers resumes like any other.
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
"""Takes a batch; returns its summed loss, with a graph, and its summed cross entropy without label smoothing."""


class WorkerPool:
    """Worker processes that share the parameters of `model`; there are none if `workers` is 1.

    compute_loss, collate: as in the trainer. Entering the pool forks the workers, so neither has to be picklable.
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
                    f"workers={self.size} was given, but several workers need a CPU and a system that forks (Linux). "
                    "Set it to 1."
                )
            torch.set_num_threads(1)  # one core each: idle threads of a thread pool would slow the others down
            self._model.share_memory()
            self._workers = [self._start_worker() for _ in range(self.size - 1)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.pipe.close()  # a worker exits when its pipe is closed
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
        self._workers = []

    def dispatch(self, indices: Sequence[int], normalizer: float) -> Sequence[int]:
        """Send each worker its part of a batch whose loss is divided by `normalizer`; return the trainer's own part.

        The examples are dealt in turn, so that all parts have similar lengths. The seed of each worker's dropout is
        drawn from the random generator of this process, which is saved in checkpoints.
        """
        for place, worker in enumerate(self._workers, 1):
            seed = int(torch.randint(2**62, ()))
            try:
                worker.pipe.send((list(indices[place :: self.size]), normalizer, seed))
            except ConnectionError as error:
                raise _worker_exit_error() from error
        return indices[:: self.size]

    def collect(self) -> Tensor:
        """Add the workers' gradients to the parameters' own, after the trainer's backward; return their losses."""
        total = torch.zeros(2)
        for worker in self._workers:
            try:
                total += torch.tensor(worker.pipe.recv())
            except (EOFError, ConnectionError) as error:
                raise _worker_exit_error() from error
            for parameter, gradient in zip(self._parameters, worker.gradients, strict=True):
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
        """Compute gradients part by part, until the pipe is closed."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C and the end of a terminal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        parent_pipe.close()
        for worker in self._workers:  # inherited pipe ends would keep the other workers alive
            worker.pipe.close()
        torch.set_num_threads(1)
        self._model.train()
        for buffer in self._model.buffers():
            buffer.data = buffer.data.clone()  # running statistics come from the trainer's part of each batch
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
