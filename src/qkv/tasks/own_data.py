"""A user's own data in place of a recipe's: files named on the command line or in Python, told apart by endings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkv.errors import DataError

Paths = Sequence[str | Path]

_PAIR_TASKS = ("translation", "pronunciation", "summarization")
_REPLACED = ("valid", "test", "exclude", "sampling_weights")
"""What a recipe says about its own data and does not hold for others."""


@dataclass(frozen=True)
class OwnData:
    """Files to train on, to validate on and to keep out of training, and a model to start from."""

    train: Paths = ()
    valid: Paths = ()
    test: Paths = ()
    init_from: str | Path | None = None


def replace_data(tree: Mapping[str, Any], own: OwnData) -> dict[str, Any]:
    """Return the tree of a recipe with other data and, where `init_from` is given, another model to start from.

    With training data of its own, the recipe's validation, test and excluded data are dropped: without `valid`, a part
    of the training data is held out. Raises DataError for files whose endings say nothing.
    """
    changed = {**tree, "data": dict(tree.get("data") or {})}
    data, task = changed["data"], str(tree.get("task"))
    if own.train:
        for name in _REPLACED:
            data.pop(name, None)
        data["train"] = [find_source(task, own.train)]
    if own.valid:
        data["valid"] = find_source(task, own.valid)
    if own.test:
        data["test"] = [find_source(task, own.test)]
    init_from = own.init_from or changed.pop("init_from", None)
    if init_from is not None:
        changed["model"] = {"kind": "pretrained", "path": str(init_from)}
        changed.pop("tokenizer", None)
    return changed


def find_source(task: str, paths: Paths) -> dict[str, Any]:
    """Return the data source that some files are for a task, as a recipe writes it.

    Example: `find_source("translation", ["train.en", "train.de"])`
    """
    files = [Path(path) for path in paths]
    names = [str(path) for path in files]
    for path in files:
        if not path.exists():
            raise DataError(f"{path} does not exist; expected a file or folder to train on: check the path")
    one = files[0] if len(files) == 1 else None
    endings = [] if one is None else one.suffixes
    if task in _PAIR_TASKS:
        if len(files) == 2:
            return {"kind": "parallel_files", "source": names[0], "target": names[1]}
        if one is not None and ".jsonl" in endings:
            return {"kind": "jsonl", "path": names[0]}
        if one is not None and one.is_file():
            return {"kind": "csv" if ".csv" in endings else "tsv", "path": names[0]}
        expected = "two files of lines, or one .tsv, .csv or .jsonl file of pairs"
    elif task == "language-modeling":
        if one is not None:
            return {"kind": "jsonl_documents" if ".jsonl" in endings else "text_files", "path": names[0]}
        expected = "one text file, one folder of text files, or one .jsonl file"
    elif task == "image-classification":
        if one is not None and one.is_dir():
            return {"kind": "image_folder", "path": names[0]}
        if one is not None and one.suffix in (".npz", ".parquet"):
            return {"kind": one.suffix[1:], "path": names[0]}
        if len(files) == 2:
            return {"kind": "idx", "images": names[0], "labels": names[1]}
        expected = "a folder with one folder for each class, an .npz or .parquet file, or two IDX files"
    elif task == "decision-transformer":
        if one is not None:
            return {"kind": "minari" if one.is_dir() else "npz", "path": names[0]}
        expected = "one .npz file of episodes, or one Minari data set"
    else:
        if one is not None:
            return {"kind": "recordings", "path": names[0]}
        expected = "one manifest of recordings, one folder or one .npz file"
    raise DataError(f"{', '.join(names)} cannot be the data of {task}; expected {expected}")
