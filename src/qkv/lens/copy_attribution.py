"""Attribution of the tokens that a model copies from its source (See et al. 2017, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qkv.errors import QkvError
from qkv.lens.trace import Trace
from qkv.models import SequenceModel
from qkv.models.transformer import Transformer
from qkv.outputs import PointerGeneratorHead

COPY_ATTENTION_PLACE = "head.cross_attention"


@dataclass(frozen=True)
class CopyAttribution:
    """The origin of one output token.

    position: of the token in the target, whose begin token is 0. generated: p_gen, the probability of generating from
    the
    vocabulary. copied: the share of the token's probability that comes from the source. source: among the source
    positions
    with this token, the one with the largest weight; None if there is none.
    """

    position: int
    token: int
    generation_probability: float
    copied_share: float
    source_position: int | None


@torch.no_grad()
def attribute_copies(model: SequenceModel, trace: Trace, row: int = 0) -> list[CopyAttribution]:
    """Return for every token after the begin token whether it was generated or copied, and from where.

    The trace teacher-forces the target, as `look` makes it. Raises QkvError for a model that does not copy.
    """
    if not isinstance(model, Transformer) or not isinstance(model.head, PointerGeneratorHead):
        raise QkvError("this model does not copy; expected one whose head is a PointerGenerator")
    if trace.source is None or trace.target is None or trace.logits is None or model.decoder is None:
        raise QkvError("this trace lacks source, target or logits; expected lens.look(model, source, target)")
    attention = trace[COPY_ATTENTION_PLACE]
    hidden = model.decoder.final_norm(trace.tensor(f"decoder.{model.decoder.depth - 1}", "residual"))[row]
    gates = model.head.gate(torch.cat((attention.context[row, 0], hidden), dim=-1))[:, 0].sigmoid().tolist()
    weights, source = attention.compute_weights(0)[row], trace.source[row]
    probabilities = trace.logits[row].float().softmax(dim=-1)
    found = []
    for position, token in enumerate(trace.target[row, 1:].tolist()):
        own = weights[position].masked_fill(source != token, 0.0)
        given = (1 - gates[position]) * float(own.sum())
        share = given / max(float(probabilities[position, token]), given, 1e-30)
        place = int(own.argmax()) if share > 0 else None
        found.append(CopyAttribution(position + 1, token, gates[position], share, place))
    return found
