"""What can go wrong, by name.

    QkvError
    ├── SpecError             a model description that contradicts itself
    ├── ConfigError           a recipe or option that cannot be read (all its problems at once)
    ├── DataError             a corpus, file or line that cannot be used
    │   └── CorpusError       a named corpus that is unknown, absent or altered
    ├── VocabularyError       a tokenizer that does not fit the model or the text
    ├── CheckpointError       a model folder or checkpoint that is missing, cut short or altered
    ├── StorageError          a disk that is full or a place that cannot be written
    ├── DownloadError         something that could not be fetched
    ├── TrainingError         a run that cannot go on
    │   └── NonFiniteError    NaN or infinity in the loss or a gradient, with the layer and the batch
    └── MissingExtraError     an optional package that is not installed

Every message says what was given, what was expected and what to do. The command line prints the message
alone; `--debug` adds the traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class QkvError(Exception):
    """The base of every error this package raises for a reason its user can mend."""


class SpecError(QkvError, ValueError):
    """A model description contradicts itself: names the field, the value and the rule."""


class ConfigError(QkvError, ValueError):
    """A recipe or option cannot be read; `problems` lists every reason found in one reading."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(QkvError, ValueError):
    """A corpus, a file or a line of one cannot be used as it is."""


class CorpusError(DataError):
    """A named corpus is unknown, not at hand, or differs from its recorded checksum."""


class VocabularyError(QkvError, ValueError):
    """A tokenizer does not fit the model or the text it is used with."""


class CheckpointError(QkvError):
    """A model folder or a checkpoint is missing, cut short, altered or made for another spec."""


class StorageError(QkvError, OSError):
    """A disk is full or a place cannot be written; what was there before is untouched."""


class DownloadError(QkvError):
    """Something could not be fetched, or came with another checksum."""


class TrainingError(QkvError):
    """A training run cannot go on."""


class NonFiniteError(TrainingError):
    """The loss or a gradient became NaN or infinite; names the parameter and the batch."""


class MissingExtraError(QkvError, ImportError):
    """An optional package is not installed; names the extra that brings it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, or torch's of a CPU or a GPU."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "not enough memory" in text
    )
