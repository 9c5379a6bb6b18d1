"""qkv convert: write a model in the format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qkv.errors import CheckpointError

if TYPE_CHECKING:
    from qkv.tasks import TaskModel

_FORMATS = ("hugging-face", "onnx", "ctranslate2", "qkv")


@click.command()
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--to", "target_format", type=click.Choice(_FORMATS), required=True, help="The format to write.")
@click.option(
    "--dtype",
    type=click.Choice(["stored", "float32", "bfloat16"]),
    default="stored",
    help="The type of the parameters, for hugging-face: as they are stored, or one of these.",
)
@click.option("--allow-pickle", is_flag=True, help="Open files of torch.save, which are pickles, of a publisher.")
def convert(model: str, folder: Path, target_format: str, dtype: str, allow_pickle: bool) -> None:
    """Write MODEL to a new FOLDER in another format.

    hugging-face: the format of transformers. onnx: ONNX graphs, those of decoders with a cache. ctranslate2: the format
    of CTranslate2, a fast engine for translation and text generation. qkv: the format of models trained here.
    """
    from qkv import tasks

    place = tasks.find_model_path(model)
    if target_format == "hugging-face":
        _to_hugging_face(place, folder, dtype, allow_pickle)
    elif dtype != "stored":
        raise click.UsageError(f"--dtype {dtype} is for --to hugging-face; {target_format} keeps float32: leave it out")
    else:
        opened = tasks.load(place, allow_pickle=allow_pickle)
        {"onnx": _to_onnx, "ctranslate2": _to_ctranslate2, "qkv": _to_qkv}[target_format](opened, place, folder)
    click.echo(f"{folder}: " + ", ".join(sorted(file.name for file in folder.iterdir())))


def _to_hugging_face(place: Path, folder: Path, dtype_name: str, allow_pickle: bool) -> None:
    import torch

    from qkv import pretrained
    from qkv.pretrained import export

    if place.is_dir() and ((place / "spec.json").is_file() or not (place / "config.json").is_file()):
        raise CheckpointError(
            f"{place} is not a published model; expected one file, or a folder with config.json: models trained here "
            "have a spec that no family of transformers says, so convert it to onnx instead"
        )
    dtype = None if dtype_name == "stored" else getattr(torch, dtype_name)
    export.to_hugging_face(pretrained.load(place, dtype=dtype, allow_pickle=allow_pickle), place, folder)


def _to_onnx(model: Any, place: Path, folder: Path) -> None:
    from qkv.pretrained import export

    with export.create_folder(folder) as part:
        export.to_onnx(model.module, part)
        if (place / "config.json").is_file():
            export.copy_sidecar_files(place, part)
        elif "generation" in model.capabilities:
            model.source_tokenizer.save(part / "source.tokenizer.json")
            model.target_tokenizer.save(part / "target.tokenizer.json")


def _to_ctranslate2(model: Any, place: Path, folder: Path) -> None:
    from qkv.pretrained import export

    if "generation" not in model.capabilities:
        raise CheckpointError(
            f"{place} gives no text; CTranslate2 runs decoders, and encoders with a decoder: convert it to onnx instead"
        )
    rules = model.generation
    ends = (model.target_tokenizer.eos,) if rules is None else rules.eos
    if not ends:
        raise CheckpointError(f"{place} says no token that ends an answer; add eos_token_id to its config.json")
    with export.create_folder(folder) as part:
        export.to_ctranslate2(
            model.module,
            part,
            model.source_tokenizer,
            model.target_tokenizer,
            bos=model.target_tokenizer.bos if rules is None else rules.bos,
            eos=ends[0],
            suppress_tokens=(model.target_tokenizer.pad, model.target_tokenizer.bos, model.target_tokenizer.unk)
            if rules is None
            else rules.suppress_tokens,
            add_source_eos=rules is None,
        )
    names = model.target_tokenizer.vocabulary()
    if len(ends) > 1:
        shown = ", ".join(names[number] for number in ends)
        click.echo(f"Note: answers end at any of {shown}: give these to the engine as end_token.", err=True)
    if rules is not None and rules.forced_prefix:
        shown = " ".join(names[number] for number in rules.forced_prefix)
        click.echo(f"Note: answers begin with {shown}: give this to the engine as target_prefix.", err=True)


def _to_qkv(model: TaskModel, place: Path, folder: Path) -> None:
    from qkv.pretrained import export

    if {"generation", "audio"} <= model.capabilities:
        raise CheckpointError(f"{place} is a published speech recognizer, which --to qkv cannot write: use it as it is")
    with export.create_folder(folder) as part:
        model.save(part)
