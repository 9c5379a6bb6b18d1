"""Scoring a model on held-out examples: one decoding path, every number with its signature."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from qkv import spec
from qkv.data.audio import LogMel, resample
from qkv.data.frames import at_least
from qkv.data.reading import Pair
from qkv.data.recordings import Recording
from qkv.decoding import Decoding
from qkv.errors import DataError
from qkv.evaluation import Bucket, Score, bits_per_byte, by_length, lead, nats_per_token, oracle, perplexity
from qkv.evaluation.reading import Window, surprise
from qkv.tasks.listening import labelled
from qkv.tasks.matching import Matcher
from qkv.tasks.published import Predictor
from qkv.tasks.runner import Runner


@dataclass(frozen=True)
class Report:
    """What an evaluation found: scores by name, the task's own score by source length, every answer.

    unread: how many sources were longer than the model reads. unled: how many began with nothing that the model learned
    to find before a source. beside: scores of answers that need no model, by name.
    """

    scores: dict[str, Score]
    buckets: tuple[Bucket, ...]
    seconds: float
    answers: list[str]
    references: list[tuple[str, ...]]
    unread: int = 0
    unled: int = 0
    beside: Mapping[str, dict[str, Score]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name:20} {score.value:7.2f}   {score.signature}" for name, score in self.scores.items()]
        lines.append(f"{len(self.answers):,} lines in {self.seconds:.1f} s")
        if self.unread:
            lines.append(f"{self.unread:,} of them are longer than the model reads: the end of these it did not see")
        if self.unled:
            lines.append(
                f"{self.unled:,} of them begin with nothing that tells this model what to answer "
                "(of a corpus, give it so: --with 'before=<2de>')"
            )
        lines += [f"  {bucket}" for bucket in self.buckets if len(self.buckets) > 1]
        for name, scores in self.beside.items():
            lines.append(f"beside it, {name}: " + ", ".join(f"{one} {own.value:.2f}" for one, own in scores.items()))
        return "\n".join(lines)


def evaluate(
    runner: Runner | Predictor | Matcher,
    pairs: Sequence[Pair],
    decoding: Decoding | None = None,
    *,
    baselines: bool = False,
) -> Report:
    """Answer every source and score the answers as the task does.

    baselines: score the first sentence of each source as well, and its best one by the references ("oracle").
    Raises DataError if there is nothing to score, and for baselines of a task that does not summarize.
    """
    if not pairs:
        raise DataError("there are no examples to evaluate on; give at least one")
    task = runner.task
    if baselines and task.name != "summarize":
        raise DataError(f"baselines were asked of a model that does {task.name}; expected one that does summarize")
    questions = task.questions(pairs)
    begun = time.perf_counter()
    answers = [found[0].text for found in runner.run((source for source, _ in questions), decoding)]
    seconds = time.perf_counter() - begun
    references = [own for _, own in questions]
    buckets = by_length(
        lambda some, own: task.score(some, own)[task.metric],
        answers,
        references,
        [task.length(source) for source, _ in questions],
        task.edges,
    )
    sources = [source for source, _ in questions]
    unread = sum(runner.unread(source) > 0 for source in sources)
    unled = sum(runner.unled(source) for source in sources) if isinstance(runner, Runner) else 0
    beside = {}
    if baselines:
        beside["the first sentence"] = task.score(lead(sources), references)
        beside["the best sentence (oracle)"] = task.score(oracle(sources, references), references)
    return Report(task.score(answers, references), buckets, seconds, answers, references, unread, unled, beside)


def evaluate_recordings(
    runner: Runner | Predictor | Matcher, recordings: Sequence[Recording], decoding: Decoding | None = None
) -> Report:
    """Answer every recording and score the answers as the task does, also by the number of words said.

    Raises DataError if there is nothing to score, a recording is unreadable, or the model does not hear.
    """
    if not recordings:
        raise DataError("there are no recordings to evaluate on; give at least one")
    features = heard_by(runner)
    if features is None:
        raise DataError("this model reads no sounds; expected one that hears, for recordings (qkv train hear)")
    task = runner.task
    begun = time.perf_counter()
    times: list[tuple[tuple[float, float], ...]] = []

    def sounds() -> Iterator[Tensor]:
        for one in recordings:
            sound = one.load()
            times.append(sound.times)
            yield resample(sound.samples, sound.rate, features.rate)

    samples = sounds()
    if isinstance(runner, Runner):
        found = runner.hear(samples, decoding)
    else:
        assert isinstance(runner, Predictor)  # it hears
        found = (runner.name(at_least(one, features)) for one in samples)
    answers = [answer.text for answer, *_ in found]
    seconds = time.perf_counter() - begun
    references: list[tuple[str, ...]] = [(one.text,) for one in recordings]
    scores = task.score(answers, references)
    right = [number for number, own in enumerate(references) if times[number] and answers[number] == own[0]]
    if isinstance(runner, Runner) and runner.hearing is not None and runner.hearing.ctc and right:
        scores |= _timed(runner, [recordings[number] for number in right])
    buckets = by_length(
        lambda some, own: task.score(some, own)[task.metric],
        answers,
        references,
        [len(one.text.split()) for one in recordings],
        (2, 4, 8, 16),
    )
    return Report(scores, buckets, seconds, answers, references)


def _timed(runner: Runner, recordings: Sequence[Recording]) -> dict[str, Score]:
    """How far the words of right answers are from where they were said: milliseconds, the mean over all words."""
    assert runner.hearing is not None
    begins, ends = [], []
    for one in recordings:
        sound = one.load()
        source = runner.hearing.frames(resample(sound.samples, sound.rate, runner.hearing.features.rate))
        words = labelled(runner, source, runner.target.encode(one.text))
        for word, (begin, end) in zip(words, sound.times, strict=False):
            begins.append(1000 * abs(word.start - begin))
            ends.append(1000 * abs(word.end - end))
    said = f"ms|mean-absolute|words:{len(begins)}|of:right-answers"
    return {
        "begin": Score("begin", sum(begins) / max(1, len(begins)), said),
        "end": Score("end", sum(ends) / max(1, len(ends)), said),
    }


def heard_by(runner: Runner | Predictor | Matcher) -> LogMel | None:
    """The features by which a model hears; None if it reads something else."""
    if isinstance(runner, Runner):
        return None if runner.hearing is None else runner.hearing.features
    return runner.preparation if isinstance(runner.preparation, LogMel) else None


_CONTEXT = 1024
"""Tokens that a window over a text has, where the model does not say how many it learned with."""


@dataclass(frozen=True)
class Reading:
    """How well a model foretold texts: nats per token, perplexity and bits per byte."""

    scores: dict[str, Score]
    texts: int
    seconds: float

    def __str__(self) -> str:
        lines = [f"{name:20} {score.value:9.4f}   {score.signature}" for name, score in self.scores.items()]
        return "\n".join([*lines, f"{self.texts:,} texts in {self.seconds:.1f} s"])


def read_texts(runner: Runner | Predictor | Matcher, texts: Sequence[str], window: Window | None = None) -> Reading:
    """Let a language model foretell texts, each by itself, through a window that slides over it.

    window: the context that the model learned with, moved on by half of that, unless given. The end of a text counts
    if the model was trained here, where it is a token. Raises DataError if there is nothing to foretell.
    """
    shape = runner.model.spec
    if not isinstance(runner, Runner) or not (isinstance(shape, spec.Transformer) and shape.encoder is None):
        raise DataError("this model answers a source and foretells no text; expected a decoder alone (qkv train write)")
    assert shape.decoder is not None
    if window is None:
        context = _context(runner, shape.decoder)
        window = Window(context, max(1, context // 2))
    begun = time.perf_counter()
    ids = runner.source.encode_all(texts)
    ends = runner.generation is None
    bos, eos = runner.rules()["bos"], runner.target.eos if ends else None
    total, count = surprise(runner.model, ids, window, bos=bos, eos=eos, vocab=runner.target.size)
    said = f"context:{window.context}|stride:{window.stride}|begin:{'unscored' if bos is None else 'scored'}"
    said += f"|end:{'scored' if ends else 'unscored'}"
    unk = runner.source.specials.unk
    if unk is not None and (unknown := sum(one.count(unk) for one in ids)):
        said += f"|unknown:{unknown}"
    size = sum(len(text.encode()) for text in texts)
    scores = {
        "loss": nats_per_token(total, count),
        "perplexity": perplexity(total, count),
        "bits per byte": bits_per_byte(total, size),
    }
    told = {name: replace(score, signature=f"{score.signature}|{said}") for name, score in scores.items()}
    return Reading(told, len(texts), time.perf_counter() - begun)


def _context(runner: Runner, decoder: spec.Stack) -> int:
    learned = (runner.card or {}).get("context")
    if isinstance(learned, int) and learned > 0:
        return learned
    return min(_CONTEXT, decoder.positions.length) if isinstance(decoder.positions, spec.Learned) else _CONTEXT
