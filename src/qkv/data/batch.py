"""Examples side by side: what the model reads, what it is given and what it should answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORE_INDEX = -100
"""The label of a padded position: the loss leaves it out."""

Ids = Sequence[int] | npt.NDArray[np.integer]
Example = tuple[Ids | None, Ids]


class SupportsSpecialTokens(Protocol):
    """The three token numbers that a batch needs of a tokenizer."""

    @property
    def pad(self) -> int: ...
    @property
    def bos(self) -> int: ...
    @property
    def eos(self) -> int: ...


@dataclass(frozen=True)
class Batch:
    """Some examples, padded to the same length.

    source (batch, sources) int64 = x1..xm </s>, or what else an encoder reads, such as images (batch, channels, height,
    width) float; None for a model that reads no source
    source_mask (batch, sources) bool, True = a real token
    target (batch, targets) int64 = <s> y1..yn, what the decoder is given; None for an encoder alone
    labels (batch, targets) int64 = y1..yn </s>, what it should answer; IGNORE where padded. Of an encoder that answers
    with a class (batch,) int64, or (batch, classes) float, the share of each class
    index (batch,) int64, the numbers of the examples
    documents (batch, targets) int64, which text of its row a target belongs to; None where each row is one text
    """

    source: Tensor | None
    source_mask: Tensor | None
    target: Tensor | None
    labels: Tensor
    index: Tensor
    documents: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def target_tokens(self) -> int:
        """How many labels count in the loss."""
        return len(self.labels) if self.labels.is_floating_point() else int((self.labels != IGNORE_INDEX).sum())

    @property
    def label_positions(self) -> int:
        """How many places there are for labels, padded ones included."""
        return len(self.labels) if self.labels.is_floating_point() else self.labels.numel()

    @property
    def source_tokens(self) -> int:
        """How many source tokens are real."""
        return 0 if self.source_mask is None else int(self.source_mask.sum())

    @property
    def padded_tokens(self) -> int:
        """How many tokens there are in all, padding included: the cost that a budget counts."""
        return sum(tensor.numel() for tensor in (self.source, self.target) if tensor is not None)

    def to(self, device: torch.device | str) -> Batch:
        """Give the same batch on a device."""
        tensors = ((field.name, getattr(self, field.name)) for field in fields(self))
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors if tensor is not None})


def collate(
    examples: Sequence[Example],
    source_tokenizer: SupportsSpecialTokens | None,
    target_tokenizer: SupportsSpecialTokens,
    index: Sequence[int] | None = None,
) -> Batch:
    """Collate examples into one batch. index: the numbers of the examples, 0, 1, 2 ... by default.

    An example is (source ids, target ids) without special tokens; the source is None in all of them or in none.
    """
    numbers = torch.as_tensor(list(range(len(examples)) if index is None else index), dtype=torch.int64)
    sources = [source for source, _ in examples if source is not None]
    targets = [np.asarray(target, dtype=np.int64) for _, target in examples]
    target, real = _pad(targets, target_tokenizer.pad, prefix=[target_tokenizer.bos])
    labels, _ = _pad(targets, IGNORE_INDEX, suffix=[target_tokenizer.eos])
    if source_tokenizer is None or not sources:
        return Batch(None, None, target, labels, numbers)
    source, mask = collate_sources(sources, source_tokenizer)
    return Batch(source, mask, target, labels, numbers)


def collate_decoder_only(
    examples: Sequence[tuple[Ids, Ids]], tokenizer: SupportsSpecialTokens, index: Sequence[int] | None = None
) -> Batch:
    """Lay pairs side by side for a decoder alone, <s> x1..xm <s> y1..yn, of which y1..yn </s> are to be answered.

    `index` as in `collate`. Decoding begins with the same: the source, and the <s> that begins its answer.
    """
    numbers = torch.as_tensor(list(range(len(examples)) if index is None else index), dtype=torch.int64)
    bos, eos = tokenizer.bos, tokenizer.eos
    given = [np.array([bos, *source, bos, *target], dtype=np.int64) for source, target in examples]
    labels_rows = [
        np.array([*[IGNORE_INDEX] * (len(source) + 1), *target, eos], dtype=np.int64) for source, target in examples
    ]
    return Batch(None, None, _pad(given, tokenizer.pad)[0], _pad(labels_rows, IGNORE_INDEX)[0], numbers)


def collate_sources(sources: Sequence[Ids], tokenizer: SupportsSpecialTokens) -> tuple[Tensor, Tensor]:
    """Lay sources side by side, each with eos: (source (batch, sources) int64, source_mask bool, True = real token).

    Training and decoding both come through here, so that a model reads the same in both; an empty line is one eos.
    """
    return _pad([np.asarray(source, dtype=np.int64) for source in sources], tokenizer.pad, suffix=[tokenizer.eos])


def _pad(
    rows: Sequence[npt.NDArray[np.int64]], pad_value: int, prefix: Sequence[int] = (), suffix: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    added = len(prefix) + len(suffix)
    lengths = np.array([len(row) + added for row in rows], dtype=np.int64)
    real = np.arange(lengths.max(initial=0)) < lengths[:, None]
    table = np.full(real.shape, pad_value, dtype=np.int64)
    pieces = [piece for row in rows for piece in (prefix, row, suffix) if len(piece)]
    if pieces:
        table[real] = np.concatenate(pieces)
    return torch.from_numpy(table), torch.from_numpy(real)
