"""Dual encoders, whose vectors are compared, as in CLIP (Radford et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.cache import Memory
from qkv.errors import DataError, SpecError
from qkv.models.protocol import SequenceModel, State
from qkv.models.transformer import Transformer
from qkv.tap import NO_TAP, Tap


class DualEncoder(SequenceModel):
    """The model of a `spec.DualEncoder`: `source` and `target` map each input to one vector of length 1."""

    def __init__(self, config: spec.DualEncoder) -> None:
        super().__init__()
        self.spec = config
        self.source = Transformer(config.source)
        self.target = Transformer(config.target)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw new parameters from torch's generator; the factor starts at 1 / 0.07 (section 2.5)."""
        self.source.init_weights()
        self.target.init_weights()
        nn.init.constant_(self.logit_scale, -math.log(0.07))

    def encode(self, source: Tensor, source_mask: Tensor | None = None, tap: Tap = NO_TAP) -> Memory | None:
        raise SpecError("a dual encoder predicts no sequence; call the model, or its source or target")

    def start(self, memory: Memory | None, rows: int) -> State:
        raise SpecError("a dual encoder predicts no sequence; call the model, or its source or target")

    def step(self, tokens: Tensor, state: State, tap: Tap = NO_TAP) -> tuple[Tensor, State]:
        raise SpecError("a dual encoder predicts no sequence; call the model, or its source or target")

    def forward(
        self,
        source: Tensor | None = None,
        target: Tensor | None = None,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        tap: Tap = NO_TAP,
    ) -> Tensor:
        """Score every source against every target, such as images against texts -> logits (sources, targets)."""
        if source is None or target is None:
            given = "no source" if source is None else "no target"
            raise DataError(f"{given} was given; a dual encoder compares both: pass source= and target=")
        left = self.source(source, source_mask=source_mask, tap=tap.at("source"))
        right = self.target(target, source_mask=target_mask, tap=tap.at("target"))
        return tap("logits", self.compute_logits(left, right))

    def compute_logits(self, source: Tensor, target: Tensor) -> Tensor:
        """Compare vectors of sources (sources, width) with those of targets (targets, width) -> logits (sources,
        targets).
        """
        return self.logit_scale.exp() * source @ target.T
