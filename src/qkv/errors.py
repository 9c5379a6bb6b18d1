"""The errors of this package.

    QkvError
    ├── SpecError             a model description that contradicts itself
    ├── ConfigError           a recipe or option that cannot be read (all its problems at once)
    ├── DataError             a corpus, file or line that cannot be used
    │   └── CorpusError       a named corpus that is unknown, missing or altered
    ├── VocabularyError       a tokenizer that does not fit the model or the text
    ├── CheckpointError       a model folder or checkpoint that is missing, truncated or altered
    ├── StorageError          a full disk or a path that cannot be written
    ├── DownloadError         something that could not be downloaded
    ├── TrainingError         a run that cannot continue
    │   └── NonFiniteError    NaN or infinity in the loss or a gradient, with the layer and the batch
    └── MissingExtraError     an optional package that is not installed

Every message says what was given, what was expected and what to do. The command line prints the message
alone; `--debug` adds the traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class QkvError(Exception):
    """The base class of all errors that a user can correct."""


class SpecError(QkvError, ValueError):
    """A model description that contradicts itself. The message names the field, the value and the rule."""


class ConfigError(QkvError, ValueError):
    """A recipe or option that cannot be read. `problems` lists all problems of one reading."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(QkvError, ValueError):
    """A corpus, a file or a line of one that cannot be used as it is."""


class CorpusError(DataError):
    """A named corpus that is unknown, not available, or differs from its recorded checksum."""


class VocabularyError(QkvError, ValueError):
    """A tokenizer that does not fit the model or the text."""


class CheckpointError(QkvError):
    """A model folder or a checkpoint that is missing, truncated, altered or made for another spec."""


class StorageError(QkvError, OSError):
    """A full disk or a path that cannot be written. Existing files are unchanged."""


class DownloadError(QkvError):
    """A download that failed or has another checksum."""


class TrainingError(QkvError):
    """A training run that cannot continue."""


class NonFiniteError(TrainingError):
    """A loss or a gradient that became NaN or infinite. The message names the parameter and the batch."""


class MissingExtraError(QkvError, ImportError):
    """An optional package that is not installed. The message names its extra."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out: Python's, or torch's on a CPU or a GPU."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "not enough memory" in text
    )
