"""Ensembles of models of one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qkv.decoding import Ensemble
from qkv.errors import VocabularyError
from qkv.tasks.base import TaskModel


def combine(models: Sequence[TaskModel]) -> TaskModel:
    """Return one model that averages the models' probabilities (Sutskever et al. 2014).

    Its tokenizers, task and decoding are those of the first model. Raises VocabularyError for models that generate no
    text, or whose tokenizers differ.
    """
    if len(models) == 1:
        return models[0]
    generators: list[Any] = list(models)
    if any("generation" not in model.capabilities for model in models):
        raise VocabularyError("an ensemble was requested; expected models that generate text")
    first = generators[0]
    for number, other in enumerate(generators[1:], 2):
        if (other.source_tokenizer, other.target_tokenizer) != (first.source_tokenizer, first.target_tokenizer):
            raise VocabularyError(
                f"model {number} of the ensemble has other tokenizers than the first; expected the same ones: train "
                f"the "
                "models on the same data, or start one from the other (--from)"
            )
    ensemble = Ensemble([model.module for model in generators])
    ensemble.spec = first.module.spec
    combined: TaskModel = replace(first, module=ensemble.eval())
    return combined
