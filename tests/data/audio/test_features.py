"""Sound: files to samples, rates to rates, and features as transformers makes them for published speech models."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv.data.audio import features as audio
from qkv.data.audio.features import LogMel, NormalizedWaveform, features_from_config, mask_spectrogram, resample
from qkv.errors import ConfigError, DataError, MissingExtraError

soundfile: Any = pytest.importorskip("soundfile", reason="needs soundfile")
REAL = os.environ.get("QKV_DATA")


def make_sine(hertz: float, rate: int, samples: int) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(samples, dtype=torch.float64) / rate).float()


def make_noise(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


RATES = st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000])


@given(RATES, RATES, st.floats(0.02, 0.9))
def test_a_resampled_sine_is_that_sine(old: int, new: int, part: float) -> None:
    hertz = part * min(old, new) / 2
    resampled = resample(make_sine(hertz, old, old // 4), old, new)
    assert len(resampled) == math.ceil(old // 4 * new / old)
    away = new // 40  # from the ends, where the sound begins out of nothing
    assert (resampled - make_sine(hertz, new, len(resampled)))[away:-away].abs().max() < 2e-5


@given(RATES, RATES, st.floats(1.05, 1.9))
def test_what_the_new_rate_cannot_hold_is_gone(old: int, new: int, part: float) -> None:
    if part * new < old:
        resampled = resample(make_sine(part * new / 2, old, old // 4), old, new)
        assert resampled[new // 40 : -new // 40].abs().max() < 2e-5


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(20, 1_000), st.integers(20, 1_000))
def test_any_length_and_rates_can_be_resampled(length: int, old_fifties: int, new_fifties: int) -> None:
    old, new = 50 * old_fifties, 50 * new_fifties
    sounds = torch.ones(2, length)
    resampled = resample(sounds, old, new)
    assert resampled.shape == (2, math.ceil(length * new / old))
    assert torch.allclose(resampled[0], resample(sounds[0], old, new), atol=1e-6)
    assert resampled.isfinite().all()


def test_rates_without_a_common_measure() -> None:
    resampled = resample(make_sine(300.0, 8_009, 4_000), 8_009, 1_009)
    assert (resampled - make_sine(300.0, 1_009, len(resampled)))[100:-100].abs().max() < 2e-5
    with pytest.raises(DataError, match="the sample rate is 10; expected 1,000 to 384,000"):
        resample(torch.ones(9), 8_000, 10)


@pytest.mark.parametrize(("ending", "error"), [("wav", 4e-5), ("flac", 4e-5), ("ogg", 0.05), ("mp3", 0.05)])
def test_a_file_gives_its_samples_mixed_down(tmp_path: Path, ending: str, error: float) -> None:
    path = tmp_path / f"sound.{ending}"
    left, right = 0.5 * make_sine(440.0, 16_000, 16_000), 0.3 * make_sine(700.0, 16_000, 16_000)
    soundfile.write(path, torch.stack([left, right], dim=1).numpy(), 16_000)
    samples = audio.read_audio(path, 16_000)
    assert (samples.dtype, samples.ndim) == (torch.float32, 1)
    assert len(samples) == 16_000
    assert (samples - (left + right) / 2)[500:-500].abs().max() < error
    assert len(audio.read_audio(path, 8_000)) == 8_000


def test_long_files_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, make_noise(1_000).numpy(), 8_000, subtype="FLOAT")
    monkeypatch.setattr(audio, "_BLOCK_SIZE", 64)
    assert torch.equal(audio.read_audio(path, 8_000), make_noise(1_000))
    with pytest.raises(DataError, match=r"sound\.wav is longer than 0\.1 seconds"):
        audio.read_audio(path, 8_000, max_seconds=0.1)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with pytest.raises(DataError, match=r"sound\.wav does not exist"):
        audio.read_audio(path, 16_000)
    for content in (b"", b"hello", b"RIFF\x04\0\0\0WAVE"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"sound\.wav cannot be read as audio"):
            audio.read_audio(path, 16_000)
    soundfile.write(path, np.zeros(0), 16_000)
    with pytest.raises(DataError, match=r"sound\.wav contains no audio"):
        audio.read_audio(path, 16_000)
    soundfile.write(path, np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match="not finite"):
        audio.read_audio(path, 16_000)
    soundfile.write(path, np.zeros(9), 500)
    with pytest.raises(DataError, match="1 channels at 500 samples per second"):
        audio.read_audio(path, 16_000)
    with pytest.raises(DataError, match="cannot be read as audio"):
        audio.read_audio(tmp_path, 16_000)


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_file_cut_short_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"sound.{ending}"
    soundfile.write(path, make_noise(16_000).numpy(), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"sound.{ending} "):
        audio.read_audio(path, 16_000)


@given(st.data())
def test_damaged_files_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    kind = data.draw(st.sampled_from(["WAV", "FLAC", "OGG"]))
    soundfile.write(path, make_noise(600).numpy(), 16_000, format=kind)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert audio.read_audio(path, 16_000).ndim == 1
    except DataError as error:
        assert "damaged" in str(error)


@pytest.mark.parametrize("options", [{}, {"feature_size": 128, "chunk_length": 3}, {"n_fft": 512, "hop_length": 200}])
@pytest.mark.parametrize("length", [1_000, 47_777, 100_000])
def test_log_mel_equals_whispers(options: dict[str, Any], length: int) -> None:
    from transformers import WhisperFeatureExtractor

    reference = WhisperFeatureExtractor(**options)  # type: ignore[no-untyped-call]
    sound = make_noise(length) + 0.3 * make_sine(1234.5, 16_000, length)
    expected = reference(sound.numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"][0]
    ours = features_from_config(reference.to_dict())
    assert (ours(sound) - expected).abs().max() < 1e-5
    assert ours == features_from_config({"feature_extractor_type": "WhisperFeatureExtractor", **options})


@pytest.mark.skipif(not REAL, reason="needs QKV_DATA, a folder with the corpora")
def test_speech_gives_what_the_references_give() -> None:
    from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    files = sorted(Path(str(REAL), "speech-sample").rglob("*.flac"))
    assert len(files) == 11
    for path in files:
        speech = audio.read_audio(path, 16_000)
        for kind in (WhisperFeatureExtractor, Wav2Vec2FeatureExtractor):
            reference: Any = kind()
            (expected,) = reference(speech.numpy(), sampling_rate=16_000, return_tensors="pt").values()
            assert (features_from_config(reference.to_dict())(speech) - expected[0]).abs().max() < 1e-4, path


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=300), st.floats(0.05, 10), st.floats(-2, 2))
def test_a_normalised_waveform_has_mean_0_and_variance_1(values: list[float], scale: float, shift: float) -> None:
    sound = torch.tensor(values) * scale + shift
    normalised = NormalizedWaveform()(sound)
    assert abs(normalised.mean()) < 1e-2
    if sound.var(correction=0) > 1e-3:
        assert normalised.var(correction=0) == pytest.approx(1, abs=1e-3)
    assert torch.equal(NormalizedWaveform(normalize=False)(sound), sound)


@pytest.mark.parametrize("scaling", ["peak", "utterance"])
def test_sounds_side_by_side_are_as_alone(scaling: Any) -> None:
    sounds = torch.stack([make_noise(3_000), 100 * make_noise(3_000, 1), make_sine(500.0, 8_000, 3_000)])
    features = LogMel(40, 8_000, 200, 80, normalization=scaling)
    together = features(sounds)
    assert together.shape == (3, 40, 3_000 // 80)
    for sound, alone in zip(sounds, together, strict=True):
        assert torch.allclose(features(sound), alone, atol=1e-5)
    assert torch.allclose(NormalizedWaveform()(sounds)[1], NormalizedWaveform()(sounds[1]), atol=1e-6)


def test_an_utterance_is_scaled_band_by_band_and_its_pitch_is_seen() -> None:
    features = LogMel(40, 16_000)(make_noise(16_000))
    assert features.mean(dim=1).abs().max() < 1e-5
    assert torch.allclose(features.var(dim=1, correction=0), torch.ones(40), atol=1e-3)
    loudest = [
        int(LogMel(40, normalization="peak")(make_sine(hertz, 16_000, 4_000)).mean(dim=1).argmax())
        for hertz in (200, 900, 4_000)
    ]
    assert loudest == sorted(set(loudest))
    assert LogMel(seconds=0.5)(make_noise(20_000)).shape == (80, 50)


def test_mel_filters_of_an_odd_window_fit_its_transform() -> None:
    assert LogMel(20, 8_000, 201, 80)(make_noise(1_000)).shape == (20, 12)


@given(
    st.integers(1, 40), st.integers(1, 90), st.integers(0, 3), st.integers(0, 30), st.floats(0, 1), st.integers(0, 9)
)
def test_masks_hide_no_more_than_they_may(
    mels: int, frames: int, masks: int, width: int, fraction: float, seed: int
) -> None:
    spectrogram = torch.arange(mels * frames, dtype=torch.float32).reshape(mels, frames) + 0.25

    def masked(seed: int) -> Tensor:
        return mask_spectrogram(
            spectrogram,
            generator=torch.Generator().manual_seed(seed),
            frequency_masks=masks,
            frequency_width=width,
            time_masks=masks,
            time_width=width,
            time_fraction=fraction,
        )

    hidden = masked(seed)
    assert torch.equal(hidden, masked(seed))
    changed = hidden != spectrogram
    assert int(changed.all(dim=1).sum()) <= masks * width or changed.all()
    bands, times = min(masks * width, mels), min(masks * min(width, int(fraction * frames)), frames)
    assert int(changed.sum()) <= bands * frames + times * mels - bands * times
    assert set(hidden[changed].tolist()) <= {float(spectrogram.mean())}


def test_masks_hide_whole_stripes() -> None:
    spectrogram = torch.rand(80, 500, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(80, 500)
    for seed in range(200):
        hidden = mask_spectrogram(spectrogram, generator=torch.Generator().manual_seed(seed)) != spectrogram
        rows, columns = hidden.all(dim=1), hidden.all(dim=0)
        assert torch.equal(hidden, rows[:, None] | columns)
        total += hidden
    assert 0.2 < total.mean() / 200 < 0.6  # two stripes of 13.5 bands and two of 50 frames on average
    assert total.amin() > 0
    with pytest.raises(DataError, match=r"shape \(3,\); expected \(mels, frames\)"):
        mask_spectrogram(torch.ones(3))
    with pytest.raises(ConfigError, match="time_fraction=2"):
        mask_spectrogram(spectrogram, time_fraction=2)


def test_sounds_of_other_kinds_are_refused() -> None:
    for sound in (torch.ones(0), torch.ones(500, dtype=torch.int16), torch.tensor(1.0)):
        for features in (LogMel(), NormalizedWaveform()):
            with pytest.raises(DataError, match="the sound is torch"):
                features(sound)
    with pytest.raises(DataError, match="has 300 samples; expected at least one window of 400"):
        LogMel()(make_noise(300))


@pytest.mark.parametrize(
    "options",
    [
        {"mels": 0},
        {"hop_length": 500},
        {"n_fft": 1.5},
        {"f_max": 9e3},
        {"seconds": -1},
        {"normalization": "loud"},
        {"sample_rate": 9},
    ],
    ids=str,
)
def test_impossible_features_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}="):
        LogMel(**options)


def test_configurations_are_read_or_refused_with_all_reasons() -> None:
    part = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False, "sampling_rate": 8_000}
    assert features_from_config({"feature_extractor": part}) == NormalizedWaveform(8_000, False)
    with pytest.raises(ConfigError, match="feature_extractor_type is EncodecFeatureExtractor; expected one of Whisper"):
        features_from_config({"feature_extractor_type": "EncodecFeatureExtractor"})
    with pytest.raises(ConfigError) as caught:
        features_from_config({"feature_extractor_type": "WhisperFeatureExtractor", "dither": 0.1, "n_fft": "many"})
    assert [problem.split("=")[0] for problem in caught.value.problems] == ["dither", "n_fft"]


def test_without_soundfile_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qkv\[audio\]'"):
        audio.read_audio(tmp_path / "sound.wav", 16_000)


@given(length=st.integers(1, 5000), longest=st.floats(0.3, 3.0), seed=st.integers(0, 99))
def test_pieces_are_the_whole_sound(length: int, longest: float, seed: int) -> None:
    samples = torch.randn(length, generator=torch.Generator().manual_seed(seed))
    pieces = audio.split_at_pauses(samples, 1000, longest)
    assert torch.equal(torch.cat(pieces), samples)
    assert all(0 < len(piece) <= longest * 1000 for piece in pieces)


def test_a_sound_is_cut_where_it_is_quiet() -> None:
    samples = torch.ones(3000)
    samples[750:900] = 0
    first, *_ = audio.split_at_pauses(samples, 1000, 1.0)
    assert 760 <= len(first) <= 890
