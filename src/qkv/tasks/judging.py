"""Scoring a model on held-out examples: one decoding path, every number with its signature."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from qkv.data.reading import Pair
from qkv.decoding import Decoding
from qkv.errors import DataError
from qkv.evaluation import Bucket, Score, by_length
from qkv.tasks.published import Predictor
from qkv.tasks.runner import Runner


@dataclass(frozen=True)
class Report:
    """What an evaluation found: scores by name, the task's own score by source length, every answer."""

    scores: dict[str, Score]
    buckets: tuple[Bucket, ...]
    seconds: float
    answers: list[str]
    references: list[tuple[str, ...]]

    def __str__(self) -> str:
        lines = [f"{name:20} {score.value:7.2f}   {score.signature}" for name, score in self.scores.items()]
        lines.append(f"{len(self.answers):,} lines in {self.seconds:.1f} s")
        lines += [f"  {bucket}" for bucket in self.buckets]
        return "\n".join(lines)


def evaluate(runner: Runner | Predictor, pairs: Sequence[Pair], decoding: Decoding | None = None) -> Report:
    """Answer every source and score the answers as the task does. Raises DataError if there is nothing to score."""
    if not pairs:
        raise DataError("there are no examples to evaluate on; give at least one")
    task = runner.task
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
    return Report(task.score(answers, references), buckets, seconds, answers, references)
