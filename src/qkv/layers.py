"""The layers of a Transformer: attention, feed-forward, norm, and the block that joins them with residuals.

Each is built from its spec node and does nothing beyond it. Dropout belongs to training, not to the spec: layers start
without it, and `set_dropout` sets the rates of a whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.attention import apply_dropout, attend
from qkv.cache import BlockCache, KeyValueCache, SSRUCache
from qkv.mask import Mask
from qkv.positions import apply_rotary
from qkv.tap import NO_TAP, Tap


class Dropout(nn.Module):
    """A layer that drops elements at `rate` in training (see `attention.apply_dropout`)."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def forward(self, tensor: Tensor) -> Tensor:
        return apply_dropout(tensor, self.rate) if self.training else tensor


def set_dropout(model: nn.Module, rate: float, *, attention: float = 0.0) -> None:
    """Set the dropout rates of each layer's output and of the embedding, and of the attention weights.

    Vaswani et al. 2017, section 5.4: residual dropout.
    """
    for module in model.modules():
        if isinstance(module, Dropout):
            module.rate = rate
        elif isinstance(module, Attention):
            module.dropout = attention


def build_norm(config: spec.Norm, width: int) -> nn.Module:
    """Build a normalisation over the last axis, of size `width`."""
    return nn.LayerNorm(width, eps=config.eps) if config.kind == "layer" else nn.RMSNorm(width, eps=config.eps)


@dataclass(frozen=True)
class AttentionInputs:
    """What a stack computes once for its attentions: masks, positions and biases.

    For a recurrence the mask says which positions (batch, length) are real.
    """

    mask: Mask | Tensor | None = None
    bias: Tensor | None = None
    rotations: tuple[Tensor, Tensor] | None = None


class Attention(nn.Module):
    """Multi-head attention: project, normalise, add positions, cache, attend, project (Vaswani et al. 2017, section
    3.2)."""

    def __init__(self, config: spec.Attention, d_model: int, d_memory: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.kv_heads = config.kv_heads or config.heads
        self.d_value = config.d_value or config.d_key
        d_source = d_memory or d_model
        self.query = nn.Linear(d_model, config.heads * config.d_key, bias=config.bias)
        self.key = nn.Linear(d_source, self.kv_heads * config.d_key, bias=config.bias)
        self.value = nn.Linear(d_source, self.kv_heads * self.d_value, bias=config.bias)
        self.output = nn.Linear(config.heads * self.d_value, d_model, bias=config.bias)
        # across heads, the norm precedes the split; otherwise it applies to each head
        self.norm_across_heads = isinstance(config.qk_norm, spec.AcrossHeads)
        each = config.qk_norm.norm if isinstance(config.qk_norm, spec.AcrossHeads) else config.qk_norm
        query_width, key_width = (config.heads, self.kv_heads) if self.norm_across_heads else (1, 1)
        self.query_norm = build_norm(each, query_width * config.d_key) if each else None
        self.key_norm = build_norm(each, key_width * config.d_key) if each else None
        self.sinks = nn.Parameter(torch.zeros(config.heads)) if config.sinks else None
        self.dropout = 0.0

    def forward(
        self,
        hidden: Tensor,
        inputs: AttentionInputs,
        memory: Tensor | None = None,
        cache: KeyValueCache | None = None,
        tap: Tap = NO_TAP,
    ) -> Tensor:
        """Attend from `hidden` (batch, queries, d_model) to itself, or to `memory` (batch, keys, d_memory).

        With a cache, keys and values of `hidden` are appended to those of the past; those of a memory are computed
        once.
        """
        query = self._normalize(self.query(hidden), self.config.heads, self.query_norm)
        if inputs.rotations is not None:
            query = apply_rotary(query, *inputs.rotations)
        key, value = self.compute_keys_and_values(hidden, memory, inputs, cache)
        context = attend(
            query,
            key,
            value,
            mask=inputs.mask,
            bias=inputs.bias,
            scale=self.config.scale,
            softcap=self.config.softcap,
            sinks=self.sinks,
            dropout=self.dropout if self.training else 0.0,
            tap=tap,
        )
        output: Tensor = self.output(context.transpose(1, 2).flatten(2))
        return tap("output", output)

    def compute_keys_and_values(
        self, hidden: Tensor, memory: Tensor | None, inputs: AttentionInputs, cache: KeyValueCache | None
    ) -> tuple[Tensor, Tensor]:
        """Compute the keys and values of `memory` (batch, keys, d_memory) if given, else of `hidden` and its past.

        Returns (batch, kv_heads, keys, d_key) and (batch, kv_heads, keys, d_value).
        """
        if memory is not None and cache is not None and (kept := cache.get()) is not None:
            return kept
        source = hidden if memory is None else memory
        key = self._normalize(self.key(source), self.kv_heads, self.key_norm)
        value = _split_heads(self.value(source), self.kv_heads)
        if inputs.rotations is not None:
            key = apply_rotary(key, *inputs.rotations)
        return (key, value) if cache is None else cache.append(key, value)

    def _normalize(self, projected: Tensor, heads: int, norm: nn.Module | None) -> Tensor:
        if norm is None or self.norm_across_heads:
            return _split_heads(projected if norm is None else norm(projected), heads)
        # before heads and length are swapped: a norm over contiguous memory is cheaper
        split: Tensor = norm(_split_heads(projected, heads).transpose(1, 2))
        return split.transpose(1, 2)


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """Split (batch, length, heads * d) -> (batch, heads, length, d)."""
    batch, length, width = projected.shape
    return projected.view(batch, length, heads, width // heads).transpose(1, 2)


class SSRU(nn.Module):
    """A recurrent unit in place of self-attention, with one state for each row (Kim et al. 2019, section 3.1)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.forget = nn.Linear(d_model, d_model)

    def forward(
        self,
        hidden: Tensor,
        inputs: AttentionInputs,
        memory: None = None,
        cache: SSRUCache | None = None,
        tap: Tap = NO_TAP,
    ) -> Tensor:
        """Map (batch, length, d_model) to the same shape, from the state of the cache if given. Padding is skipped."""
        forget, value = torch.sigmoid(self.forget(hidden)), self.value(hidden)
        if isinstance(inputs.mask, Tensor):
            forget = forget.masked_fill(~inputs.mask[..., None], 1.0)
        entering = (1 - forget) * value
        state = hidden.new_zeros(hidden.shape[0], hidden.shape[2])
        if cache is not None and cache.state is not None:
            state = cache.state
        states = []
        for kept, more in zip(forget.unbind(dim=1), entering.unbind(dim=1), strict=True):
            state = kept * state + more
            states.append(state)
        if cache is not None:
            cache.state = state
        return tap("output", functional.relu(torch.stack(states, dim=1)))


def _relu_squared(tensor: Tensor) -> Tensor:
    """Square the positive elements and set the others to 0 (So et al. 2021)."""
    positive = functional.relu(tensor)
    return positive * positive


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu_squared": _relu_squared,
    "gelu": functional.gelu,
    "gelu_tanh": lambda tensor: functional.gelu(tensor, approximate="tanh"),
    "gelu_sigmoid": lambda tensor: tensor * torch.sigmoid(1.702 * tensor),
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class FeedForward(nn.Module):
    """A position-wise feed-forward network: up-project, activate, down-project (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, config: spec.FeedForward, d_model: int) -> None:
        super().__init__()
        self.activation, self.limit = ACTIVATIONS[config.activation], config.limit
        self.up_proj = nn.Linear(d_model, config.d_ff, bias=config.bias)
        self.gate = nn.Linear(d_model, config.d_ff, bias=config.bias) if config.gated else None
        self.down_proj = nn.Linear(config.d_ff, d_model, bias=config.bias)

    def forward(self, hidden: Tensor, tap: Tap = NO_TAP) -> Tensor:
        """Map (batch, length, d_model) to the same shape. Gated: the activated gate multiplies the up-projection."""
        if self.gate is None:
            wide = self.activation(self.up_proj(hidden))
        elif self.limit is None:
            wide = self.activation(self.gate(hidden)) * self.up_proj(hidden)
        else:
            bounded = self.up_proj(hidden).clamp(-self.limit, self.limit)
            wide = self.activation(self.gate(hidden).clamp(max=self.limit)) * (bounded + 1)
        narrowed: Tensor = self.down_proj(wide)
        return tap("feed_forward", narrowed)


class Experts(nn.Module):
    """Feed-forward networks, of which each token is routed to a few (Shazeer et al. 2017, section 2)."""

    def __init__(self, config: spec.Experts, d_model: int) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.router = nn.Linear(d_model, config.count)
        self.experts = nn.ModuleList(FeedForward(config.expert, d_model) for _ in range(config.count))

    def forward(self, hidden: Tensor, tap: Tap = NO_TAP) -> Tensor:
        """Map (batch, length, d_model) to the same shape; an expert without tokens computes nothing."""
        scores, numbers = self.router(hidden).topk(self.top_k, dim=-1)
        shares = scores.softmax(dim=-1)
        result = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            taken = numbers == number
            rows = taken.any(dim=-1)
            if rows.any():
                result[rows] += expert(hidden[rows]) * shares[taken][:, None]
        return tap("feed_forward", result)


class Residual(nn.Module):
    """A residual connection, with norms before the sublayer, on its output, or after the sum."""

    def __init__(self, config: spec.Norm, norm_at: str, d_model: int) -> None:
        super().__init__()
        self.before = build_norm(config, d_model) if norm_at in ("pre", "both") else nn.Identity()
        self.after = build_norm(config, d_model) if norm_at in ("both", "result") else nn.Identity()
        self.last = build_norm(config, d_model) if norm_at == "post" else nn.Identity()
        self.dropout = Dropout()

    def add(self, hidden: Tensor, result: Tensor) -> Tensor:
        """Add a sublayer's output, computed from `before(hidden)`, to `hidden`."""
        joined: Tensor = self.last(hidden + self.dropout(self.after(result)))
        return joined


class Block(nn.Module):
    """One layer of a stack (Vaswani et al. 2017, figure 1)."""

    def __init__(self, config: spec.Block, d_model: int, d_memory: int | None) -> None:
        super().__init__()
        self.config = config
        past = config.self_attention
        self.self_attention = SSRU(d_model) if isinstance(past, spec.SSRU) else Attention(past, d_model)
        self.self_attention_residual = Residual(config.norm, config.norm_at, d_model)
        if not config.has_first_norm:
            self.self_attention_residual.before = nn.Identity()
        self.cross_attention: Attention | None = None
        if config.cross_attention is not None:
            self.cross_attention = Attention(config.cross_attention, d_model, d_memory)
            self.cross_attention_residual = Residual(config.norm, config.norm_at, d_model)
        self.feed_forward = (
            FeedForward(config.feed_forward, d_model)
            if isinstance(config.feed_forward, spec.FeedForward)
            else Experts(config.feed_forward, d_model)
        )
        self.feed_forward_residual = Residual(config.norm, config.norm_at, d_model)

    def forward(
        self,
        hidden: Tensor,
        inputs: AttentionInputs,
        memory: Tensor | None = None,
        memory_inputs: AttentionInputs | None = None,
        cache: BlockCache | None = None,
        tap: Tap = NO_TAP,
    ) -> Tensor:
        """Map (batch, length, d_model) to the same shape; memory (batch, sources, d_memory) is for cross-attention."""
        residual, entered = self.self_attention_residual, hidden
        attended = self.self_attention(
            residual.before(hidden), inputs, None, cache and cache.self_attention, tap.at("self_attention")
        )
        hidden = residual.add(hidden, attended)
        if self.cross_attention is not None:
            assert memory is not None and memory_inputs is not None
            residual = self.cross_attention_residual
            attended = self.cross_attention(
                residual.before(hidden),
                memory_inputs,
                memory,
                cache and cache.cross_attention,
                tap.at("cross_attention"),
            )
            hidden = residual.add(hidden, attended)
        residual = self.feed_forward_residual
        read = residual.before(entered if self.config.parallel else hidden)
        hidden = residual.add(hidden, self.feed_forward(read, tap))
        return tap("residual", hidden)
