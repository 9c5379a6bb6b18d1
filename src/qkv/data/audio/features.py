"""Features of audio files, as published speech models expect them and small recognisers are trained with.

`read_audio` reads a file into samples, `LogMel` and `NormalizedWaveform` compute features, `features_from_config` reads
either from a published `preprocessor_config.json`, and `mask_spectrogram` masks stripes of a spectrogram for training.
Reading files needs the extra `audio` (soundfile, which includes libsndfile); the rest needs only torch.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from qkv.errors import ConfigError, DataError, MissingExtraError

Normalization = Literal["peak", "utterance"]

_SAMPLE_RATES = range(1_000, 384_001)
"""Supported sample rates per second; no audible recording has fewer or more."""

_BLOCK_SIZE = 2**18
"""Samples per channel that are read at once, so that channels are mixed before the next block takes memory."""


def read_audio(path: str | os.PathLike[str], sample_rate: int, *, max_seconds: float = 3600.0) -> Tensor:
    """Read an audio file as (samples,) float32 at `sample_rate` samples per second, with its channels averaged.

    Supports what libsndfile does: WAV, FLAC, Ogg Vorbis and Opus, MP3 and others, at any sample rate.
    Raises DataError, with the path, for a file that is missing, broken, truncated, empty, longer than `max_seconds` or
    not finite, and MissingExtraError without soundfile.
    """
    return resample(*read_native(path, max_seconds=max_seconds), sample_rate)


def read_native(path: str | os.PathLike[str], *, max_seconds: float = 3600.0) -> tuple[Tensor, int]:
    """Read the samples of an audio file as `read_audio` does, at their stored rate; return that rate as well."""
    soundfile = _import_soundfile()
    name = os.fspath(path)
    try:
        with open(path, "rb") as raw:
            _check_length(raw.read(12), os.fstat(raw.fileno()).st_size, name)
            raw.seek(0)
            with soundfile.SoundFile(raw) as sound:
                stored = int(sound.samplerate)
                samples = _read_mono(sound, name, max_seconds)
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist; expected an audio file: check the path") from error
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # errors of soundfile and libsndfile
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} cannot be read as audio ({error}): copy it again, or convert it to WAV") from error
    if not len(samples):
        raise DataError(f"{name} contains no audio; expected at least one sample")
    if not samples.isfinite().all():
        raise DataError(f"{name} holds samples that are not finite; expected numbers around -1..1: convert it again")
    return samples, stored


def resample(samples: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Resample (..., samples) from `old_rate` to `new_rate`: ceil(samples * new_rate / old_rate).

    A sinc with 64 zero crossings on each side under a Kaiser window, as one short filter for each phase between old
    and new times (Crochiere and Rabiner 1983, chapter 4): flat to 0.9 of the lower Nyquist frequency, 100 dB down
    above it. Raises DataError for rates outside 1,000..384,000.
    """
    for rate in (old_rate, new_rate):
        if rate not in _SAMPLE_RATES:
            raise DataError(
                f"the sample rate is {rate}; expected {_SAMPLE_RATES[0]:,} to {_SAMPLE_RATES[-1]:,} per second"
            )
    common = math.gcd(old_rate, new_rate)
    length = samples.shape[-1]
    if old_rate == new_rate or not length:
        return samples
    # `phases` new samples for every `step` old ones; a multiple of the smallest such pair makes one large product.
    multiple = -(-_PHASES // (2 * (new_rate // common)))
    step, phases = multiple * (old_rate // common), multiple * (new_rate // common)
    total = -(-length * phases // step)
    reach = math.ceil(_ZEROS / _CUTOFF * max(1.0, step / phases))
    rows = -(-total // phases)
    flat = functional.pad(samples.reshape(-1, length), (reach, rows * step - length + reach + 1))
    output = samples.new_empty((*flat.shape[:1], rows, phases))
    for start in range(0, phases, _PHASES):
        stop = min(start + _PHASES, phases)
        offset, filters = _filters(start, stop, phases, step, reach)
        resampled = flat[:, offset:].unfold(1, filters.shape[1], step)[:, :rows]
        output[..., start:stop] = resampled @ filters.to(flat).T
    return output.reshape(*samples.shape[:-1], -1)[..., :total]


_ZEROS = 64
_CUTOFF = 0.95
"""The cutoff as a fraction of the lower Nyquist frequency: the filter is 6 dB down there."""
_KAISER = 0.1102 * (100 - 8.7)
"""The shape of the Kaiser window for 100 dB (Kaiser 1974)."""
_PHASES = 128
"""Filters that are built at once: rates without a common divisor have thousands of phases."""


@lru_cache(maxsize=8)
def _filters(start: int, stop: int, phases: int, step: int, reach: int) -> tuple[int, Tensor]:
    """Return the filters of some phases (phase, taps) over one span of old samples, and its start after padding."""
    offset = start * step // phases
    last = (stop - 1) * step // phases
    taps = torch.arange(offset - reach, last + reach + 2, dtype=torch.float64)
    centres = torch.arange(start, stop, dtype=torch.float64)[:, None] * (step / phases)
    away = (taps - centres) * (_CUTOFF * min(1.0, phases / step))  # in zero crossings
    inside = (1 - (away / _ZEROS) ** 2).clamp(min=0)
    filters = torch.sinc(away) * torch.special.i0(_KAISER * inside.sqrt()) * (inside > 0)
    return offset, (filters / filters.sum(dim=1, keepdim=True)).float()  # a constant signal stays constant


@dataclass(frozen=True)
class LogMel:
    """A log-mel spectrogram: the loudness of frequency bands, frame by frame.

    mels bands from lowest to highest hertz (None: half the rate), from samples at `sample_rate` per second
    n_fft and hop in samples: the length of a frame, and the distance to the next one
    seconds to which audio is cut or padded with silence, or None to keep its length
    normalization "peak" keeps eight decades of power below the loudest and rescales them, as Whisper does (Radford
    et al. 2022); "utterance" gives each band mean 0 and variance 1 over the utterance
    Raises ConfigError for values that define no spectrogram.
    """

    mels: int = 80
    sample_rate: int = 16_000
    n_fft: int = 400
    hop_length: int = 160
    f_min: float = 0.0
    f_max: float | None = None
    seconds: float | None = None
    normalization: Normalization = "utterance"

    def __post_init__(self) -> None:
        top = self.sample_rate / 2 if self.f_max is None else self.f_max
        limits = {"mels": 1024, "sample_rate": _SAMPLE_RATES[-1], "n_fft": 2**16, "hop_length": self.n_fft}
        problems = [
            f"{field}={value!r}; expected a whole number from {least} to {limits[field]}"
            for field, least in (("mels", 1), ("sample_rate", _SAMPLE_RATES[0]), ("n_fft", 2), ("hop_length", 1))
            if type(value := getattr(self, field)) is not int or not least <= value <= limits[field]
        ]
        if not 0 <= self.f_min < top <= self.sample_rate / 2:
            problems.append(f"f_min={self.f_min}, f_max={top}; expected 0 <= f_min < f_max <= {self.sample_rate / 2}")
        if self.seconds is not None and not 0 < self.seconds <= 3600:
            problems.append(f"seconds={self.seconds}; expected more than 0 and at most 3600, or None")
        if self.normalization not in get_args(Normalization):
            problems.append(
                f"normalization={self.normalization!r}; expected one of {', '.join(get_args(Normalization))}"
            )
        if problems:
            raise ConfigError(problems)

    def __call__(self, samples: Tensor) -> Tensor:
        """Compute the log-mel spectrogram (..., mels, frames) float32 of samples (..., samples).

        There are samples // hop frames, and each example of a batch is normalised separately.
        Raises DataError for fewer samples than one window.
        """
        samples = _check_waveform(samples)
        if self.seconds is not None:
            length = round(self.seconds * self.sample_rate)
            samples = functional.pad(samples[..., :length], (0, max(0, length - samples.shape[-1])))
        if samples.shape[-1] < max(self.n_fft, self.hop_length):
            raise DataError(f"the sound has {samples.shape[-1]} samples; expected at least one window of {self.n_fft}")
        flat = samples.reshape(-1, samples.shape[-1])
        hann = torch.hann_window(self.n_fft, device=flat.device)
        spectrum = torch.stft(flat, self.n_fft, self.hop_length, window=hann, return_complex=True)[..., :-1]
        power = spectrum.real.square() + spectrum.imag.square()  # 20 times as fast as abs().square()
        highest = self.sample_rate / 2 if self.f_max is None else self.f_max
        bands = build_mel_filters(self.mels, self.sample_rate, self.n_fft, self.f_min, highest)
        loudness = (bands.to(power) @ power).clamp(min=1e-10).log10()
        if self.normalization == "peak":
            loudness = (loudness.maximum(loudness.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
        else:
            loudness = _normalize(loudness)
        return loudness.reshape(*samples.shape[:-1], *loudness.shape[1:])


@dataclass(frozen=True)
class NormalizedWaveform:
    """The waveform at `sample_rate`, normalised to mean 0 and variance 1 (wav2vec 2.0)."""

    sample_rate: int = 16_000
    normalize: bool = True

    def __call__(self, samples: Tensor) -> Tensor:
        """Return samples (..., samples) in float32, each example normalised separately."""
        samples = _check_waveform(samples)
        return _normalize(samples) if self.normalize else samples


@lru_cache(maxsize=8)
def build_mel_filters(mels: int, sample_rate: int, n_fft: int, f_min: float, f_max: float) -> Tensor:
    """Build triangular filters over the frequencies of a window's transform: (mels, n_fft // 2 + 1) float32.

    The scale is that of Slaney's Auditory Toolbox (1998): linear to 1,000 Hz, logarithmic above; each triangle has area
    1
    in hertz, times two.
    """
    marks = torch.linspace(_hertz_to_mel(f_min), _hertz_to_mel(f_max), mels + 2, dtype=torch.float64)
    linear = marks * (200 / 3)
    edges = torch.where(linear < 1000, linear, 1000 * torch.exp((marks - 15) * (math.log(6.4) / 27)))
    frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_rate / n_fft)
    below, centre, above = (edges[start : start + mels, None] for start in range(3))
    triangles = torch.minimum((frequencies - below) / (centre - below), (above - frequencies) / (above - centre)).clamp(
        min=0
    )
    return (triangles * 2 / (above - below)).float()


def split_at_pauses(samples: Tensor, sample_rate: int, max_seconds: float) -> list[Tensor]:
    """Split samples (samples,) into parts of at most `max_seconds`, in order and without gaps.

    Each cut is in the middle of the quietest tenth of a second within the last third of a part, so that words stay
    whole
    where possible.
    """
    most, tenth = int(max_seconds * sample_rate), max(1, sample_rate // 10)
    found = []
    while len(samples) > most:
        loudness = samples[most - most // 3 : most].square().unfold(0, tenth, max(1, tenth // 10)).sum(dim=-1)
        cut = most - most // 3 + int(loudness.argmin()) * max(1, tenth // 10) + tenth // 2
        found.append(samples[:cut])
        samples = samples[cut:]
    return [*found, samples]


def mask_spectrogram(
    spectrogram: Tensor,
    *,
    generator: torch.Generator | None = None,
    frequency_masks: int = 2,
    frequency_width: int = 27,
    time_masks: int = 2,
    time_width: int = 100,
    time_fraction: float = 1.0,
) -> Tensor:
    """Mask stripes of a spectrogram (mels, frames) with its mean, in a copy: SpecAugment (Park et al. 2019).

    Each stripe is 0 to `frequency_width` bands or 0 to `time_width` frames wide, and no stripe in time is wider than
    `time_fraction` of the frames; the paper's time warping is left out. The defaults are its policy "LD" except for the
    fraction's p < 1. Raises DataError for another shape and ConfigError for negative numbers.
    """
    if spectrogram.ndim != 2 or not spectrogram.numel():
        raise DataError(f"the spectrogram has shape {tuple(spectrogram.shape)}; expected (mels, frames), none empty")
    numbers = (frequency_masks, frequency_width, time_masks, time_width)
    if min(numbers) < 0 or not 0 <= time_fraction <= 1:
        raise ConfigError(
            [f"masks and widths are {numbers}, time_fraction={time_fraction}; expected none negative, and 0..1"]
        )
    mels, frames = spectrogram.shape
    hidden = torch.zeros(mels, frames, dtype=torch.bool)
    for _ in range(frequency_masks):
        hidden[_draw_stripe(mels, min(frequency_width, mels), generator)] = True
    for _ in range(time_masks):
        hidden[:, _draw_stripe(frames, min(time_width, int(time_fraction * frames)), generator)] = True
    return spectrogram.masked_fill(hidden.to(spectrogram.device), float(spectrogram.mean()))


def _draw_stripe(length: int, widest: int, generator: torch.Generator | None) -> slice:
    width = int(torch.randint(widest + 1, (), generator=generator))
    start = int(torch.randint(length - width + 1, (), generator=generator))
    return slice(start, start + width)


def features_from_config(config: Mapping[str, Any]) -> LogMel | NormalizedWaveform:
    """Build the features of a `preprocessor_config.json` (or the audio part of a `processor_config.json`).

    Supports the feature extractors of Whisper and of wav2vec 2.0, with their defaults for missing keys.
    Raises ConfigError, with all the problems, for others and for unsupported steps.
    """
    nested = config.get("feature_extractor")
    config = nested if isinstance(nested, Mapping) else config
    kind = str(config.get("feature_extractor_type") or "none")
    defaults = _DEFAULTS.get(kind)
    if defaults is None:
        raise ConfigError([f"feature_extractor_type is {kind}; expected one of {', '.join(_DEFAULTS)}"])
    given = {key: value for key, value in config.items() if value is not None}
    problems = [
        f"{key}={value!r} is not known to the {kind} read here; remove it, or make the features yourself"
        for key, value in given.items()
        if key not in defaults and key not in _IGNORED_KEYS and value
    ]
    settings = {**defaults, **given}
    problems += [
        f"{key}={settings[key]!r}; expected {type(default).__name__}"
        for key, default in defaults.items()
        if type(settings[key]) is not type(default)
    ]
    if kind == "Wav2Vec2FeatureExtractor" and settings["feature_size"] != 1:
        problems.append(f"feature_size={settings['feature_size']!r}; expected 1, the samples themselves")
    if problems:
        raise ConfigError(problems)
    if kind == "Wav2Vec2FeatureExtractor":
        return NormalizedWaveform(settings["sampling_rate"], settings["do_normalize"])
    return LogMel(
        mels=settings["feature_size"],
        sample_rate=settings["sampling_rate"],
        n_fft=settings["n_fft"],
        hop_length=settings["hop_length"],
        f_max=8000.0,
        seconds=settings["chunk_length"],
        normalization="peak",
    )


_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "WhisperFeatureExtractor": {
        "feature_size": 80,
        "sampling_rate": 16_000,
        "n_fft": 400,
        "hop_length": 160,
        "chunk_length": 30,
    },
    "Wav2Vec2FeatureExtractor": {"feature_size": 1, "sampling_rate": 16_000, "do_normalize": True},
}
_IGNORED_KEYS = frozenset(
    "_processor_class auto_map feature_extractor_type mel_filters n_samples nb_max_frames padding_side processor_class "
    "return_attention_mask".split()
)
"""Keys that follow from the others (the mel filters are computed), or that describe the padding of a batch."""


def _hertz_to_mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) * 27 / math.log(6.4)


def _normalize(values: Tensor) -> Tensor:
    """Normalize values (..., length) to mean 0 and variance 1 along the last axis; constant signals become 0."""
    centred = values - values.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-7).sqrt()


def _check_waveform(samples: Tensor) -> Tensor:
    if not samples.ndim or not samples.numel() or not samples.is_floating_point():
        raise DataError(
            f"the sound is {samples.dtype} of shape {tuple(samples.shape)}; expected floats (..., samples), at least 1"
        )
    return samples.float()


def _read_mono(sound: Any, name: str, max_seconds: float) -> Tensor:
    """Read an open file to its end, channels averaged, block by block: a header may promise anything."""
    if sound.samplerate not in _SAMPLE_RATES or not 0 < sound.channels <= 64:
        raise DataError(
            f"{name} has {sound.channels} channels at {sound.samplerate} samples per second; expected 1 to 64 channels "
            f"at {_SAMPLE_RATES[0]:,} to {_SAMPLE_RATES[-1]:,}"
        )
    most = int(max_seconds * sound.samplerate)
    blocks: list[Tensor] = []
    had = 0
    while len(block := sound.read(_BLOCK_SIZE, dtype="float32", always_2d=True)):
        blocks.append(torch.from_numpy(block).mean(dim=1))
        had += len(block)
        if had > most:
            raise DataError(
                f"{name} is longer than {max_seconds:g} seconds: cut it into pieces, or raise `max_seconds`"
            )
    if had < sound.frames < 2**62:  # some formats do not know their length beforehand
        raise DataError(f"{name} ends after {had:,} of {sound.frames:,} samples; it is truncated: copy it again")
    return torch.cat(blocks) if blocks else torch.empty(0)


def _check_length(head: bytes, size: int, name: str) -> None:
    """Refuse a WAV file shorter than its header says: libsndfile would silently read what is there."""
    claimed = int.from_bytes(head[4:8], "little") + 8
    streamed = claimed - 8 in (0, 2**32 - 1) or claimed >= 2**31 - 2**16  # written before the length was known
    if head[:4] == b"RIFF" and head[8:] == b"WAVE" and not streamed and size < claimed:
        raise DataError(f"{name} has {size:,} of the {claimed:,} bytes its header says; it is truncated: copy it again")


def _import_soundfile() -> Any:
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError) as error:  # OSError: soundfile is installed, libsndfile is not
        raise MissingExtraError(
            "sound files need soundfile, which is not installed; install it with: pip install 'qkv[audio]'"
        ) from error
