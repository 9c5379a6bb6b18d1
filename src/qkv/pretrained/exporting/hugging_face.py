"""Published models written back as they came, for transformers and all that reads its folders."""

from __future__ import annotations

from pathlib import Path

from qkv.pretrained.exporting.folders import copied, whole_folder
from qkv.pretrained.reading import Published, write


def to_hugging_face(published: Published, came_from: str | Path, folder: str | Path) -> None:
    """Write a published model under the names of its family, with the tokenizer and all else that it came with.

    Raises CheckpointError for parameters that its family has no name for, StorageError if it cannot be written.
    """
    with whole_folder(folder) as part:
        write(published, part)
        copied(came_from, part)
