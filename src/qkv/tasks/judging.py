"""Scoring a model on held-out examples: one decoding path, every number with its signature."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from qkv.data.reading import Pair
from qkv.decoding import Decoding
from qkv.errors import DataError
from qkv.evaluation import Score
from qkv.tasks.runner import Runner

LENGTHS = (5, 10, 15, 20, 30)


@dataclass(frozen=True)
class Report:
    """What an evaluation found. by_length: the same scores for sources of up to so many words (None: longer)."""

    scores: dict[str, Score]
    questions: int
    seconds: float
    by_length: dict[int | None, tuple[int, dict[str, Score]]]
    answers: list[str]
    references: list[tuple[str, ...]]

    def __str__(self) -> str:
        lines = [f"{name:20} {score.value:7.2f}   {score.signature}" for name, score in self.scores.items()]
        lines.append(f"{self.questions:,} lines in {self.seconds:.1f} s")
        for bound, (count, scores) in self.by_length.items():
            words = f"over {LENGTHS[-1]} words" if bound is None else f"up to {bound} words"
            lines.append(
                f"  {words:15} {count:6,} lines   " + "   ".join(f"{n} {s.value:.2f}" for n, s in scores.items())
            )
        return "\n".join(lines)


def evaluate(
    runner: Runner, pairs: Sequence[Pair], decoding: Decoding | None = None, *, by_length: bool = False
) -> Report:
    """Answer every source and score the answers as the task does. Raises DataError if there is nothing to score."""
    if not pairs:
        raise DataError("there are no examples to evaluate on; give at least one")
    questions = runner.task.questions(pairs)
    begun = time.perf_counter()
    answers = [found[0].text for found in runner.run((source for source, _ in questions), decoding)]
    seconds = time.perf_counter() - begun
    references = [own for _, own in questions]
    groups: dict[int | None, list[int]] = {bound: [] for bound in (*LENGTHS, None)} if by_length else {}
    for number, (source, _) in enumerate(questions):
        if by_length:
            groups[next((bound for bound in LENGTHS if len(source.split()) <= bound), None)].append(number)
    return Report(
        scores=runner.task.score(answers, references),
        questions=len(questions),
        seconds=seconds,
        by_length={
            bound: (len(own), runner.task.score([answers[n] for n in own], [references[n] for n in own]))
            for bound, own in groups.items()
            if own
        },
        answers=answers,
        references=references,
    )
