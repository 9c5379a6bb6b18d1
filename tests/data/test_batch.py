"""Batches: every example once, never over the budget, little padding, and exactly resumable."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qkv.data as data
from qkv.data import (
    IGNORE_INDEX,
    BatchSampler,
    ConcatStore,
    MixtureSampler,
    TokenStore,
    TokenStoreWriter,
    collate,
    collate_sources,
)
from qkv.errors import DataError, StorageError
from qkv.text import BOS, EOS, PAD, train

BYTES = train([], kind="byte")
tables = st.integers(1, 2).flatmap(
    lambda columns: st.lists(st.lists(st.integers(1, 20), min_size=columns, max_size=columns), min_size=1, max_size=60)
)


@given(table=tables, budget=st.integers(40, 200), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_example_once_and_never_over_budget(table: list[list[int]], budget: int, seed: int, epoch: int) -> None:
    batches = BatchSampler(table, budget, seed).batches(epoch)
    assert Counter(number for batch in batches for number in batch) == Counter(range(len(table)))
    for batch in batches:
        assert len(batch) * int(np.array([table[number] for number in batch]).max(axis=0).sum()) <= budget


@given(table=tables, seed=st.integers(0, 5), before=st.integers(0, 100), mixed=st.booleans())
@settings(deadline=None)
def test_restoring_goes_on_identically(table: list[list[int]], seed: int, before: int, mixed: bool) -> None:
    def fresh() -> BatchSampler:
        return MixtureSampler([table, table[:1]], [1, 2], 40, seed) if mixed else BatchSampler(table, 40, seed)

    whole = fresh()
    for _ in islice(whole, before):
        pass
    state = json.loads(json.dumps(whole.state()))
    resumed = fresh()
    resumed.restore(state)
    assert list(islice(resumed, 50)) == list(islice(whole, 50))
    assert (resumed.epoch, resumed.position) == (whole.epoch, whole.position)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    table = np.random.default_rng(0).integers(1, 20, (500, 2))
    sampler = BatchSampler(table, 200, seed=1)
    epoch = sampler.batches(1)
    assert epoch == BatchSampler(table, 200, seed=1).batches(1)
    assert epoch != sampler.batches(0) != BatchSampler(table, 200, seed=2).batches(0)
    mates = [{frozenset(batch) for batch in sampler.batches(number)} for number in (0, 1)]
    assert len(mates[0] & mates[1]) < len(mates[0]) / 2
    assert list(islice(sampler, len(sampler.batches(0)) + 1))[-1] == epoch[0]
    assert sampler.epoch == 1 and sampler.position == 1


def test_short_words_waste_little_and_are_planned_fast() -> None:
    random = np.random.default_rng(0)
    source = np.clip(random.normal(8.5, 2.2, 110_000), 2, 30).astype(int)
    target = np.clip(source - random.integers(-1, 3, 110_000), 2, 30)
    sampler = BatchSampler(np.stack([source, target], axis=1), 4096)
    sampler.batches(0)
    began = time.process_time()
    sampler.batches(1)
    assert time.process_time() - began < 0.3
    assert sampler.padding_fraction(1) < 0.02


def test_waste_counts_padding() -> None:
    assert BatchSampler([[3, 3], [3, 3]], 100).padding_fraction() == 0
    assert BatchSampler([1, 3], 6).padding_fraction() == pytest.approx(2 / 6)
    assert BatchSampler([1, 3], 6).batches(0) in ([[0, 1]], [[1, 0]])


def test_what_a_sampler_refuses() -> None:
    with pytest.raises(DataError, match="no examples"):
        BatchSampler([], 10)
    with pytest.raises(DataError, match="example 1 takes 12 tokens"):
        BatchSampler([[1, 2], [6, 6]], 10)
    state = BatchSampler([1, 2, 3], 10, seed=1).state()
    with pytest.raises(DataError, match="seed was 1 and is 2"):
        BatchSampler([1, 2, 3], 10, seed=2).restore(state)
    with pytest.raises(DataError, match="fingerprint"):
        BatchSampler([1, 2, 4], 10, seed=1).restore(state)
    with pytest.raises(DataError, match="one above 0"):
        MixtureSampler([[1], [2]], [1, 0], 10)
    with pytest.raises(DataError, match="corpus 1"):
        MixtureSampler([[1], []], [1, 1], 10)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 3), draw=st.data())
def test_a_mixture_keeps_its_shares_and_goes_through_evenly(sizes: list[int], seed: int, draw: st.DataObject) -> None:
    weights = [draw.draw(st.floats(0.1, 5)) for _ in sizes]
    mixture = MixtureSampler([[1] * size for size in sizes], weights, 7, seed)
    epochs = 5
    drawn = Counter(n for epoch in range(epochs) for batch in mixture.batches(epoch) for n in batch)
    start = 0
    for size, weight in zip(sizes, weights, strict=True):
        counts = [drawn[number] for number in range(start, start + size)]
        assert abs(sum(counts) / epochs - weight / sum(weights) * sum(sizes)) <= 1
        assert max(counts) - min(counts) <= 1
        start += size


def test_a_batch_holds_what_is_read_given_and_answered() -> None:
    batch = collate([([5, 6], [7]), ([], [8, 9, 10])], BYTES, BYTES, index=[4, 2])
    assert batch.source is not None and batch.source.tolist() == [[5, 6, EOS], [EOS, PAD, PAD]]
    assert batch.source_mask is not None and batch.source_mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.target.tolist() == [[BOS, 7, PAD, PAD], [BOS, 8, 9, 10]]
    assert batch.labels.tolist() == [[7, EOS, IGNORE_INDEX, IGNORE_INDEX], [8, 9, 10, EOS]]
    assert batch.index.tolist() == [4, 2] and len(batch) == 2
    assert (batch.target_tokens, batch.source_tokens, batch.padded_tokens) == (6, 4, 14)
    assert torch.equal(batch.to("cpu").labels, batch.labels)
    assert {tensor.dtype for tensor in (batch.source, batch.target, batch.labels, batch.index)} == {torch.int64}


def test_a_batch_without_source() -> None:
    batch = collate([(None, [7]), (None, [])], None, BYTES)
    assert batch.source is None and batch.source_mask is None and batch.index.tolist() == [0, 1]
    assert batch.labels.tolist() == [[7, EOS], [EOS, IGNORE_INDEX]] and batch.padded_tokens == 4
    assert batch.to("cpu").source is None and batch.source_tokens == 0


def test_sources_are_read_alike_in_training_and_decoding() -> None:
    batch = collate([([5], [7]), ([5, 6, 7], [8])], BYTES, BYTES)
    source, mask = collate_sources([[5], [5, 6, 7]], BYTES)
    assert batch.source is not None and torch.equal(source, batch.source)
    assert batch.source_mask is not None and torch.equal(mask, batch.source_mask)


@pytest.mark.parametrize("largest", [9, 65_535, 65_536])
@pytest.mark.parametrize("with_source", [True, False])
def test_a_store_gives_back_what_it_was_given(tmp_path: Path, largest: int, with_source: bool) -> None:
    sources, targets = [[4, 5], [], [6]], [[7], [largest, 8], []]
    stores = []
    for _ in range(2):  # the second finds the place taken, and leaves it
        with TokenStoreWriter(tmp_path / "cache" / "store", with_source, largest + 1) as writer:
            for part in (slice(0, 2), slice(2, 2), slice(2, 3)):
                writer.add(sources[part] if with_source else None, targets[part])
            stores.append(writer.save())
    saved = stores[0]
    for pairs in (*stores, TokenStore.from_lists(sources if with_source else None, targets), ConcatStore([saved])):
        examples = [pairs[number] for number in range(3)]
        assert [target.tolist() for _, target in examples] == targets
        assert [None if source is None else source.tolist() for source, _ in examples] == (
            sources if with_source else [None] * 3
        )
        if isinstance(pairs, TokenStore):
            assert [pairs.count_containing(token) for token in (5, 8, 9, 3)] == [
                int(with_source),
                1,
                int(largest == 9),
                0,
            ]
        assert pairs.lengths.tolist() == ([[3, 2], [1, 3], [2, 1]] if with_source else [[2], [3], [1]])
    assert saved.token_count == (6 if with_source else 3)
    base = saved[0][1]
    while not isinstance(base, np.memmap):
        base = base.base  # type: ignore[assignment]
    assert saved[0][1].dtype == (np.uint16 if largest < 65_536 else np.uint32)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["store"]


def test_a_store_that_was_given_up_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TokenStoreWriter(tmp_path / "store", True, 9) as writer:
        writer.add([[4, 5]], [[6]])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_store_takes_no_more_memory_the_larger_it_is(tmp_path: Path) -> None:
    rows = [[5] * 50] * 1000
    peaks = []
    for times in (4, 40):
        tracemalloc.start()
        with TokenStoreWriter(tmp_path / str(times), True, 9) as writer:
            for _ in range(times):
                writer.add(rows, rows)
            assert len(writer.save()) == times * 1000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_joined_stores_count_on() -> None:
    joined = ConcatStore([TokenStore.from_lists(None, [[1], [2]]), TokenStore.from_lists(None, [[3]])])
    assert [joined[number][1].tolist() for number in range(len(joined))] == [[1], [2], [3]]
    with pytest.raises(IndexError):
        joined[3]


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        TokenStore.open(tmp_path)
    with TokenStoreWriter(tmp_path / "a", True, 9) as writer:
        writer.add([[4, 5]], [[6]])
        writer.save()
    (tmp_path / "a" / "ids.npy").write_bytes((tmp_path / "a" / "ids.npy").read_bytes()[:-2])
    with pytest.raises(DataError, match="cannot be read"):
        TokenStore.open(tmp_path / "a")
    np.save(tmp_path / "a" / "ids.npy", np.zeros(2, np.uint16))
    with pytest.raises(DataError, match="does not fit together"):
        TokenStore.open(tmp_path / "a")
    with pytest.raises(DataError, match="one source for each"):
        TokenStore.from_lists([[1]], [])


@pytest.mark.parametrize("moment", ["write_array_header_1_0", "fsync", "rename"])
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format if moment.startswith("write") else os, moment, full)
    with pytest.raises(StorageError, match="No space left"), TokenStoreWriter(tmp_path / "store", False, 9) as writer:
        writer.save()
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute"):
        _ = data.Batches
    assert {name for name in data.__all__ if getattr(data, name) is not None} == set(data.__all__)
