"""Evaluate a model on held-out examples; every score comes with its signature."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

from torch import Tensor

from qkv import spec
from qkv.data.audio.features import resample
from qkv.data.audio.recordings import Recording
from qkv.data.text.pairs import Pair
from qkv.decoding import DecodingConfig
from qkv.errors import DataError
from qkv.evaluation import (
    LengthBucket,
    Score,
    bits_per_byte,
    lead_baseline,
    nats_per_token,
    oracle_baseline,
    perplexity,
    score_by_length,
)
from qkv.evaluation.sliding_window import SlidingWindow, negative_log_likelihood
from qkv.tasks.base import TaskModel
from qkv.tasks.reinforcement_learning.model import RolloutReport, evaluate_agent
from qkv.tasks.speech.transcription import ctc_word_times
from qkv.tasks.text2text.data import (
    load_image_candidates,
    load_image_labels,
    load_recordings,
    load_texts,
    parse_data_source,
    prepare_pairs,
)


@dataclass(frozen=True)
class EvaluationReport:
    """The result of an evaluation: the scores by name, the task's own metric by source length, and every answer.

    n_truncated: how many sources were longer than what the model reads. n_missing_prefix: how many began with none of
    the prefixes of the training sources. baselines: the scores of answers that need no model, by name.
    """

    scores: dict[str, Score]
    buckets: tuple[LengthBucket, ...]
    seconds: float
    answers: list[str]
    references: list[tuple[str, ...]]
    n_truncated: int = 0
    n_missing_prefix: int = 0
    baselines: Mapping[str, dict[str, Score]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name:20} {score.value:7.2f}   {score.signature}" for name, score in self.scores.items()]
        lines.append(f"{len(self.answers):,} lines in {self.seconds:.1f} s")
        if self.n_truncated:
            lines.append(
                f"{self.n_truncated:,} of them are longer than what the model reads: their ends were truncated"
            )
        if self.n_missing_prefix:
            lines.append(
                f"{self.n_missing_prefix:,} of them begin with none of the prefixes that tell this model what to "
                "answer (for a corpus, give one with --option 'prefix=<2de>')"
            )
        lines += [f"  {bucket}" for bucket in self.buckets if len(self.buckets) > 1]
        for name, scores in self.baselines.items():
            lines.append(
                f"for comparison, {name}: " + ", ".join(f"{one} {own.value:.2f}" for one, own in scores.items())
            )
        return "\n".join(lines)


Examples: TypeAlias = Sequence[Pair] | Sequence[Recording] | Sequence[str] | Sequence[float]
"""Examples for an evaluation: pairs, recordings, texts, or target returns of an agent."""


def load_examples(
    model: TaskModel, paths: Sequence[Path], corpus: str | None = None, options: Sequence[str] = ()
) -> Examples:
    """Load the held-out examples that a command line names, as the model needs them.

    Raises DataError or CorpusError for examples that cannot be read, or do not suit the model.
    """
    if model.audio_features is not None:
        return load_recordings(paths, corpus, options)
    if model.task.name == "text-generation" and (texts := load_texts(paths, corpus, options)) is not None:
        return texts
    if "candidates" in model.capabilities:
        return load_image_candidates(paths, corpus, options)
    if "image" in model.capabilities:
        classes: Sequence[str] = getattr(model, "labels", ())
        if (label_pairs := load_image_labels(paths, corpus, options, classes)) is not None:
            return label_pairs
    return prepare_pairs([parse_data_source(paths, corpus, options)], model.task)


@overload
def evaluate(
    model: TaskModel,
    examples: Sequence[Pair] | Sequence[Recording],
    decoding: DecodingConfig | None = None,
    **options: Any,
) -> EvaluationReport: ...
@overload
def evaluate(model: TaskModel, examples: Sequence[str], **options: Any) -> PerplexityReport: ...
@overload
def evaluate(model: TaskModel, examples: Sequence[float], **options: Any) -> RolloutReport: ...
def evaluate(
    model: TaskModel, examples: Examples, decoding: DecodingConfig | None = None, **options: Any
) -> EvaluationReport | PerplexityReport | RolloutReport:
    """Score a model on held-out examples, in the way that the examples ask for.

    Pairs of a source and a reference: the answers are scored by the metrics of the task (option: baselines).
    Recordings: so are the transcripts. Texts: the perplexity of a language model (option: window). Numbers: the
    returns that an agent is asked for in its environment (options: episodes, seed).
    Raises DataError if there are no examples, or the model does not take such examples.
    """
    if "rollout" in model.capabilities:
        agent: Any = model
        return evaluate_agent(agent, cast("Sequence[float]", examples), **options)
    if examples and isinstance(examples[0], str):
        return evaluate_perplexity(model, cast("Sequence[str]", examples), **options)
    if examples and isinstance(examples[0], Recording):
        return evaluate_recordings(model, cast("Sequence[Recording]", examples), decoding, **options)
    return evaluate_pairs(model, cast("Sequence[Pair]", examples), decoding, **options)


def evaluate_pairs(
    model: TaskModel,
    pairs: Sequence[Pair],
    decoding: DecodingConfig | None = None,
    *,
    baselines: bool = False,
) -> EvaluationReport:
    """Answer every source and score the answers by the metrics of the task.

    baselines: also score the first sentence of each source, and its best one by the references ("oracle").
    Raises DataError if there are no pairs, for a reference that cannot be scored, and for baselines of a task other
    than summarization.
    """
    if not pairs:
        raise DataError("there are no examples to evaluate on; give at least one")
    task = model.task
    if baselines and task.name != "summarization":
        raise DataError(
            f"baselines were requested for a model that does {task.name}; expected one that does summarization"
        )
    questions = task.group_references(pairs)
    references = [own for _, own in questions]
    task.score([""] * len(references), references)  # refuse a reference that cannot be scored before decoding
    started = time.perf_counter()
    answers = [found[0].text for found in model.predict_ranked((source for source, _ in questions), decoding)]
    seconds = time.perf_counter() - started
    buckets = score_by_length(
        lambda some, own: task.score(some, own)[task.metric],
        answers,
        references,
        [task.measure_length(source) for source, _ in questions],
        task.length_edges,
    )
    sources = [source for source, _ in questions]
    n_truncated = sum(model.n_truncated(source) > 0 for source in sources)
    n_without_prefix = sum(model.missing_prefix(source) for source in sources)
    details = {}
    if baselines:
        details["the first sentence"] = task.score(lead_baseline(sources), references)
        details["the best sentence (oracle)"] = task.score(oracle_baseline(sources, references), references)
    return EvaluationReport(
        task.score(answers, references), buckets, seconds, answers, references, n_truncated, n_without_prefix, details
    )


def evaluate_recordings(
    model: TaskModel,
    recordings: Sequence[Recording],
    decoding: DecodingConfig | None = None,
) -> EvaluationReport:
    """Answer every recording and score the answers by the metrics of the task, also by the number of words spoken.

    Raises DataError if there are no recordings, one cannot be read or scored, or the model reads no audio.
    """
    if not recordings:
        raise DataError("there are no recordings to evaluate on; give at least one")
    features = model.audio_features
    if features is None:
        raise DataError(
            "recordings were given to a model that reads no audio; expected a model of speech (qkv train "
            "speech-recognition)"
        )
    task = model.task
    references: list[tuple[str, ...]] = [(one.text,) for one in recordings]
    task.score([""] * len(references), references)  # refuse a reference that cannot be scored before decoding
    started = time.perf_counter()
    times: list[tuple[tuple[float, float], ...]] = []

    def sounds() -> Iterator[Tensor]:
        for one in recordings:
            sound = one.load()
            times.append(sound.word_times)
            yield resample(sound.samples, sound.sample_rate, features.sample_rate)

    found = model.predict_waveforms(sounds(), decoding)
    answers = [answer.text for answer, *_ in found]
    seconds = time.perf_counter() - started
    scores = task.score(answers, references)
    right = [number for number, own in enumerate(references) if times[number] and answers[number] == own[0]]
    frontend = getattr(model, "frontend", None)
    if frontend is not None and frontend.ctc_weight and right:
        scores |= _score_word_times(model, [recordings[number] for number in right])
    buckets = score_by_length(
        lambda some, own: task.score(some, own)[task.metric],
        answers,
        references,
        [len(one.text.split()) for one in recordings],
        (2, 4, 8, 16),
    )
    return EvaluationReport(scores, buckets, seconds, answers, references)


def _score_word_times(model: Any, recordings: Sequence[Recording]) -> dict[str, Score]:
    """Score the word times of correct answers by their mean absolute error, in milliseconds."""
    begins, ends = [], []
    for one in recordings:
        sound = one.load()
        source = model.frontend.extract_features(
            resample(sound.samples, sound.sample_rate, model.frontend.features.sample_rate)
        )
        words = ctc_word_times(model, source, model.target_tokenizer.encode(one.text))
        for word, (begin, end) in zip(words, sound.word_times, strict=False):
            begins.append(1000 * abs(word.start - begin))
            ends.append(1000 * abs(word.end - end))
    signature = f"ms|mean-absolute|words:{len(begins)}|of:right-answers"
    return {
        "word_start_error": Score("word_start_error", sum(begins) / max(1, len(begins)), signature),
        "word_end_error": Score("word_end_error", sum(ends) / max(1, len(ends)), signature),
    }


_DEFAULT_CONTEXT = 1024
"""The tokens in a window over a text, if the model does not say how many it was trained with."""


@dataclass(frozen=True)
class PerplexityReport:
    """How well a model predicts texts: nats per token, perplexity and bits per byte."""

    scores: dict[str, Score]
    n_texts: int
    seconds: float

    def __str__(self) -> str:
        lines = [f"{name:20} {score.value:9.4f}   {score.signature}" for name, score in self.scores.items()]
        return "\n".join([*lines, f"{self.n_texts:,} texts in {self.seconds:.1f} s"])


def evaluate_perplexity(
    model: TaskModel, texts: Sequence[str], window: SlidingWindow | None = None
) -> PerplexityReport:
    """Measure the perplexity of a language model on texts, each separately, with a sliding window.

    window: by default the context length of the training, with half of that as the stride. The end of a text counts if
    the
    model was trained here, where it is a token. Raises DataError for a model that is not a language model.
    """
    if "perplexity" not in model.capabilities:
        raise DataError(
            "perplexity was requested; expected a language model, which has only a decoder (qkv train "
            "language-modeling)"
        )
    generator: Any = model
    shape = model.module.spec
    assert isinstance(shape, spec.Transformer) and shape.decoder is not None
    if window is None:
        context = _get_context(model, shape.decoder)
        window = SlidingWindow(context, max(1, context // 2))
    started = time.perf_counter()
    ids = generator.source_tokenizer.encode_batch(texts)
    ends = generator.generation is None
    bos, eos = generator.rules.bos, generator.target_tokenizer.eos if ends else None
    total, count = negative_log_likelihood(
        model.module, ids, window, bos=bos, eos=eos, vocab_size=generator.target_tokenizer.size
    )
    signature = f"context:{window.context}|stride:{window.stride}|begin:{'unscored' if bos is None else 'scored'}"
    signature += f"|end:{'scored' if ends else 'unscored'}"
    unk = generator.source_tokenizer.special_tokens.unk
    if unk is not None and (unknown := sum(one.count(unk) for one in ids)):
        signature += f"|unknown:{unknown}"
    size = sum(len(text.encode()) for text in texts)
    scores = {
        "loss": nats_per_token(total, count),
        "perplexity": perplexity(total, count),
        "bits_per_byte": bits_per_byte(total, size),
    }
    signed_scores = {name: replace(score, signature=f"{score.signature}|{signature}") for name, score in scores.items()}
    return PerplexityReport(signed_scores, len(texts), time.perf_counter() - started)


def _get_context(model: TaskModel, decoder: spec.Stack) -> int:
    if model.card.context:
        return model.card.context
    return (
        min(_DEFAULT_CONTEXT, decoder.positions.length)
        if isinstance(decoder.positions, spec.Learned)
        else _DEFAULT_CONTEXT
    )
