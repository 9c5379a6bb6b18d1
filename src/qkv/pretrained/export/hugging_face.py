"""Export of published models to the folders that transformers reads, with their original names."""

from __future__ import annotations

import shutil
from pathlib import Path

from qkv import spec
from qkv.pretrained import tokenizers
from qkv.pretrained.checkpoint import PretrainedModel, save
from qkv.pretrained.export.output_folder import copy_sidecar_files, create_folder

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def to_hugging_face(pretrained: PretrainedModel, source: str | Path, folder: str | Path) -> None:
    """Write a published model under the names of its family, with its tokenizer and the other files next to it.

    For a model in one file these are the tokenizer in it or next to it, or its image preprocessing. Raises
    CheckpointError for parameters that its family has no name for, VocabularyError for a tokenizer that cannot be read,
    and StorageError if the folder cannot be written.
    """
    place = Path(source)
    with create_folder(folder) as part:
        save(pretrained, part)
        if place.is_dir():
            copy_sidecar_files(place, part)
            return
        for name in _PROCESSOR_FILES:
            if (place.parent / name).is_file():
                shutil.copyfile(place.parent / name, part / name)
        if _has_text_input(pretrained.model.spec):
            tokenizers.save(tokenizers.load(tokenizers.find_tokenizer(place), pretrained.config), part)


def _has_text_input(config: spec.Spec) -> bool:
    stack = (config.encoder or config.decoder) if isinstance(config, spec.Transformer) else None
    return stack is not None and isinstance(stack.input, spec.Tokens)
