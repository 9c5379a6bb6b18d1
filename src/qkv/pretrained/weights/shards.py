"""Models split into several files: a JSON index says which file contains which tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qkv.errors import CheckpointError
from qkv.pretrained.weights.lazy_weights import LazyWeights, TensorEntry, make_error

INDEX_SUFFIX = ".index.json"


def read(index: Path, read_part: Callable[[Path], LazyWeights]) -> LazyWeights:
    """Open every file that the index names with `read_part`; metadata is the index's own.

    Raises CheckpointError if the index is damaged, if it names a file that is missing or outside its folder, or if the
    index and the files do not contain the same names.
    """
    content = _read_index(index)
    places: dict[str, list[str]] = {}
    for name, file in content["weight_map"].items():
        places.setdefault(file, []).append(name)
    entries: dict[str, TensorEntry] = {}
    for file, names in places.items():
        # Compared as text, without following links: a cache may keep the files elsewhere and link to them.
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or "\\" in file
            or ":" in file
            or file in ("", ".", "..")
        ):
            raise make_error(
                index, f"the file {file!r} is outside its folder", "plain names of files next to the index"
            )
        path = index.parent / file
        if not path.is_file():
            raise CheckpointError(
                f"{path} is not there. Expected a file with {len(names)} tensors ({names[0]}, ...), because {index} "
                f"names it: fetch all {len(places)} parts."
            )
        weights = read_part(path)
        if absent := [name for name in names if name not in weights]:
            raise make_error(path, f"no tensor {absent[0]!r}", f"{len(names)} tensors, as {index.name} says")
        if extra := weights.keys() - set(names):
            raise make_error(
                path, f"a tensor {min(extra)!r} that {index.name} does not place there", "what the index says"
            )
        entries |= {name: TensorEntry(weights.shape(name), _make_loader(weights, name)) for name in names}
    return LazyWeights(index, {name: entries[name] for name in content["weight_map"]}, content.get("metadata") or {})


def _make_loader(weights: LazyWeights, name: str) -> Callable[[], Any]:
    return lambda: weights[name]


def _read_index(index: Path) -> dict[str, Any]:
    try:
        content = json.loads(index.read_bytes(), object_pairs_hook=_require_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise make_error(index, f"it is not an index ({error})", 'JSON with a "weight_map"') from error
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict) or not content["weight_map"]:
        raise make_error(index, "it names no tensors", 'a "weight_map" from names of tensors to files')
    return content


def _require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found
