"""qkv describe: print a model's spec as a tree with its parameters and memory, or how two models differ."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qkv import compare, presets, spec
from qkv.errors import CheckpointError, SpecError

if TYPE_CHECKING:
    from qkv.models import SequenceModel

_SHIPPED = Path(str(resources.files("qkv") / "shipped"))
_BYTES_PER_PARAMETER = 4  # of a float32
_ADAM_MEMORY_FACTOR = 4  # the parameter, its gradient and Adam's two averages


@click.command()
@click.argument("model", metavar="SPEC|MODEL|PRESET")
@click.argument("other", metavar="[OTHER]", required=False)
def describe(model: str, other: str | None) -> None:
    """Print a model's structure, its parameters and the memory they take.

    The model is a spec.json, a model folder, a published checkpoint, or a preset: transformer-base, transformer-big.
    With OTHER, print how the two differ.
    """
    choice = find_spec(model)
    if other is None and (card_lines := read_about(model)):
        click.echo(f"{card_lines}\n")
    if other is not None:
        click.echo("\n".join(format_difference(choice, find_spec(other), f"{model} -> {other}")))
        return
    click.echo("\n".join(format_tree(choice)))
    from qkv.models import build_on_meta

    click.echo("\n" + "\n".join(format_parameters(build_on_meta(choice))))


def find_spec(name: str) -> spec.Spec:
    """Return the spec of a preset, of a spec.json, or of a model in a folder or file.

    Raises SpecError if nothing has this name, CheckpointError if a published model cannot be read, and DownloadError
    if the hub has no such model.
    """
    if name in presets.PRESETS:
        return presets.PRESETS[name]()
    place = Path(name)
    one_file = place.is_file() and place.suffix != ".json"
    if one_file or ((place / "config.json").is_file() and not (place / "spec.json").is_file()):
        from qkv import pretrained

        return pretrained.load_spec(place)
    for path in (place, place / "spec.json", _SHIPPED / name / "spec.json"):
        if path.is_file():
            try:
                return spec.from_json(path.read_text(encoding="utf-8"))
            except (SpecError, UnicodeDecodeError) as error:
                raise SpecError(f"{path}: {error}") from error
    from qkv.pretrained import hub

    if hub.is_repo_id(name) and not place.exists():
        from qkv import pretrained

        return pretrained.load_spec(hub.download(name, with_weights=False))
    near = difflib.get_close_matches(name, presets.PRESETS, n=1)
    raise SpecError(
        f"{name}: there is no such spec.json, model folder or preset; the presets are {', '.join(presets.PRESETS)}"
        + (f"; did you mean {near[0]}?" if near else "")
    )


def read_about(name: str) -> str:
    """Return the description in the card of a model folder, or an empty string."""
    card = next((one for one in (Path(name) / "card.json", _SHIPPED / name / "card.json") if one.is_file()), None)
    try:
        settings = {} if card is None else json.loads(card.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{card} is truncated or altered: {error}; copy the model folder again") from error
    return str(settings.get("description", "")) if isinstance(settings, dict) else ""


def format_difference(before: spec.Spec, after: spec.Spec, title: str) -> Iterator[str]:
    """Yield the changes from one spec to another, then the sizes that differ."""
    changed, resized = compare.compare_designs(before, after), compare.compare_sizes(before, after)
    count = {0: "no change", 1: "1 change"}.get(len(changed), f"{len(changed)} changes")
    yield f"{title}: {count}"
    yield from _format_changes(changed)
    if resized:
        yield "sizes"
        yield from _format_changes(resized)


def _format_changes(changes: list[compare.SpecChange]) -> Iterator[str]:
    what = max((len(change.name) for change in changes), default=0)
    before = min(max((len(change.before) for change in changes), default=0), 48)
    for change in changes:
        yield f"  {change.name:{what}}  {change.before:{before}}  ->  {change.after}"


def format_tree(node: Any, name: str = "", depth: int = 0) -> Iterator[str]:
    """Yield the lines of a spec's tree: each node with its options, its children below it, equal ones once."""
    inner: list[tuple[str, Any]] = []
    choices = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            inner.append((field.name, value))
        elif isinstance(value, tuple):
            inner.extend((f"{field.name}.{place}", item) for place, item in _group_equal(value))
        elif value is not None and (value != field.default or field.default is dataclasses.MISSING):
            choices.append(f"{field.name}={value}")
    label = f"{name}: " if name else ""
    yield f"{'  ' * depth}{label}{type(node).__name__}({', '.join(choices)})"
    for place, value in inner:
        yield from format_tree(value, place, depth + 1)


def format_parameters(model: SequenceModel) -> Iterator[str]:
    """Yield the number of parameters of each part, summed over the blocks, and the memory of all."""
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(counts.values())
    yield f"{'parameters':44} {total:>13,}"
    for place, count in _sum_by_part(counts).items():
        label = "  " * place.count(".") + place.rpartition(".")[2]
        yield f"  {label:42} {count:>13,}  {count / total:6.1%}"
    yield f"{'memory of the parameters in float32':44} {total * _BYTES_PER_PARAMETER / 1e6:>10,.1f} MB"
    training_memory = total * _BYTES_PER_PARAMETER * _ADAM_MEMORY_FACTOR
    yield f"{'memory while training with Adam':44} {training_memory / 1e6:>10,.1f} MB, and activations"


def _sum_by_part(counts: Mapping[str, int]) -> dict[str, int]:
    """Sum the parameters of each part, down to the parts of a block; block numbers are left out."""
    sums: dict[str, int] = {}
    for name, count in counts.items():
        parts = name.split(".")[:-1]
        deep = 3 if any(part.isdecimal() for part in parts) else 2
        words = [part for part in parts if not part.isdecimal()][:deep] or [name]
        for end in range(1, len(words) + 1):
            place = ".".join(words[:end])
            sums[place] = sums.get(place, 0) + count
    return sums


def _group_equal(items: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Yield runs of equal items as ("0-5", item)."""
    for item, run in itertools.groupby(enumerate(items), key=lambda pair: pair[1]):
        numbers = [number for number, _ in run]
        yield (f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])), item
