"""Heads: a score for each token or label, a class, a vector, actions, or the hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv import spec
from qkv.attention import attend_with_weights
from qkv.cache import Memory
from qkv.layers import ACTIVATIONS, build_norm
from qkv.tap import NO_TAP, Tap


class Dense(nn.Module):
    """A linear layer with an optional activation and norm before the head itself."""

    def __init__(self, config: spec.Dense, d_model: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model, width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation] if config.activation else nn.Identity()
        self.norm = build_norm(config.norm, width) if config.norm else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the layer: (..., d_model) -> (..., width)."""
        result: Tensor = self.norm(self.activation(self.linear(hidden)))
        return result


class VocabularyHead(nn.Module):
    """Logits from a product of the hidden states and an output matrix, which is that of the embedding if tied."""

    def __init__(self, config: spec.Vocabulary, d_model: int, embedding: nn.Embedding) -> None:
        super().__init__()
        width = embedding.embedding_dim if config.tied or config.dense else d_model
        self.tied, self.softcap, self.scale = config.tied, config.softcap, config.scale
        self.dense = Dense(config.dense, d_model, width) if config.dense else nn.Identity()
        vocab = embedding.num_embeddings
        self.weight = embedding.weight if config.tied else nn.Parameter(torch.empty(vocab, width))
        self.bias = nn.Parameter(torch.zeros(vocab)) if config.bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute logits: (batch, length, d_model) -> (batch, length, vocab)."""
        hidden = self.dense(hidden)
        if self.scale is not None:
            hidden = hidden * self.scale
        logits = functional.linear(hidden, self.weight, self.bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class PointerGeneratorHead(nn.Module):
    """The probability that each token of the vocabulary is generated or copied (See et al. 2017, eqs. 8 and 9).

    p(w) = p_gen * softmax(logits)(w) + (1 - p_gen) * the sum of the weights of all positions of w in the source
    p_gen = sigmoid(linear(context, state)); the decoder's input, the third term of eq. 8, is part of the residual that
    the state is computed from.
    """

    attention_places = ("cross_attention",)  # places for a tap that are not modules

    def __init__(self, config: spec.PointerGenerator, d_model: int, d_memory: int, embedding: nn.Embedding) -> None:
        super().__init__()
        self.vocabulary = VocabularyHead(config.vocabulary, d_model, embedding)
        self.query = nn.Linear(d_model, config.d_key)
        self.key = nn.Linear(d_memory, config.d_key)
        self.gate = nn.Linear(d_memory + d_model, 1)

    def compute_keys(self, states: Tensor) -> Tensor:
        """Compute the copy attention's keys of a source: (batch, sources, d_memory) -> (batch, 1, sources, d_key)."""
        keys: Tensor = self.key(states)
        return keys.unsqueeze(1)

    def forward(self, hidden: Tensor, memory: Memory, tap: Tap = NO_TAP) -> Tensor:
        """Compute log-probabilities (batch, length, vocab) from hidden (batch, length, d_model) and a memory with
        tokens and key.

        They serve as logits, since their softmax returns the probabilities.
        """
        assert memory.tokens is not None and memory.key is not None
        mask = None if memory.mask is None else memory.mask[:, None, None, :]
        context, weights = attend_with_weights(
            self.query(hidden).unsqueeze(1),
            memory.key,
            memory.states.unsqueeze(1),
            mask=mask,
            tap=tap.at("cross_attention"),
        )
        gate = self.gate(torch.cat((context.squeeze(1), hidden), dim=-1)).float()
        generated = self.vocabulary(hidden).float().softmax(dim=-1) * torch.sigmoid(gate)
        copied = weights.squeeze(1).float() * torch.sigmoid(-gate)
        places = memory.tokens[:, None, :].expand_as(copied)
        whole: Tensor = generated.scatter_add(-1, places, copied)
        return whole.clamp(min=torch.finfo(whole.dtype).tiny).log()


class LabelsHead(nn.Module):
    """Scores of labels at each position."""

    def __init__(self, config: spec.Labels, d_model: int) -> None:
        super().__init__()
        self.dense = Dense(config.dense, d_model, d_model) if config.dense else nn.Identity()
        self.linear = nn.Linear(d_model, config.count)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute logits: (batch, length, d_model) -> (batch, length, count)."""
        logits: Tensor = self.linear(self.dense(hidden))
        return logits


class ClassesHead(nn.Module):
    """Scores of classes for the whole input."""

    def __init__(self, config: spec.Classes, d_model: int, num_prefix_tokens: int = 0) -> None:
        super().__init__()
        self.pool: spec.Pool = config.pool
        self.num_prefix_tokens = num_prefix_tokens
        self.dense = Dense(config.dense, d_model, d_model) if config.dense else nn.Identity()
        self.linear = nn.Linear(d_model, config.count)
        self.second_pool: spec.Pool | None = config.second_pool
        self.second = nn.Linear(d_model, config.count) if config.second_pool else None

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute logits (batch, count) from hidden (batch, length, d_model) and mask (batch, length) bool."""
        logits: Tensor = self.linear(self.dense(pool_hidden(hidden, mask, self.pool, self.num_prefix_tokens)))
        if self.second is None or self.second_pool is None:
            return logits
        second: Tensor = self.second(pool_hidden(hidden, mask, self.second_pool, self.num_prefix_tokens))
        return logits + second


class VectorHead(nn.Module):
    """One vector for the whole input."""

    def __init__(self, config: spec.Vector, d_model: int, num_prefix_tokens: int = 0) -> None:
        super().__init__()
        self.pool: spec.Pool = config.pool
        self.num_prefix_tokens = num_prefix_tokens
        self.normalized = config.normalized
        self.linear = nn.Linear(d_model, config.width, bias=False) if config.width else nn.Identity()

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute vectors (batch, width) from hidden (batch, length, d_model) and mask (batch, length) bool."""
        vector: Tensor = self.linear(pool_hidden(hidden, mask, self.pool, self.num_prefix_tokens))
        return functional.normalize(vector, dim=-1) if self.normalized else vector


class ActionsHead(nn.Module):
    """The actions of an agent, and predictions of its returns and states."""

    def __init__(self, config: spec.Actions, d_model: int, input_config: spec.Trajectory) -> None:
        super().__init__()
        self.bounded, self.positions_per_step = config.bounded, input_config.positions_per_step
        self.returns = nn.Linear(d_model, 1)
        self.state = nn.Linear(d_model, input_config.state_dim)
        self.action = nn.Linear(d_model, input_config.action_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, 3 * steps, d_model), or 2 * steps without returns, to (batch, steps, 1 + state + action).

        These are the predicted return and state after each step and the action in it, in the order of the input.
        """
        *_, state, action = hidden.reshape(hidden.shape[0], -1, self.positions_per_step, hidden.shape[-1]).unbind(dim=2)
        chosen = self.action(state)
        chosen = torch.tanh(chosen) if self.bounded else chosen
        return torch.cat((self.returns(action), self.state(action), chosen), dim=-1)


class StatesHead(nn.Module):
    """The hidden states themselves."""

    def __init__(self, config: spec.States, d_model: int) -> None:
        super().__init__()

    def forward(self, hidden: Tensor) -> Tensor:
        """Return hidden (batch, length, d_model) unchanged."""
        return hidden


def pool_hidden(hidden: Tensor, mask: Tensor | None, pool: spec.Pool, num_prefix_tokens: int = 0) -> Tensor:
    """Pool hidden (batch, length, d_model) to one vector for each row, (batch, d_model).

    mask (batch, length): which positions are real. The mean leaves out the first `num_prefix_tokens` positions, which
    are
    learned vectors rather than input.
    """
    if pool in ("first", "second"):
        return hidden[:, 0 if pool == "first" else 1]
    if pool == "mean":
        hidden, mask = hidden[:, num_prefix_tokens:], None if mask is None else mask[:, num_prefix_tokens:]
    if mask is None:
        return hidden[:, -1] if pool == "last" else hidden.mean(dim=1)
    if pool == "last":
        places = torch.arange(hidden.shape[1], device=hidden.device)
        last = (mask * places).argmax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    real = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
