"""The registry of tasks: `TASKS` says how the answers of each are scored, `TRAINABLE_TASKS` how each is trained.

A model that is trained here has one of the trainable tasks; published models also have text-generation, fill-mask,
classification, token-classification, zero-shot-image-classification and feature-extraction. This file needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from qkv.data.cleaning import group_references
from qkv.data.text.pairs import Pair
from qkv.errors import DataError
from qkv.evaluation import Score, bleu, chrf, pronunciation_errors, rouge, transcript_errors
from qkv.evaluation.words import normalize_transcript
from qkv.tasks.image_classification.config import ImageClassificationConfig
from qkv.tasks.language_modeling.config import LanguageModelingConfig
from qkv.tasks.reinforcement_learning.config import DecisionTransformerConfig
from qkv.tasks.speech.config import AudioClassificationConfig, SpeechConfig
from qkv.tasks.text2text.config import Text2TextConfig

if TYPE_CHECKING:
    from qkv.tasks.training_setup import TrainingSetup

Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, Score]]


@dataclass(frozen=True)
class Task:
    """How a task prepares its input lines and scores its answers.

    preprocess: what happens to a source line before the tokenizer reads it.
    multi_reference: whether equal sources are one question with several right answers.
    score: from the answers and the references of each to scores by name.
    metric: the score that selects the best weights in training. mode: whether it is to be minimized or maximized.
    measure_length: the length of a source. length_edges: where the lengths part when scores are given by length.
    is_continuation: whether the answer of a decoder alone continues the line, rather than answering it.
    """

    name: str
    preprocess: Callable[[str], str]
    multi_reference: bool
    score: Scorer
    metric: str
    mode: Literal["min", "max"]
    measure_length: Callable[[str], int]
    length_edges: tuple[int, ...]
    is_continuation: bool = False

    def group_references(self, pairs: Iterable[Pair]) -> list[tuple[str, tuple[str, ...]]]:
        """Return the sources with all references of each, in order of first appearance."""
        if not self.multi_reference:
            return [(source, (target,)) for source, target in pairs]
        return [(source, tuple(targets)) for source, targets in group_references(pairs).items()]


def _strip(line: str) -> str:
    return line.strip()


def _keep_unchanged(line: str) -> str:
    return line


def _normalize_spelling(line: str) -> str:
    return line.strip().lower()


def _count_words(line: str) -> int:
    return len(line.split())


def _count_candidates(line: str) -> int:
    return line.count("\t")


def _score_translations(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    single = [own[0] for own in references]
    return {"bleu": bleu(hypotheses, single), "chrf": chrf(hypotheses, single)}


def _score_pronunciations(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Score pronunciations with stress, where the references mark it, and without."""
    plain = pronunciation_errors(
        [remove_stress(one) for one in hypotheses], [[remove_stress(one) for one in own] for own in references]
    )
    plain = replace(plain, signature=f"{plain.signature}|stress:removed")
    if not any(symbol[-1:].isdigit() for own in references for one in own for symbol in one.split()):
        return {"wer": plain, "per": plain.phoneme_error_rate}
    whole = pronunciation_errors(hypotheses, references)
    whole = replace(whole, signature=f"{whole.signature}|stress:kept")
    return {
        "wer": whole,
        "per": whole.phoneme_error_rate,
        "wer_without_stress": plain,
        "per_without_stress": plain.phoneme_error_rate,
    }


def _score_summaries(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    return {**rouge(hypotheses, references), "chrf": chrf(hypotheses, references)}


def _score_exact_match(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    right = sum(one.strip() in {own.strip() for own in some} for one, some in zip(hypotheses, references, strict=True))
    signature = "percent|right:equals-any-reference|case:mixed"
    return {"accuracy": Score("accuracy", 100 * right / len(hypotheses), signature)}


def _score_transcripts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    score = transcript_errors(
        [normalize_transcript(one) for one in hypotheses], [normalize_transcript(own[0]) for own in references]
    )
    signature = score.signature.replace("case:mixed", "case:lc|punctuation:removed|unicode:nfc")
    right = _score_exact_match(
        [normalize_transcript(one) for one in hypotheses], [[normalize_transcript(own[0])] for own in references]
    )["accuracy"]
    return {"wer": replace(score, signature=signature), "exact_match": replace(right, name="exact_match")}


def _refuse_scoring(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> NoReturn:
    raise DataError("this model answers with vectors, which have no right or wrong; compare them with one another")


def remove_stress(phonemes: str) -> str:
    """Return the same phonemes without their stress digits: "K ER1 N AH0 L" -> "K ER N AH L"."""
    return " ".join(symbol.rstrip("012") for symbol in phonemes.split())


TASKS = {
    task.name: task
    for task in (
        Task("translation", _strip, False, _score_translations, "bleu", "max", _count_words, (6, 11, 16, 21, 26, 31)),
        Task("pronunciation", _normalize_spelling, True, _score_pronunciations, "wer", "min", len, (4, 6, 8, 10, 12)),
        Task("summarization", _strip, True, _score_summaries, "rougeL", "max", _count_words, (26, 51, 101, 201)),
        Task(
            "text-generation",
            _keep_unchanged,
            False,
            _score_exact_match,
            "accuracy",
            "max",
            _count_words,
            (11, 101, 1001),
            is_continuation=True,
        ),
        Task("speech-recognition", _strip, False, _score_transcripts, "wer", "min", len, ()),
        Task("fill-mask", _keep_unchanged, False, _score_exact_match, "accuracy", "max", _count_words, (11, 101)),
        Task("classification", _keep_unchanged, False, _score_exact_match, "accuracy", "max", _count_words, (11, 101)),
        Task(
            "token-classification",
            _keep_unchanged,
            False,
            _score_exact_match,
            "accuracy",
            "max",
            _count_words,
            (11, 101),
        ),
        Task(
            "zero-shot-image-classification",
            _keep_unchanged,
            False,
            _score_exact_match,
            "accuracy",
            "max",
            _count_candidates,
            (3, 6, 11, 101),
        ),
        Task("decision-transformer", _strip, False, _refuse_scoring, "return", "max", len, ()),
        Task("feature-extraction", _keep_unchanged, False, _refuse_scoring, "accuracy", "max", _count_words, (11, 101)),
    )
}


@dataclass(frozen=True)
class TrainableTask:
    """How a task is trained, by the modules of its package.

    config: the class of its recipes. Its module also says what files of a user are data of the task: `find_source`,
    and `OWN_DATA` in words. training: the name of the module with `load_data(recipe)` and `build_training_setup(recipe,
    data, run_folder, cache_folder, resume)`. It needs torch, so it is imported when it is used.
    """

    config: type[Any]
    training: str

    @property
    def config_module(self) -> Any:
        """The module of the recipes."""
        return sys.modules[self.config.__module__]

    def load_data(self, recipe: Any) -> Any:
        """Read the data of a recipe; its `notes` say what a user should know about it."""
        return importlib.import_module(self.training).load_data(recipe)

    def build_training_setup(
        self, recipe: Any, data: Any, run_folder: Path, cache_folder: Path, resume: bool
    ) -> TrainingSetup:
        """Return what a training needs. resume: whether the run in `run_folder` is continued."""
        module = importlib.import_module(self.training)
        setup: TrainingSetup = module.build_training_setup(recipe, data, run_folder, cache_folder, resume)
        return setup


RecipeConfig: TypeAlias = (
    Text2TextConfig
    | LanguageModelingConfig
    | ImageClassificationConfig
    | SpeechConfig
    | AudioClassificationConfig
    | DecisionTransformerConfig
)

TRAINABLE_TASKS = {
    "translation": TrainableTask(Text2TextConfig, "qkv.tasks.text2text.training"),
    "pronunciation": TrainableTask(Text2TextConfig, "qkv.tasks.text2text.training"),
    "summarization": TrainableTask(Text2TextConfig, "qkv.tasks.text2text.training"),
    "language-modeling": TrainableTask(LanguageModelingConfig, "qkv.tasks.language_modeling.training"),
    "image-classification": TrainableTask(ImageClassificationConfig, "qkv.tasks.image_classification.training"),
    "speech-recognition": TrainableTask(SpeechConfig, "qkv.tasks.speech.training"),
    "audio-classification": TrainableTask(AudioClassificationConfig, "qkv.tasks.speech.classification"),
    "decision-transformer": TrainableTask(DecisionTransformerConfig, "qkv.tasks.reinforcement_learning.training"),
}
"""The tasks that `qkv train` knows, by the name in `task` of a recipe."""
