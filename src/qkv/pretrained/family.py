"""A family of published models as data: how its configuration says our spec, and where its tensors go."""

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
from qkv.models import SequenceModel, outline
from qkv.pretrained.operations import Adjusting, Older, Operation, Unused, same
from qkv.pretrained.quantised import Quantised
from qkv.pretrained.weights import Weights
from qkv.pretrained.weights.cursor import release

Config: TypeAlias = Mapping[str, Any]
"""A model's config.json, or what another format says in its place."""

WholeFile: TypeAlias = Callable[[Weights], tuple[Config, Mapping[str, Tensor]] | None]
"""What one file says of its model, and its tensors under a family's names; None for a file of another kind."""

Table: TypeAlias = Mapping[str, str | Operation]
"""Names in the family's files -> where they go (see `qkv.pretrained.operations`)."""


@dataclass(frozen=True)
class Family:
    """Models that share a configuration and names.

    types: the `model_type` of the configurations that are of this family.
    spec, table: what a configuration says.
    zeros: endings of our parameters' names that its files do not hold, because they are 0 (biases, mostly).
    prefix: what files with an answering head put before the names of the rest, and bare ones leave out.
    beside: what other files of the folder add to a configuration, each given the folder and what is said so far.
    """

    name: str
    types: tuple[str, ...]
    spec: Callable[[Config], spec.Spec]
    table: Callable[[Config], Table]
    zeros: tuple[str, ...] = ()
    prefix: str = ""
    beside: tuple[Callable[[Path, Config], Config], ...] = ()


def fill(family: Family, config: Config, stored: Mapping[str, Tensor], dtype: torch.dtype | None) -> SequenceModel:
    """Build the model that a configuration describes from the tensors of its file, in `dtype` (None: as stored).

    Tensors that need no change stay where they are, memory-mapped if they were. Raises CheckpointError, with every
    problem in it, for a tensor that has no place, a parameter that has no tensor, or a shape that differs.
    """
    model = outline(family.spec(config))
    places = dict(model.named_parameters(remove_duplicate=False))
    placed: dict[str, Tensor] = {}
    adjustments: list[tuple[str, Adjusting, Tensor]] = []
    problems: list[str] = []
    table = family.table(config)
    for name in stored:
        found = _entry(table, name) or _entry(table, name.removeprefix(family.prefix))
        if found is None:
            problems.append(f"{name} has no place in this family")
            continue
        operation, targets = found
        if isinstance(operation, Adjusting):
            ends = ("", ".weight", ".bias")
            adjusted = [target for end in ends for target in _ending(targets, end, places)]
            adjustments += [(target, operation, stored[name]) for target in adjusted]
            continue
        unknown = [target for target in targets if target not in places]
        if unknown:
            problems.append(
                f"{name} would go to {', '.join(unknown)}, which the model of this config.json does not have"
            )
            continue
        _place(name, operation, targets, stored[name], places, placed, dtype, problems)
    for target, adjusting, tensor in adjustments:
        if target in placed:
            placed[target] = adjusting.adjust(placed[target], tensor.to(placed[target].dtype))
    problems += _untied(places, placed)
    problems += _missing(family, model, places, placed, dtype)
    done = {target for target, adjusting, _ in adjustments if not isinstance(adjusting, Unused)}
    for entry in (one for one in table.values() if not isinstance(one, Unused)):
        problems += [f"nothing that adjusts {name}" for name in _adjusted(entry, places) if name not in done]
    if problems:
        raise CheckpointError(
            f"the tensors do not fit the {family.name} model that config.json describes: "
            + "; ".join(problems[:8])
            + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            + ". Expected the files of one model: download it again"
        )
    _assign(model, placed)
    return model.eval()


def drain(family: Family, config: Config, model: SequenceModel) -> dict[str, Tensor]:
    """Write a model's parameters under the names and in the form of its family's files: `fill` backwards.

    Raises CheckpointError for a parameter that the family has no name for.
    """
    parameters = {
        name: parameter.widened() if isinstance(parameter, Quantised) else parameter.detach()
        for name, parameter in model.named_parameters()
    }
    shape = model.spec
    answers = shape.answers if isinstance(shape, spec.Transformer) else None
    headed = not (isinstance(answers, spec.States) or (isinstance(answers, spec.Vector) and answers.width is None))
    kept = {
        name: parameter
        for name, parameter in parameters.items()
        if not (family.zeros and name.endswith(family.zeros) and not parameter.any())
    }
    table, written, left = family.table(config), dict[str, Tensor](), set(kept)
    for key, target in table.items():
        operation = same(target) if isinstance(target, str) else target
        if not operation.targets or isinstance(operation, Older):
            continue
        pattern = _pattern(operation.targets[0])
        for name in [name for name in kept if pattern.fullmatch(name)]:
            match = pattern.fullmatch(name)
            assert match is not None
            number, rest = match.groupdict().get("n"), match["rest"] or ""
            targets = [_numbered(one, number) + rest for one in operation.targets]
            if isinstance(operation, Adjusting):
                if name in _adjusted(operation, [name]):
                    written[_numbered(key, number)] = operation.out([kept[name]]).contiguous()
            elif set(targets) <= set(kept) and set(targets) & left:
                tensor = operation.out([kept[one] for one in targets])
                written[_numbered(key, number) + rest] = tensor.contiguous()
                left -= set(targets)
    if left:
        raise CheckpointError(
            f"{', '.join(sorted(left)[:5])} cannot be said in files of the {family.name} family; "
            "expected a model as it was read, or trained from there: save it as a folder of this package instead"
        )
    return {
        name if not headed or name.startswith(family.prefix) or _headless(name, table) else family.prefix + name: tensor
        for name, tensor in written.items()
    }


def _adjusted(operation: str | Operation, places: Iterable[str]) -> Iterator[str]:
    """The parameters, but for biases beside them, that an operation changes once they are placed."""
    for target in operation.targets if isinstance(operation, Adjusting) else ():
        pattern = _pattern(target)
        for name in places:
            match = pattern.fullmatch(name)
            if match is not None and match["rest"] in ("", ".weight"):
                yield name


def _headless(name: str, table: Table) -> bool:
    """Whether a name stands beside the body of the model, as its answering head does, and takes no prefix."""
    found = _entry(table, name)
    return found is not None and all(target.startswith("answer.") for target in found[1])


def _entry(table: Table, name: str) -> tuple[Operation, list[str]] | None:
    """The operation for a name in a file and the names of its targets here."""
    for key, target in table.items():
        match = _pattern(key).fullmatch(name)
        if match is not None:
            operation = same(target) if isinstance(target, str) else target
            operation = operation.like if isinstance(operation, Older) else operation
            number, rest = match.groupdict().get("n"), match["rest"] or ""
            return operation, [_numbered(one, number) + rest for one in operation.targets]
    return None


def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(re.escape(key).replace(r"\{n\}", r"(?P<n>\d+)") + r"(?P<rest>(\.[^.]+)*)")


def _numbered(name: str, number: str | None) -> str:
    return name if number is None else name.replace("{n}", number)


def _ending(targets: list[str], end: str, places: Mapping[str, Tensor]) -> Iterator[str]:
    return (target + end for target in targets if target + end in places)


def _place(
    name: str,
    operation: Operation,
    targets: list[str],
    tensor: Tensor,
    places: Mapping[str, Tensor],
    placed: dict[str, Tensor],
    dtype: torch.dtype | None,
    problems: list[str],
) -> None:
    shapes = [tuple(places[target].shape) for target in targets]
    try:
        parts = operation.into(tensor, shapes)
    except (RuntimeError, ValueError):
        problems.append(f"{name} has shape {tuple(tensor.shape)}, which cannot be cut into {shapes}")
        return
    for target, shape, part in zip(targets, shapes, parts, strict=True):
        if tuple(part.shape) != shape:
            problems.append(f"{name} gives {target} the shape {tuple(part.shape)}, and config.json makes it {shape}")
            continue
        part = part if dtype is None else part.to(dtype)
        if target in placed and not torch.equal(placed[target], part):
            problems.append(f"{name} differs from another tensor for {target}, to which it should be tied")
        placed.setdefault(target, part)
    if not isinstance(tensor, Quantised) and not any(_shares(placed.get(target), tensor) for target in targets):
        release(tensor)


def _shares(part: Tensor | None, tensor: Tensor) -> bool:
    """Whether a placed part lies where the tensor it came from does."""
    if part is None or isinstance(part, Quantised):
        return False
    return part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def _untied(places: Mapping[str, Tensor], placed: Mapping[str, Tensor]) -> Iterator[str]:
    """Name the tensors that differ where the model has one parameter under two names."""
    first: dict[int, str] = {}
    for name, tensor in placed.items():
        other = first.setdefault(id(places[name]), name)
        if other != name and not torch.equal(placed[other], tensor):
            yield f"the tensors for {other} and {name} differ, and config.json says that they are tied"


def _missing(
    family: Family,
    model: nn.Module,
    places: Mapping[str, Tensor],
    placed: dict[str, Tensor],
    dtype: torch.dtype | None,
) -> list[str]:
    """Fill what is 0 by the family's rule; name the parameters that have no tensor."""
    filled = {id(places[name]) for name in placed}
    first = next(iter(placed.values()), torch.zeros(()))
    problems = []
    for name, parameter in model.named_parameters():
        if id(parameter) in filled:
            continue
        if family.zeros and name.endswith(family.zeros):
            placed[name] = torch.zeros(parameter.shape, dtype=dtype or first.dtype)
        else:
            problems.append(f"no tensor for {name}")
    return problems


def _assign(model: nn.Module, placed: Mapping[str, Tensor]) -> None:
    """Put the tensors where the parameters without memory stand, the same one wherever they are tied."""
    places = dict(model.named_parameters(remove_duplicate=False))
    fresh: dict[int, nn.Parameter] = {}
    for name, tensor in placed.items():
        trained = tensor.is_floating_point() and not isinstance(tensor, Quantised)
        fresh.setdefault(id(places[name]), nn.Parameter(tensor, requires_grad=trained))
    for name, old in places.items():
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, last, fresh[id(old)])
