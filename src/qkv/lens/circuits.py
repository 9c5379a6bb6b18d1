"""Circuits: what the parameters of a head say without any input (Elhage et al. 2021).

A head has a query-key circuit, W_Q^T W_K (which tokens it attends to), and an output-value circuit, W_V W_O (what it
then moves). Both are d_model x d_model of rank d_key or d_value, and on tokens vocab x vocab of the same rank: a
`LowRankMatrix` keeps the two factors. Norms, positions and biases of projections are not part of a circuit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qkv import layers
from qkv.errors import QkvError
from qkv.lens.tracing import find_submodule
from qkv.models import SequenceModel
from qkv.models.transformer import Transformer
from qkv.outputs import VocabularyHead


@dataclass(frozen=True)
class LowRankMatrix:
    """The matrix left @ right, which is never built: left (rows, rank), right (rank, columns)."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def T(self) -> LowRankMatrix:
        """The transpose."""
        return LowRankMatrix(self.right.T, self.left.T)

    def __matmul__(self, other: LowRankMatrix) -> LowRankMatrix:
        """Multiply two matrices; the product has the smaller rank."""
        inner = self.right @ other.left
        if self.left.shape[1] <= other.right.shape[0]:
            return LowRankMatrix(self.left, inner @ other.right)
        return LowRankMatrix(self.left @ inner, other.right)

    def get_rows(self, index: Tensor) -> Tensor:
        """Return some rows of the matrix, (index, columns)."""
        return self.left[index] @ self.right

    def norm(self) -> float:
        """Return the Frobenius norm."""
        squared = ((self.left.T @ self.left) * (self.right @ self.right.T)).sum()
        return float(squared.clamp(min=0).sqrt())

    def singular_values(self) -> Tensor:
        """Return the singular values within the rank, in descending order: (rank,)."""
        left, right = torch.linalg.qr(self.left).R, torch.linalg.qr(self.right.T).R
        values: Tensor = torch.linalg.svdvals(left @ right.T)
        return values

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of a square matrix within the rank, complex, in no order: (rank,)."""
        values: Tensor = torch.linalg.eigvals(self.right @ self.left)
        return values


def qk_circuit(model: SequenceModel, place: str, head: int) -> LowRankMatrix:
    """Return the query-key circuit: x @ W_Q^T W_K @ y^T is the score of a query at x and a key at y, before scaling."""
    attention = _get_attention(model, place, head)
    d_key, group = attention.config.d_key, attention.config.heads // attention.kv_heads
    query = attention.query.weight.detach()[head * d_key : (head + 1) * d_key]
    key = attention.key.weight.detach()[head // group * d_key : (head // group + 1) * d_key]
    return LowRankMatrix(query.T, key)


def ov_circuit(model: SequenceModel, place: str, head: int) -> LowRankMatrix:
    """Return the output-value circuit: y @ W_V W_O is what a query that attends only to y adds to its residual."""
    attention = _get_attention(model, place, head)
    d_value, group = attention.d_value, attention.config.heads // attention.kv_heads
    value = attention.value.weight.detach()[head // group * d_value : (head // group + 1) * d_value]
    output = attention.output.weight.detach()[:, head * d_value : (head + 1) * d_value]
    return LowRankMatrix(value.T, output.T)


def token_circuit(
    model: SequenceModel, place: str, head: int, circuit: Literal["query_key", "output_value"]
) -> LowRankMatrix:
    """Return a circuit from token to token, (vocab, vocab), for a decoder that reads and predicts tokens.

    query_key: rows are tokens of queries, columns tokens of keys. output_value: rows are tokens of keys, columns the
    tokens
    whose logits change. Raises QkvError for other models.
    """
    if not isinstance(model, Transformer) or model.decoder is None or not isinstance(model.head, VocabularyHead):
        raise QkvError(
            "this model has no decoder of tokens, so it has no circuits from token to token; give one that has"
        )
    tokens = getattr(model.decoder.embedding, "tokens", None)
    read = None if tokens is None else tokens.weight.detach()
    answered = model.head.weight.detach()
    if read is None or answered.shape[1] != model.decoder.config.d_model or read.shape[1] != answered.shape[1]:
        raise QkvError("this model projects its embeddings or its outputs, which is not part of a linear circuit")
    if circuit == "query_key":
        found = qk_circuit(model, place, head)
        return LowRankMatrix(read @ found.left, found.right @ read.T)
    found = ov_circuit(model, place, head)
    return LowRankMatrix(read @ found.left, found.right @ answered.T)


def copying_score(model: SequenceModel, place: str, head: int) -> float:
    """Measure how far a head predicts the token that it attends to, -1 to 1: the sum of the eigenvalues of its output-
    value
    circuit divided by the sum of their absolute values (Elhage et al. 2021, "Summarizing OV/QK Matrices").
    """
    values = token_circuit(model, place, head, "output_value").eigenvalues()
    size = float(values.abs().sum())
    return float(values.real.sum()) / size if size else 0.0


def composition_scores(model: SequenceModel, first: tuple[str, int], second: tuple[str, int]) -> dict[str, float]:
    """Measure how much the second head reads of what the first writes, through its "query", "key" and "value".

    Each score is the norm of the product divided by the product of the norms, 0 to 1; random matrices have about
    1.0 / sqrt(d_model) (Elhage et al. 2021, "Composition").
    """
    writes = ov_circuit(model, *first)
    asks, moves = qk_circuit(model, *second), ov_circuit(model, *second)
    found = {}
    for name, reads in (("query", asks), ("key", asks.T), ("value", moves)):
        size = writes.norm() * reads.norm()
        found[name] = (writes @ reads).norm() / size if size else 0.0
    return found


def _get_attention(model: SequenceModel, place: str, head: int) -> layers.Attention:
    found = find_submodule(model, place)
    if not isinstance(found, layers.Attention):
        raise QkvError(f"{place!r} was given; expected an attention of this model, such as 'decoder.0.self_attention'")
    if not 0 <= head < found.config.heads:
        raise QkvError(f"{place}: head={head} was given; it has heads 0 to {found.config.heads - 1}")
    return found
