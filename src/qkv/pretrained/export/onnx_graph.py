"""Tracing of modules and writing of ONNX graphs."""

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
)  # sizes of the traced example; they differ from all other sizes

Axes = Mapping[int, str]
Inputs = dict[str, tuple[Tensor, Axes]]


@dataclass(frozen=True)
class OnnxGraph:
    """A module without state, its named inputs, and the names of its outputs.

    inputs: for each argument, one or more examples, each with the names of its dynamic axes; a single example is passed
    as
    a tensor, several as a list.
    """

    module: nn.Module
    inputs: tuple[Inputs, ...]
    outputs: tuple[str, ...]


class _ExpandMasks(TorchFunctionMode):
    """A context in which every attention mask has a row for each query, since onnxruntime does not
    broadcast over them."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is functional.scaled_dot_product_attention and kwargs.get("attn_mask") is not None:
            mask, query, key = kwargs["attn_mask"], args[0], args[1]
            kwargs["attn_mask"] = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])
        return function(*args, **kwargs)


def save_graph(graph: OnnxGraph, path: Path) -> None:
    """Trace a module with its example and write the graph. From 2 GB on, the parameters go into a file next to it."""
    example = tuple(_unwrap_single([tensor for tensor, _ in one.values()]) for one in graph.inputs)
    free = tuple(
        _unwrap_single([dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _, axes in one.values()])
        for one in graph.inputs
    )
    named = tuple(_unwrap_single([dict(axes) for _, axes in one.values()]) for one in graph.inputs)
    with torch.no_grad(), _silence_exporter():
        # Checks of sizes in the model, such as the maximum number of positions, must not fix the graph to the sizes of
        # the example. They are left to the operators.
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
    """Silence the exporter's messages about itself and about libraries that it looks for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
