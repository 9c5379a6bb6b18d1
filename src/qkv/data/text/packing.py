"""Texts of any length as batches without padding: windows over one endless ring of tokens.

All documents form a ring, each ended by eos. The input at a position is the token before it, or bos where a document
begins, and the label is the token itself. A query does not attend to another document.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from qkv.data.batch import IGNORE_INDEX, Batch, SupportsSpecialTokens
from qkv.data.cleaning import SupportsEncode
from qkv.data.sampler import check_resumable
from qkv.data.store import TokenStore, TokenStoreWriter
from qkv.errors import DataError

_CHUNK_CHARACTERS = 2**22


class PackingTokenizer(SupportsEncode, SupportsSpecialTokens, Protocol):
    """What packing needs of a tokenizer."""


def tokenize_documents(texts: Iterable[str], cache_key: str, tokenizer: PackingTokenizer, cache: Path) -> TokenStore:
    """Turn texts into a store below `cache`, each ended by eos; the one made before of the same key and tokenizer."""
    folder = cache / f"texts-{cache_key}-{tokenizer.digest[:16]}"
    if folder.exists():
        return TokenStore.open(folder)
    with TokenStoreWriter(folder, False, tokenizer.size) as writer:
        for some in _chunks(texts):
            writer.add(None, [[*ids, tokenizer.eos] for ids in tokenizer.encode_batch(some)])
        return writer.save()


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    some: list[str] = []
    for text in texts:
        some.append(text)
        if sum(map(len, some)) >= _CHUNK_CHARACTERS:
            yield some
            some = []
    if some:
        yield some


class TokenWindows:
    """The ring of a store, cut into windows of `context` tokens in each epoch; DataError if there is no token.

    Windows are numbered through all epochs: number n is window n % count of epoch n // count. Each epoch begins at
    another position of the ring, which depends only on (seed, epoch), and covers the ring once: where the last
    window would overlap the first, it begins earlier, and tokens that it repeats have no labels.
    """

    def __init__(self, store: TokenStore, context: int, special: SupportsSpecialTokens, seed: int = 0) -> None:
        self._ids = store.ids
        if not len(self._ids):
            raise DataError("there are no tokens to make windows of; give at least one text")
        self._special, self._seed = special, seed
        self.context = min(context, len(self._ids))

    @property
    def count(self) -> int:
        """How many windows make an epoch."""
        return -(-len(self._ids) // self.context)

    @functools.cached_property
    def fingerprint(self) -> int:
        """A number that other tokens or another context would not have."""
        return zlib.crc32(np.ascontiguousarray(self._ids).tobytes(), self.context)

    def collate(self, indices: Sequence[int]) -> Batch:
        """Lay windows side by side."""
        size = len(self._ids)
        targets = np.empty((len(indices), self.context), dtype=np.int64)
        labels = np.empty_like(targets)
        for row, number in enumerate(indices):
            epoch, window = divmod(number, self.count)
            begin = min(window * self.context, size - self.context)
            start = (self._offset(epoch) + begin) % size
            piece = self._slice((start - 1) % size, self.context + 1)
            targets[row] = np.where(piece[:-1] == self._special.eos, self._special.bos, piece[:-1])
            labels[row] = piece[1:]
            labels[row, : window * self.context - begin] = IGNORE_INDEX
        begins = targets == self._special.bos
        several = begins[:, 1:].any()  # a window that begins with a document holds no other before it
        documents = torch.from_numpy(begins.cumsum(axis=1)) if several else None
        index = torch.as_tensor(list(indices), dtype=torch.int64)
        return Batch(None, None, torch.from_numpy(targets), torch.from_numpy(labels), index, documents)

    def _offset(self, epoch: int) -> int:
        return int(np.random.PCG64([self._seed, epoch]).random_raw()) % len(self._ids)

    def _slice(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Return a number of tokens of the ring from a position."""
        parts = [self._ids[start : start + length]]
        while (held := sum(map(len, parts))) < length:
            parts.append(self._ids[: length - held])
        return np.concatenate(parts).astype(np.int64)


class IndexedExamples(Protocol):
    """Examples that are numbered through all epochs: how many make one, and a number that others would not have."""

    @property
    def count(self) -> int: ...
    @property
    def fingerprint(self) -> int: ...


class WindowSampler:
    """Yields lists of `rows` numbers of windows, or of other such examples, for ever, each once an epoch.

    The order depends only on (seed, epoch); the last list of an epoch may be shorter.
    """

    def __init__(self, examples: IndexedExamples, batch_size: int, seed: int = 0) -> None:
        self._windows, self._rows, self._seed = examples, batch_size, seed
        self._epoch = self._position = 0
        self._order: npt.NDArray[np.int64] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[int]:
        count = self._windows.count
        if self._order is None:
            shuffled = np.argsort(np.random.PCG64([self._seed, self._epoch, 1]).random_raw(count), kind="stable")
            self._order = self._epoch * count + shuffled
        numbers: list[int] = self._order[self._position : self._position + self._rows].tolist()
        self._position += len(numbers)
        if self._position == count:
            self._epoch, self._position, self._order = self._epoch + 1, 0, None
        return numbers

    def state(self) -> dict[str, Any]:
        """Give the place in the stream as plain numbers, for a checkpoint."""
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "batch_size": self._rows,
            "examples": self._windows.count,
            "fingerprint": self._windows.fingerprint,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a place that `state` gave; DataError if it was taken on other texts, another seed or batch."""
        check_resumable(self.state(), state, "data, seed and batch")
        if state["position"] >= self._windows.count:
            raise DataError(
                f"a checkpoint is at window {state['position']} of an epoch of {self._windows.count}; start a new run"
            )
        self._epoch, self._position, self._order = state["epoch"], state["position"], None
