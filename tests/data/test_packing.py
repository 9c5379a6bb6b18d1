"""Laws of packing: every token once an epoch, no padding, documents apart; and what is read from plain text."""

from __future__ import annotations

import gzip
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.data import IGNORE_INDEX, TokenStore, TokenWindows, WindowSampler, tokenize_documents
from qkv.data.text.documents import JsonlDocuments, StandardLibrary, TextCorpus
from qkv.data.text.documents import TextFiles as TextFiles
from qkv.errors import DataError
from qkv.evaluation.sliding_window import SlidingWindow, negative_log_likelihood
from qkv.models import build
from qkv.tasks import Decoder
from qkv.text import train

BOS, EOS = 1, 2


@dataclass(frozen=True)
class Special:
    pad: int = 0
    bos: int = BOS
    eos: int = EOS


def build_store(lengths: Sequence[int]) -> TokenStore:
    """Documents of unlike tokens, from 4 on."""
    numbers = itertools.count(4)
    return TokenStore.from_lists(None, [[*itertools.islice(numbers, length), EOS] for length in lengths])


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=8)


@given(lengths, st.integers(2, 20), st.integers(1, 5), st.integers(0, 3))
def test_every_token_comes_once_an_epoch_and_nothing_is_padded(
    sizes: list[int], context: int, rows: int, seed: int
) -> None:
    texts = build_store(sizes)
    windows = TokenWindows(texts, context, Special(), seed)
    sampler = iter(WindowSampler(windows, rows, seed))
    for _ in range(3):
        asked: Counter[int] = Counter()
        for _ in range(-(-windows.count // rows)):
            batch = windows.collate(next(sampler))
            assert batch.target.shape[1] == min(context, texts.token_count) and Special.pad not in batch.target
            labels, given_ = batch.labels.tolist(), batch.target.tolist()
            asked.update(token for row in labels for token in row if token != IGNORE_INDEX)
            for row, asks in zip(given_, labels, strict=True):
                for place, (before, after) in enumerate(zip(row, asks, strict=True)):
                    follows = place + 1 < len(row) and row[place + 1]
                    if after > EOS:
                        assert before in (BOS, after - 1)  # the tokens of these documents count upwards
                        assert follows is False or follows == after
                    if after == EOS and follows is not False:
                        assert follows == BOS
        assert asked == Counter(texts.ids.tolist())


def test_epochs_cut_at_different_places_and_seeds_shuffle() -> None:
    windows = TokenWindows(build_store([40, 50]), 8, Special(), 3)
    first, second = (windows.collate(range(n * windows.count, (n + 1) * windows.count)).target.tolist() for n in (0, 1))
    assert first != second and first == windows.collate(range(windows.count)).target.tolist()
    orders = [next(WindowSampler(windows, windows.count, seed)) for seed in (0, 1)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@given(lengths, st.integers(2, 12), st.integers(1, 4), st.integers(0, 12))
def test_a_sampler_goes_on_where_it_stood(sizes: list[int], context: int, rows: int, steps: int) -> None:
    windows = TokenWindows(build_store(sizes), context, Special(), 1)
    whole, other = WindowSampler(windows, rows, 1), WindowSampler(windows, rows, 1)
    for _ in range(steps):
        next(whole)
    other.restore(whole.state())
    assert [next(whole) for _ in range(9)] == [next(other) for _ in range(9)]


def test_a_sampler_refuses_other_texts() -> None:
    here = WindowSampler(TokenWindows(build_store([9, 9]), 4, Special()), 2)
    there = WindowSampler(TokenWindows(build_store([9, 8]), 4, Special()), 2)
    with pytest.raises(DataError, match="data differ.*fingerprint"):
        there.restore(here.state())
    with pytest.raises(DataError, match="no tokens"):
        TokenWindows(TokenStore.from_lists(None, []), 4, Special())


@pytest.mark.parametrize("position", [None, {"kind": "rotary"}, {"kind": "relative_bias"}, {"kind": "alibi"}])
def test_documents_do_not_see_each_other(position: dict[str, str] | None) -> None:
    from qkv import config

    choice = {"d_model": 8, "heads": 2, "layers": 2, "d_ff": 16, "position": position}
    shape = config.from_dict(Decoder, choice).spec(120)
    torch.manual_seed(0)
    model = build(shape).eval()
    windows = TokenWindows(build_store([9, 5, 3, 20]), 19, Special(), 0)
    batch = windows.collate(range(windows.count))
    assert batch.documents is not None
    together = model(target=batch.target, documents=batch.documents)
    for row, numbers in enumerate(batch.documents.tolist()):
        for number in set(numbers):
            places = [place for place, own in enumerate(numbers) if own == number]
            alone = model(target=batch.target[row : row + 1, places])
            torch.testing.assert_close(together[row, places], alone[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, model(target=batch.target), atol=1e-3)


def test_one_long_text_keeps_the_fast_mask() -> None:
    batch = TokenWindows(build_store([60]), 8, Special(), 0).collate([3])
    assert batch.documents is None or EOS in batch.labels


@given(st.lists(st.integers(0, 25), min_size=1, max_size=5), st.integers(1, 9), st.integers(1, 9))
def test_a_sliding_window_counts_every_token_once(sizes: list[int], context: int, stride: int) -> None:
    class Uniform(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Parameter(torch.zeros(1))

        def forward(self, target: torch.Tensor) -> torch.Tensor:
            assert target.shape[1] <= context
            return torch.zeros(*target.shape, 16)

    if stride > context:
        with pytest.raises(DataError, match="leave tokens out"):
            SlidingWindow(context, stride)
        return
    texts = [[5] * size for size in sizes]
    for bos, eos, more in ((BOS, EOS, len(sizes)), (BOS, None, 0)):
        total, count = negative_log_likelihood(
            Uniform(), texts, SlidingWindow(context, stride), bos=bos, eos=eos, vocab_size=16
        )
        assert count == sum(sizes) + more
        assert total == pytest.approx(count * torch.log(torch.tensor(16.0)).item(), rel=1e-5)
    _, count = negative_log_likelihood(
        Uniform(), texts, SlidingWindow(context, stride), bos=None, eos=None, vocab_size=16
    )
    assert count == sum(max(0, size - 1) for size in sizes)


def test_a_wider_window_reads_as_the_whole_text() -> None:
    torch.manual_seed(0)
    model = build(Decoder(d_model=8, heads=2, layers=1, d_ff=8).spec(30)).eval()
    text = [4 + n % 20 for n in range(11)]
    expected = torch.log_softmax(model(target=torch.tensor([[BOS, *text]]))[0], -1).detach()
    nll = -sum(float(expected[place, token]) for place, token in enumerate([*text, EOS]))
    for window in (SlidingWindow(12, 12), SlidingWindow(40, 7)):
        total, count = negative_log_likelihood(model, [text, text], window, bos=BOS, eos=EOS, vocab_size=30)
        assert count == 24 and total == pytest.approx(2 * nll, rel=1e-5)


def test_texts_are_packed_once(tmp_path: Path) -> None:
    tokenizer = train(["abc"], "character")
    first = tokenize_documents(["ab", "c"], "key", tokenizer, tmp_path)
    assert tokenizer.decode(first.ids[:2]) == "ab" and first.ids[2] == tokenizer.eos and first.token_count == 5
    assert tokenize_documents(iter(()), "key", tokenizer, tmp_path).ids.tolist() == first.ids.tolist()


# -- plain text -----------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_one_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes("\ufeffzwei\r\nZeilen\n".encode())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "c.txt").write_text(" \n")
    (tmp_path / ".hidden").write_text("no")
    found = TextCorpus([TextFiles(tmp_path)])
    assert list(found) == ["one", "zwei\nZeilen\n"] and list(found) == list(found)
    assert found.notes == ["1 documents left out: empty"]
    assert list(TextCorpus([TextFiles(tmp_path, "*.txt")])) == ["zwei\nZeilen\n"]
    hidden = TextCorpus([TextFiles(tmp_path)], found.digests[:1])
    assert list(hidden) == ["zwei\nZeilen\n"] and len(hidden) == 1 and hidden.cache_key != found.cache_key


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"ab\xff")
    for origin, said in (
        (TextFiles(tmp_path / "absent"), "absent does not exist"),
        (TextFiles(tmp_path, "*.md"), r"no file that fits '\*.md'"),
        (TextFiles(broken), r"1 of 1 documents cannot be used.*not UTF-8.*broken.txt at byte 3"),
    ):
        with pytest.raises(DataError, match=said):
            TextCorpus([origin])
    broken.write_text("")
    with pytest.raises(DataError, match=r"no text to train on \(1 documents are empty"):
        TextCorpus([TextFiles(broken)])


def test_one_broken_file_in_a_hundred_is_left_out_and_told(tmp_path: Path) -> None:
    for number in range(99):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    (tmp_path / "broken.txt").write_bytes(b"\xff")
    found = TextCorpus([TextFiles(tmp_path)])
    assert len(found) == 99 and "1 documents left out: not UTF-8" in found.notes[0]
    (tmp_path / "0.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="2 of 100 documents cannot be used"):
        TextCorpus([TextFiles(tmp_path)])


def test_json_lines_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_text('{"body": "one\\ntwo"}\n{"body": "three"}\n')
    assert list(TextCorpus([JsonlDocuments(path, "body")])) == ["one\ntwo", "three"]
    with pytest.raises(DataError, match="not a JSON object with a text under 'text'.*line 1"):
        TextCorpus([JsonlDocuments(path)])


def test_the_standard_library_is_there_without_its_tests() -> None:
    names = [document.name for document in itertools.islice(StandardLibrary().read_documents(), 400)]
    assert "abc.py" in names or "argparse.py" in names
    assert names == sorted(names) and not any("test" in name.split("/")[:-1] for name in names)
