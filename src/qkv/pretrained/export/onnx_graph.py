"""Modules traced and written as ONNX graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

OPSET = 23
EXAMPLE_BATCH, EXAMPLE_LENGTH, EXAMPLE_PAST, EXAMPLE_SOURCES = (
    2,
    3,
    4,
    5,
)  # of the example that is traced; none equals another by accident

Axes = Mapping[int, str]
Inputs = dict[str, tuple[Tensor, Axes]]


@dataclass(frozen=True)
class OnnxGraph:
    """A module without state, what it takes, by name, and the names of what it gives.

    inputs: for each argument, an example or several, each with the names of those of its axes whose size may change;
    a single one is given as a tensor, several as a list.
    """

    module: nn.Module
    inputs: tuple[Inputs, ...]
    outputs: tuple[str, ...]


class _ExpandMasks(TorchFunctionMode):
    """Gives every attention a mask with a row for each query: onnxruntime takes none that broadcasts over them."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is functional.scaled_dot_product_attention and kwargs.get("attn_mask") is not None:
            mask, query, key = kwargs["attn_mask"], args[0], args[1]
            kwargs["attn_mask"] = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])
        return function(*args, **kwargs)


def save_graph(graph: OnnxGraph, path: Path) -> None:
    """Trace a module with its example and write the graph, with the parameters in it or, from 2 GB on, beside it."""
    example = tuple(_unwrap_single([tensor for tensor, _ in one.values()]) for one in graph.inputs)
    free = tuple(
        _unwrap_single([dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _, axes in one.values()])
        for one in graph.inputs
    )
    named = tuple(_unwrap_single([dict(axes) for _, axes in one.values()]) for one in graph.inputs)
    with torch.no_grad(), _silence_exporter():
        # What a model asks of sizes, such as no more tokens than there are positions, must not bind the graph to
        # the example's: it is left to the operators.
        with _ExpandMasks():
            traced = torch.export.export(
                graph.module, example, dynamic_shapes=free, prefer_deferred_runtime_asserts_over_guards=True
            )
        program = torch.onnx.export(
            traced,
            opset_version=OPSET,
            input_names=[name for one in graph.inputs for name in one],
            output_names=list(graph.outputs),
            dynamic_shapes=named,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def _unwrap_single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Keep what the exporter says of itself, and of libraries it looks for, from the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
