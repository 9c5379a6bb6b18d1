"""Published models written back as they came, for transformers and all that reads its folders."""

from __future__ import annotations

import shutil
from pathlib import Path

from qkv import spec
from qkv.pretrained import tokenizers
from qkv.pretrained.exporting.folders import copied, whole_folder
from qkv.pretrained.reading import Published, write

_PREPARED = ("preprocessor_config.json", "processor_config.json")


def to_hugging_face(published: Published, came_from: str | Path, folder: str | Path) -> None:
    """Write a published model under the names of its family, with the tokenizer and all else that it came with.

    Of a model in one file that is the tokenizer in it or beside it, or what prepares its images. Raises CheckpointError
    for parameters that its family has no name for, VocabularyError for a tokenizer that cannot be read, StorageError if
    the folder cannot be written.
    """
    place = Path(came_from)
    with whole_folder(folder) as part:
        write(published, part)
        if place.is_dir():
            copied(place, part)
            return
        for name in _PREPARED:
            if (place.parent / name).is_file():
                shutil.copyfile(place.parent / name, part / name)
        if _reads_text(published.model.spec):
            tokenizers.write(tokenizers.read(tokenizers.beside(place), published.config), part)


def _reads_text(shape: spec.Spec) -> bool:
    stack = (shape.encoder or shape.decoder) if isinstance(shape, spec.Transformer) else None
    return stack is not None and isinstance(stack.reads, spec.Tokens)
