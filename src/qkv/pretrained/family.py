"""Families of published models as data: how a configuration maps to a spec, and a file's tensors to parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import CheckpointError
from qkv.models import SequenceModel, build_on_meta
from qkv.pretrained.conversions import Adjustment, Conversion, LegacyName, WriteZeros, rename
from qkv.pretrained.quantized_tensor import QuantizedTensor
from qkv.pretrained.weights import LazyWeights
from qkv.pretrained.weights.cursor import release_memory

HFConfig: TypeAlias = Mapping[str, Any]
"""A model's config.json, or the equivalent of another format."""

SingleFileReader: TypeAlias = Callable[[LazyWeights], tuple[HFConfig, Mapping[str, Tensor]] | None]
"""Reads the configuration and the tensors, under a family's names, from one file; None for a file of another kind."""

WeightTable: TypeAlias = Mapping[str, str | Conversion]
"""Maps names in the family's files to their targets (see `qkv.pretrained.conversions`)."""


@dataclass(frozen=True)
class Family:
    """Models that share a configuration and tensor names.

    model_types: the `model_type` of the configurations that belong to this family.
    build_spec, build_table: return the spec and the table of names for a configuration.
    zero_suffixes: suffixes of our parameters' names that its files lack because they are 0 (mostly biases).
    base_model_prefix: a prefix of the body's names in files with a head, which files without one omit.
    sidecar_readers: functions that read additions to a configuration from other files of the folder, each given the
        folder and the configuration so far.
    """

    name: str
    model_types: tuple[str, ...]
    build_spec: Callable[[HFConfig], spec.Spec]
    build_table: Callable[[HFConfig], WeightTable]
    zero_suffixes: tuple[str, ...] = ()
    base_model_prefix: str = ""
    sidecar_readers: tuple[Callable[[Path, HFConfig], HFConfig], ...] = ()


def build_model(
    family: Family, config: HFConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> SequenceModel:
    """Build the model that a configuration describes from the tensors of its file, in `dtype` (None: as stored).

    Tensors that need no conversion stay where they are, memory-mapped if they were. Raises CheckpointError that lists
    every tensor without a place, every parameter without a tensor, and every shape that differs.
    """
    model = build_on_meta(family.build_spec(config))
    places = dict(model.named_parameters(remove_duplicate=False))
    placed: dict[str, Tensor] = {}
    adjustments: list[tuple[str, Adjustment, Tensor]] = []
    problems: list[str] = []
    table = family.build_table(config)
    for name in tensors:
        found = _find_entry(table, name) or _find_entry(table, name.removeprefix(family.base_model_prefix))
        if found is None:
            problems.append(f"{name} has no place in this family")
            continue
        operation, targets = found
        if isinstance(operation, Adjustment):
            ends = ("", ".weight", ".bias")
            adjusted = [target for end in ends for target in _with_suffix(targets, end, places)]
            adjustments += [(target, operation, tensors[name]) for target in adjusted]
            continue
        unknown = [target for target in targets if target not in places]
        if unknown:
            problems.append(
                f"{name} would go to {', '.join(unknown)}, which the model of this config.json does not have"
            )
            continue
        _convert_tensor(name, operation, targets, tensors[name], places, placed, dtype, problems)
    for target, adjusting, tensor in adjustments:
        if target in placed:
            placed[target] = adjusting.adjust(placed[target], tensor.to(placed[target].dtype))
    problems += _find_untied(places, placed)
    problems += _fill_missing(family, model, places, placed, dtype)
    done = {target for target, adjusting, _ in adjustments if not isinstance(adjusting, WriteZeros)}
    for entry in (one for one in table.values() if not isinstance(one, WriteZeros)):
        problems += [f"nothing that adjusts {name}" for name in _iter_adjusted(entry, places) if name not in done]
    if problems:
        raise CheckpointError(
            f"the tensors do not fit the {family.name} model that config.json describes: "
            + "; ".join(problems[:8])
            + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            + ". Expected the files of one model: download it again"
        )
    _assign_parameters(model, placed)
    return model.eval()


def export_tensors(family: Family, config: HFConfig, model: SequenceModel) -> dict[str, Tensor]:
    """Export a model's parameters under the names and in the form of its family's files, the inverse of `build_model`.

    Raises CheckpointError for a parameter that the family has no name for.
    """
    parameters = {
        name: parameter.dequantize() if isinstance(parameter, QuantizedTensor) else parameter.detach()
        for name, parameter in model.named_parameters()
    }
    shape = model.spec
    answers = shape.head if isinstance(shape, spec.Transformer) else None
    headed = not (isinstance(answers, spec.States) or (isinstance(answers, spec.Vector) and answers.width is None))
    kept = {
        name: parameter
        for name, parameter in parameters.items()
        if not (family.zero_suffixes and name.endswith(family.zero_suffixes) and not parameter.any())
    }
    table, written, left = family.build_table(config), dict[str, Tensor](), set(kept)
    for key, target in table.items():
        operation = rename(target) if isinstance(target, str) else target
        if not operation.targets or isinstance(operation, LegacyName):
            continue
        pattern = _compile_pattern(operation.targets[0])
        for name in [name for name in kept if pattern.fullmatch(name)]:
            match = pattern.fullmatch(name)
            assert match is not None
            number, rest = match.groupdict().get("n"), match["rest"] or ""
            targets = [_insert_number(one, number) + rest for one in operation.targets]
            if isinstance(operation, Adjustment):
                if name in _iter_adjusted(operation, [name]):
                    written[_insert_number(key, number)] = operation.to_checkpoint([kept[name]]).contiguous()
            elif set(targets) <= set(kept) and set(targets) & left:
                tensor = operation.to_checkpoint([kept[one] for one in targets])
                written[_insert_number(key, number) + rest] = tensor.contiguous()
                left -= set(targets)
    if left:
        raise CheckpointError(
            f"{', '.join(sorted(left)[:5])} cannot be written to files of the {family.name} family; "
            "expected a model as it was read, or trained from there: save it as a folder of this package instead"
        )
    return {
        name
        if not headed or name.startswith(family.base_model_prefix) or _is_head_tensor(name, table)
        else family.base_model_prefix + name: tensor
        for name, tensor in written.items()
    }


def _iter_adjusted(operation: str | Conversion, names: Iterable[str]) -> Iterator[str]:
    """Yield the parameters that an operation adjusts after they have been filled, except for missing biases."""
    for target in operation.targets if isinstance(operation, Adjustment) else ():
        pattern = _compile_pattern(target)
        for name in names:
            match = pattern.fullmatch(name)
            if match is not None and match["rest"] in ("", ".weight"):
                yield name


def _is_head_tensor(name: str, table: WeightTable) -> bool:
    """Return whether a tensor belongs to the head rather than the body of the model, and takes no prefix."""
    found = _find_entry(table, name)
    return found is not None and all(target.startswith("head.") for target in found[1])


def _find_entry(table: WeightTable, name: str) -> tuple[Conversion, list[str]] | None:
    """Return the operation for a name in a file and the names of its targets."""
    for key, target in table.items():
        match = _compile_pattern(key).fullmatch(name)
        if match is not None:
            operation = rename(target) if isinstance(target, str) else target
            operation = operation.conversion if isinstance(operation, LegacyName) else operation
            number, rest = match.groupdict().get("n"), match["rest"] or ""
            return operation, [_insert_number(one, number) + rest for one in operation.targets]
    return None


def _compile_pattern(key: str) -> re.Pattern[str]:
    return re.compile(re.escape(key).replace(r"\{n\}", r"(?P<n>\d+)") + r"(?P<rest>(\.[^.]+)*)")


def _insert_number(name: str, number: str | None) -> str:
    return name if number is None else name.replace("{n}", number)


def _with_suffix(targets: list[str], suffix: str, parameters: Mapping[str, Tensor]) -> Iterator[str]:
    return (target + suffix for target in targets if target + suffix in parameters)


def _convert_tensor(
    name: str,
    operation: Conversion,
    targets: list[str],
    tensor: Tensor,
    parameters: Mapping[str, Tensor],
    converted: dict[str, Tensor],
    dtype: torch.dtype | None,
    problems: list[str],
) -> None:
    shapes = [tuple(parameters[target].shape) for target in targets]
    try:
        parts = operation.to_parameters(tensor, shapes)
    except (RuntimeError, ValueError):
        problems.append(f"{name} has shape {tuple(tensor.shape)}, which cannot be cut into {shapes}")
        return
    for target, shape, part in zip(targets, shapes, parts, strict=True):
        if tuple(part.shape) != shape:
            problems.append(f"{name} gives {target} the shape {tuple(part.shape)}, and config.json makes it {shape}")
            continue
        part = part if dtype is None else part.to(dtype)
        if target in converted and not torch.equal(converted[target], part):
            problems.append(f"{name} differs from another tensor for {target}, to which it should be tied")
        converted.setdefault(target, part)
    if not isinstance(tensor, QuantizedTensor) and not any(
        _shares_memory(converted.get(target), tensor) for target in targets
    ):
        release_memory(tensor)


def _shares_memory(part: Tensor | None, tensor: Tensor) -> bool:
    """Return whether a converted part shares the memory of the tensor that it came from."""
    if part is None or isinstance(part, QuantizedTensor):
        return False
    return part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def _find_untied(parameters: Mapping[str, Tensor], converted: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield a description of tensors that differ although the model ties them to one parameter."""
    first: dict[int, str] = {}
    for name, tensor in converted.items():
        other = first.setdefault(id(parameters[name]), name)
        if other != name and not torch.equal(converted[other], tensor):
            yield f"the tensors for {other} and {name} differ, and config.json says that they are tied"


def _fill_missing(
    family: Family,
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    converted: dict[str, Tensor],
    dtype: torch.dtype | None,
) -> list[str]:
    """Fill parameters that are zero by the family's rule, and list the parameters that have no tensor."""
    filled = {id(parameters[name]) for name in converted}
    first = next(iter(converted.values()), torch.zeros(()))
    problems = []
    for name, parameter in model.named_parameters():
        if id(parameter) in filled:
            continue
        if family.zero_suffixes and name.endswith(family.zero_suffixes):
            converted[name] = torch.zeros(parameter.shape, dtype=dtype or first.dtype)
        else:
            problems.append(f"no tensor for {name}")
    return problems


def _assign_parameters(model: nn.Module, converted: Mapping[str, Tensor]) -> None:
    """Assign the tensors to the parameters on the meta device, the same tensor wherever they are tied."""
    places = dict(model.named_parameters(remove_duplicate=False))
    fresh: dict[int, nn.Parameter] = {}
    for name, tensor in converted.items():
        trained = tensor.is_floating_point() and not isinstance(tensor, QuantizedTensor)
        fresh.setdefault(id(places[name]), nn.Parameter(tensor, requires_grad=trained))
    for name, old in places.items():
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, last, fresh[id(old)])
