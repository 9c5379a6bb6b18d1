"""Attributions: what each part of a model adds to a prediction, and which tokens the prediction depends on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkv.errors import QkvError
from qkv.lens.interventions import Compose
from qkv.lens.recorder import Recorder
from qkv.lens.trace import AttentionTrace, Trace
from qkv.lens.tracing import build_trace, find_submodule
from qkv.models import SequenceModel
from qkv.models.transformer import Stack, Transformer
from qkv.outputs import VocabularyHead
from qkv.tap import Site, Tap


def logit_lens(model: SequenceModel, trace: Trace) -> Tensor:
    """Return the predictions after each block: the final norm and the head, applied to the residual early.

    Returns (blocks + 1, batch, length, vocab), the embedding first (nostalgebraist 2020, "the logit lens"). Raises
    QkvError for a model that is not a Transformer with a vocabulary head.
    """
    name, stack, _ = _find_output_stack(model)
    residuals = [trace.tensor(name, "embedding")]
    residuals += [trace.tensor(f"{name}.{number}", "residual") for number in range(stack.depth)]
    with torch.no_grad():
        return torch.stack([model.head(stack.final_norm(hidden)) for hidden in residuals])  # type: ignore[operator]


def direct_logit_attribution(model: SequenceModel, trace: Trace, position: int, row: int = 0) -> dict[str, Tensor]:
    """Return what each part of a model adds to the logits at a position: {part: (vocab,)}.

    Parts are "embedding", each head ("decoder.3.self_attention.1"), each feed-forward layer, and "biases", the rest.
    They sum to the logits (before their softcap, if they have one), because every norm is applied with the scale that
    it
    had and is then linear (Elhage et al. 2021, "Logit attribution"). Raises QkvError as `logit_lens` does, and for a
    head
    that is not linear.
    """
    name, stack, answer = _find_output_stack(model)
    if not isinstance(answer.dense, nn.Identity):
        raise QkvError(
            "this model's head has an additional layer, which is not linear: its logits cannot be decomposed"
        )
    with torch.no_grad():
        parts = {"embedding": trace.tensor(name, "embedding")[row, position]}
        parts["biases"] = torch.zeros_like(parts["embedding"])
        for number in range(stack.depth):
            _add_block(parts, stack.blocks[number % len(stack.blocks)], trace, f"{name}.{number}", position, row)
        _apply_norm(parts, stack.final_norm)
        scale = 1.0 if answer.scale is None else answer.scale
        logits = {part: scale * (answer.weight @ hidden) for part, hidden in parts.items()}
        if answer.bias is not None:
            logits["biases"] = logits["biases"] + answer.bias
    return logits


def attention_rollout(trace: Trace, stack: str = "encoder") -> Tensor:
    """Compute how much of each input token is in each position after the last block, (batch, positions, tokens).

    The weights of each block's heads are averaged and mixed half and half with the residual; the blocks are multiplied
    (Abnar & Zuidema 2020, section 3). Raises QkvError if the stack has no self-attention.
    """
    own = [one for one in trace if one.place.startswith(f"{stack}.") and one.place.endswith(".self_attention")]
    if not own:
        raise QkvError(f"no self-attention of stack={stack!r} is in this trace; it has: {', '.join(trace.attentions)}")
    flowing: Tensor | None = None
    for attention in own:
        weights = attention.compute_weights().mean(dim=1)
        with_residual = 0.5 * weights + 0.5 * torch.eye(weights.shape[-1], device=weights.device)
        with_residual = with_residual / with_residual.sum(dim=-1, keepdim=True)
        flowing = with_residual if flowing is None else with_residual @ flowing
    assert flowing is not None
    return flowing


def value_zeroing(
    model: SequenceModel, place: str, source: Tensor | None = None, target: Tensor | None = None, batch_size: int = 64
) -> Tensor:
    """Measure how far each position of a block's output rotates when one value of its attention is set to 0.

    Returns (positions, keys): 1 - cosine similarity, each row divided by its sum (Mohebbi et al. 2023, section 3).
    source, target: one sequence, (1, length). Runs one forward pass of `rows` rows for that many keys.
    """

    def results(tap: Tap, count: int) -> tuple[Tensor, Trace]:
        recorder = Recorder(tap)
        given = [None if one is None else one.expand(count, *one.shape[1:]) for one in (source, target)]
        with torch.no_grad():
            model(*given, tap=recorder)
        trace = build_trace(recorder, model)
        return trace.tensor(place.rpartition(".")[0], "residual"), trace

    before, trace = results(Tap(), 1)
    columns = []
    keys = trace[place].keys
    for begin in range(0, keys, batch_size):
        numbers = list(range(begin, min(begin + batch_size, keys)))
        after, _ = results(_ZeroValues(place, numbers), len(numbers))
        columns.append(1 - torch.cosine_similarity(after, before.expand_as(after), dim=-1))
    turned = torch.cat(columns).T.clamp(min=0)
    return turned / turned.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(turned.dtype).tiny)


class _ZeroValues(Tap):
    """A tap that sets the value of a different key to 0 in each row of a batch."""

    def __init__(self, target: str, keys: list[int], place: str = "") -> None:
        self._target, self._keys, self._place = target, keys, place

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        if site != "value" or self._place != self._target:
            return tensor
        changed = tensor.clone()
        changed[range(len(self._keys)), :, self._keys] = 0.0
        return changed

    def at(self, place: str) -> _ZeroValues:
        return _ZeroValues(self._target, self._keys, f"{self._place}.{place}" if self._place else place)


def gradient_times_weight(
    model: SequenceModel,
    source: Tensor | None,
    target: Tensor | None,
    position: int,
    token: int,
    inner: Tap | None = None,
) -> dict[str, Tensor]:
    """Compute weight * d logit / d weight for one logit, by attention: {place: (batch, heads, queries, keys)}.

    This is the first-order effect of the weight on the logit of `token` at `position`. It uses the explicit
    implementation, since only there are weights that have gradients. In a recurrent decoder, which attends once per
    position, the queries of all positions are concatenated.
    """
    keeper = _WeightsTap({})
    with torch.enable_grad():
        logits = model(source, target, tap=keeper if inner is None else Compose(inner, keeper))
        all_weights = [weights for calls in keeper.by_place.values() for weights in calls]
        gradients = torch.autograd.grad(logits[:, position, token].sum(), all_weights, allow_unused=True)
    products = iter(
        torch.zeros_like(weights) if gradient is None else (weights * gradient).detach()
        for weights, gradient in zip(all_weights, gradients, strict=True)
    )
    return {place: torch.cat([next(products) for _ in calls], dim=2) for place, calls in keeper.by_place.items()}


class _WeightsTap(Tap):
    """A tap that keeps the weights of every attention as tensors with gradients."""

    def __init__(self, by_place: dict[str, list[Tensor]], place: str = "") -> None:
        self.by_place, self._place = by_place, place

    def replaces(self, site: Site) -> bool:
        return site == "weights"

    def __call__(self, site: Site, tensor: Tensor) -> Tensor:
        if site == "weights":
            tensor = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            self.by_place.setdefault(self._place, []).append(tensor)
        return tensor

    def at(self, place: str) -> _WeightsTap:
        return _WeightsTap(self.by_place, f"{self._place}.{place}" if self._place else place)


def _find_output_stack(model: SequenceModel) -> tuple[str, Stack, VocabularyHead]:
    """Return the name and the stack that a Transformer's output comes from, and its head."""
    if not isinstance(model, Transformer) or not isinstance(model.head, VocabularyHead):
        raise QkvError("this needs logits of a residual; expected a Transformer with a plain vocabulary head")
    name, stack = ("decoder", model.decoder) if model.decoder is not None else ("encoder", model.encoder)
    assert stack is not None
    return name, stack, model.head


def _add_block(parts: dict[str, Tensor], block: nn.Module, trace: Trace, place: str, position: int, row: int) -> None:
    """Add to `parts`, which sum to the residual, what one block writes, norm by norm."""
    for name in ("self_attention", "cross_attention", "feed_forward"):
        residual = getattr(block, f"{name}_residual", None)
        if residual is None:
            continue
        at, site = (place, "feed_forward") if name == "feed_forward" else (f"{place}.{name}", "output")
        whole = trace.tensor(at, site)[row, position]
        if at in trace.attentions:
            own = _get_head_outputs(trace[at], position, row)
            own["biases"] = whole - torch.stack(list(own.values())).sum(dim=0)
            bias = getattr(getattr(find_submodule(block, name), "output", None), "bias", None)
            _check_sum(own["biases"], torch.zeros_like(whole) if bias is None else bias, f"the heads of {at}")
        else:
            own = {f"{place}.{name}": whole}
        _apply_norm(own, residual.after)
        for part, hidden in own.items():
            parts[part] = parts[part] + hidden if part in parts else hidden
        _apply_norm(parts, residual.last)
    _check_sum(_sum(parts), trace.tensor(place, "residual")[row, position], f"the parts of {place}")


def _get_head_outputs(attention: AttentionTrace, position: int, row: int) -> dict[str, Tensor]:
    return {f"{attention.place}.{head}": attention.output(head, [position])[row, 0] for head in range(attention.heads)}


def _apply_norm(parts: dict[str, Tensor], norm: nn.Module) -> None:
    """Apply a norm to parts in place, with the scale that it has for their sum; its bias is counted as a bias."""
    if isinstance(norm, nn.Identity):
        return
    if not isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        raise QkvError(f"a norm of type {type(norm).__name__} cannot be decomposed; expected LayerNorm or RMSNorm")
    whole = _sum(parts)
    centred = isinstance(norm, nn.LayerNorm)
    eps = torch.finfo(whole.dtype).eps if norm.eps is None else norm.eps
    spread = (whole - whole.mean() if centred else whole).square().mean()
    factor = torch.rsqrt(spread + eps) * norm.weight
    for part, hidden in parts.items():
        parts[part] = (hidden - hidden.mean() if centred else hidden) * factor
    if isinstance(norm, nn.LayerNorm) and norm.bias is not None:
        parts["biases"] = parts.get("biases", torch.zeros_like(whole)) + norm.bias


def _sum(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum(dim=0)


def _check_sum(total: Tensor, expected: Tensor, what: str) -> None:
    """Raise QkvError if a decomposition does not add up, as after an intervention or with an unsupported block."""
    if not torch.allclose(total, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max().clamp(min=1.0))):
        difference = float((total - expected).abs().max())
        raise QkvError(
            f"{what} do not add up to the recorded values (they differ by {difference:.2g}); look at the model in "
            "evaluation mode, without a tap that changes outputs or residuals"
        )
