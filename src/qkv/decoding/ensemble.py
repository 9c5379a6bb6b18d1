"""Several models that predict as one (Sutskever et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qkv.errors import VocabularyError
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap


@dataclass
class EnsembleState:
    """The states of all models of an ensemble."""

    states: list[Any]
    length: int

    def reorder(self, index: Tensor) -> EnsembleState:
        """Pick or repeat rows by `index` (new_rows,); the old state must not be used again."""
        return EnsembleState([state.reorder(index) for state in self.states], self.length)


class Ensemble(SequenceModel):
    """Models of one vocabulary whose mean answers; a `SequenceModel` itself, whose logits are log-probabilities.

    average: of the "probabilities", as fairseq takes it, or of the "log-probabilities", normalised again.
    A tap sees model number i at the place "i". Raises VocabularyError if vocabularies differ in size.
    """

    def __init__(
        self,
        models: Sequence[SequenceModel],
        average: Literal["probabilities", "log-probabilities"] = "probabilities",
    ) -> None:
        super().__init__()
        if not models:
            raise VocabularyError("an ensemble was given no models; give at least one")
        self.models = nn.ModuleList(models)
        self.average = average
        self.training = any(model.training for model in models)

    def encode(self, source: Tensor, source_mask: Tensor | None = None, tap: Tap = NO_TAP) -> Any:
        return [model.encode(source, source_mask, tap.at(str(number))) for number, model in self._enumerate_models()]

    def start(self, memory: Any, rows: int) -> EnsembleState:
        memories = [None] * len(self.models) if memory is None else memory
        return EnsembleState([model.start(memories[number], rows) for number, model in self._enumerate_models()], 0)

    def step(  # type: ignore[override]  # a model takes its own kind of state
        self, tokens: Tensor, state: EnsembleState, tap: Tap = NO_TAP
    ) -> tuple[Tensor, EnsembleState]:
        answers = [
            model.step(tokens, state.states[number], tap.at(str(number))) for number, model in self._enumerate_models()
        ]
        after = EnsembleState([state for _, state in answers], state.length + tokens.shape[1])
        return tap("logits", self._average_log_probabilities([logits for logits, _ in answers])), after

    def forward(
        self,
        source: Tensor | None = None,
        target: Tensor | None = None,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        tap: Tap = NO_TAP,
    ) -> Tensor:
        answers = [
            model(source, target, source_mask, target_mask, tap.at(str(number)))
            for number, model in self._enumerate_models()
        ]
        return tap("logits", self._average_log_probabilities(answers))

    def _enumerate_models(self) -> list[tuple[int, Any]]:
        return list(enumerate(self.models))

    def _average_log_probabilities(self, all_logits: list[Tensor]) -> Tensor:
        sizes = [logits.shape[-1] for logits in all_logits]
        if len(set(sizes)) > 1:
            raise VocabularyError(
                f"the models of an ensemble answer in vocabularies of {sizes} tokens; use models of one tokenizer"
            )
        log_probs = torch.stack([torch.log_softmax(logits.float(), -1) for logits in all_logits])
        if self.average == "probabilities":
            return log_probs.logsumexp(0) - torch.tensor(float(len(all_logits))).log()
        return torch.log_softmax(log_probs.mean(0), -1)
