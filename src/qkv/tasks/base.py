"""The common interface of all models that `qkv.load` returns, whatever their task and input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from qkv.data.audio.features import LogMel
from qkv.decoding import DecodingConfig
from qkv.errors import DataError
from qkv.lens import Trace
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap
from qkv.tasks.model_folder import Card
from qkv.tasks.registry import Task

Capability = Literal["generation", "perplexity", "word_times", "image", "audio", "candidates", "rollout"]
"""What a model can do beyond answering a line:

generation     writes its answer token by token: constraints, tags, beams and explanations apply
perplexity     predicts a text token by token, so that its perplexity can be measured
word_times     says when each word of a transcript was spoken
image, audio   its lines name image or audio files
candidates     each line carries the texts to choose from
rollout        acts in an environment
"""


@dataclass(frozen=True)
class Answer:
    """One answer to one input.

    score: what the answer was ranked by. log_probability: that of its tokens. alternatives: further answers, from the
    second best on, as many as `n_best` of the decoding requests.
    """

    text: str
    score: float
    log_probability: float
    tokens: tuple[int, ...]
    alternatives: tuple[Answer, ...] = field(default=(), kw_only=True)

    def __str__(self) -> str:
        return self.text


class TaskModel:
    """A model with everything it needs to answer: its module, tokenizers or processors, its task and its card.

    Ask for `capabilities` rather than for a class: they say what else a model can do.

    Example: `qkv.load("pronunciation").predict("knight").text`
    """

    module: SequenceModel
    task: Task
    decoding: DecodingConfig
    card: Card

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the model can do beyond answering a line."""
        return frozenset()

    @overload
    def predict(self, inputs: str, decoding: DecodingConfig | None = None, **options: Any) -> Answer: ...
    @overload
    def predict(
        self, inputs: Iterable[str], decoding: DecodingConfig | None = None, **options: Any
    ) -> Iterator[Answer]: ...
    def predict(
        self, inputs: str | Iterable[str], decoding: DecodingConfig | None = None, **options: Any
    ) -> Answer | Iterator[Answer]:
        """Answer one input, or many: a string is one input; any other iterable gives an iterator of answers.

        Many inputs are answered in batches, in their order, as they are asked for. options: those of the model's
        `predict_ranked`, such as `seed` and `constraints` of a model that generates text.
        Raises DataError for an input that cannot be read, once those before it have been answered.
        """
        if isinstance(inputs, str):
            return next(self._predict_each([inputs], decoding, **options))
        return self._predict_each(inputs, decoding, **options)

    def _predict_each(self, inputs: Iterable[str], decoding: DecodingConfig | None, **options: Any) -> Iterator[Answer]:
        for best, *others in self.predict_ranked(inputs, decoding, **options):
            yield replace(best, alternatives=tuple(others)) if others else best

    def predict_ranked(self, lines: Iterable[str], decoding: DecodingConfig | None = None) -> Iterator[list[Answer]]:
        """Yield the answers to each line, best first."""
        raise NotImplementedError

    def predict_waveforms(
        self, waveforms: Iterable[Tensor], decoding: DecodingConfig | None = None
    ) -> Iterator[list[Answer]]:
        """Yield the answers to each waveform, (samples,) at the sample rate of `audio_features`, best first."""
        raise DataError("this model reads no audio; expected one that recognizes speech or classifies audio")

    def look(self, line: str, answer: str | Answer | None = None, tap: Tap = NO_TAP) -> Trace:
        """Answer a line (or take the given answer) and return every attention that led to it, as a Trace."""
        raise NotImplementedError

    def evaluate(self, examples: Any, decoding: DecodingConfig | None = None, **options: Any) -> Any:
        """Score the model on held-out examples; see `qkv.evaluate`."""
        from qkv.tasks.evaluator import evaluate  # which imports this module

        return evaluate(self, examples, decoding, **options)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model folder, with parameters in `dtype` if given. Raises StorageError where that fails."""
        raise NotImplementedError

    def validate_inputs(self, lines: Sequence[str], n_read: int = 0) -> list[list[int]]:
        """Check some lines, `n_read` lines coming before them, and return their token ids, if the model reads text.

        Raises DataError, with its number, for a line that cannot be answered.
        """
        return []

    @property
    def audio_features(self) -> LogMel | None:
        """The spectrogram features that the model reads; None if it reads something else."""
        return None

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the training sources began with, such as <2de>; empty if nothing special."""
        return ()

    def missing_prefix(self, line: str) -> bool:
        """Return whether a line begins with none of the prefixes of the training sources."""
        return False

    def n_truncated(self, line: str) -> int:
        """Return how many tokens at the end of a line the model does not read."""
        return 0

    def unknown_symbols(self, line: str) -> list[str]:
        """Return the characters or words of a line that are not in the vocabulary, each once."""
        return []

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """Return what the tokens or classes of an answer are called."""
        return [str(number) for number in ids]

    def candidate_names(self, line: str) -> Callable[[Sequence[int]], list[str]]:
        """Return a function that names the possible answers to a line, by their number."""
        return self.token_names

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.module.parameters())
        return f"{type(self).__name__}(task={self.task.name}, {count / 1e6:.1f} million parameters)"
