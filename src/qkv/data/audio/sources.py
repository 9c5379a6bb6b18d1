"""Training data for speech models, as named in a recipe; needs no torch until audio is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from qkv.data import corpora
from qkv.data.audio import recordings, synthesis
from qkv.data.audio.concatenation import ConcatenationConfig, concatenate_recordings
from qkv.data.audio.recordings import Recording
from qkv.data.corpora.fsdd import load_spoken_digits
from qkv.errors import ConfigError


@dataclass(frozen=True)
class Recordings:
    """The recordings of a manifest, a folder or an .npz file (see `qkv.data.audio.recordings.load_recordings`)."""

    path: Path
    audio: str | None = None
    text: str | None = None
    concatenate: ConcatenationConfig | None = None

    def list_recordings(self) -> list[Recording]:
        """List all recordings without reading their audio. Raises DataError for a manifest that cannot be read."""
        return _maybe_concatenate(recordings.load_recordings(self.path, self.audio, self.text), self.concatenate)


@dataclass(frozen=True)
class Fsdd:
    """The corpus fsdd: some takes of each digit and speaker, the first five for testing; some speakers, or all."""

    split: Literal["train", "valid", "test", "all"] = "train"
    speakers: tuple[str, ...] = ()
    concatenate: ConcatenationConfig | None = None

    def list_recordings(self) -> list[Recording]:
        """List all recordings without reading their audio. Raises CorpusError if they are missing."""
        return _maybe_concatenate(
            load_spoken_digits(corpora.find_corpus("fsdd"), self.split, self.speakers), self.concatenate
        )


@dataclass(frozen=True)
class SpokenNumbers:
    """Spoken numbers from 0 to `below` - 1 by espeak-ng, in voices that differ between splits
    (`qkv.data.audio.synthesis`)."""

    split: Literal["train", "valid", "test"] = "train"
    count: int = 2000
    below: int = 1000
    seed: int = 1
    concatenate: ConcatenationConfig | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not 1 <= self.below <= 1000:
            raise ConfigError([f"count={self.count}, below={self.below}: expected at least 1, and 1 to 1,000"])

    def list_recordings(self) -> list[Recording]:
        """List all recordings without synthesizing them. Raises MissingExtraError without espeak-ng."""
        return _maybe_concatenate(
            synthesis.generate_spoken_numbers(self.split, self.count, self.below, self.seed), self.concatenate
        )


AudioSource: TypeAlias = Recordings | Fsdd | SpokenNumbers
"""A source of recordings, or several recordings concatenated into one."""


def describe_source(source: AudioSource) -> str:
    """Return the name of a source for messages."""
    if isinstance(source, Recordings):
        name = str(source.path)
    elif isinstance(source, SpokenNumbers):
        name = f"{source.split} numbers by espeak-ng"
    else:
        name = f"fsdd/{source.split}" + (f" ({', '.join(source.speakers)})" if source.speakers else "")
    return f"{name}, joined" if source.concatenate else name


def _maybe_concatenate(parts: list[Recording], config: ConcatenationConfig | None) -> list[Recording]:
    return parts if config is None else concatenate_recordings(parts, config)


@dataclass(frozen=True)
class FeatureConfig:
    """How audio becomes frames: `qkv.data.audio.features.LogMel`. Audio of another rate is resampled.

    n_fft, hop: in samples. seconds: pad all audio with silence to this length and leave out what is longer; None keeps
    the
    length. normalization: "utterance" normalises each band to mean 0 and variance 1 over a recording, which removes
    the effect of the microphone; "peak" keeps the relative loudness of the bands, which helps to distinguish short
    words.
    """

    mels: int = 80
    sample_rate: int = 16_000
    n_fft: int = 400
    hop_length: int = 160
    f_min: float = 0.0
    f_max: float | None = None
    seconds: float | None = None
    normalization: Literal["utterance", "peak"] = "utterance"

    def __post_init__(self) -> None:
        highest = self.sample_rate / 2 if self.f_max is None else self.f_max
        problems = [
            f"{name}={getattr(self, name)}: expected {least} to {most:,}"
            for name, least, most in (
                ("mels", 1, 1024),
                ("sample_rate", 1_000, 384_000),
                ("n_fft", 2, 2**16),
                ("hop_length", 1, self.n_fft),
            )
            if not least <= getattr(self, name) <= most
        ]
        if self.seconds is not None and not 0 < self.seconds <= 3600:
            problems.append(f"seconds={self.seconds}: expected more than 0 and at most 3,600, or null")
        if not 0 <= self.f_min < highest <= self.sample_rate / 2:
            problems.append(f"f_min={self.f_min}, f_max={highest}: expected 0 <= f_min < f_max <= half the rate")
        if problems:
            raise ConfigError(problems)


DYNAMIC_RANGE_DB = 80
"""The decibels that "peak" normalisation keeps below the loudest band (see `qkv.data.audio.features.LogMel`)."""


@dataclass(frozen=True)
class SpectrogramAugmentation:
    """Augmentations of the frames of each training example.

    time_stretch: frames are stretched by a factor up to exp(time_stretch) either way (Ko et al. 2015); frequency_warp:
    frequencies by up to exp(frequency_warp), as if from another vocal tract (Jaitly and Hinton 2013). Then stripes are
    masked, as in SpecAugment (Park et al. 2019): masks of up to `frequency_width` bands and `time_width` frames, none
    longer
    than `time_fraction` of the audio. Before that, min_snr_db: uniform noise is added, from inaudible up to this many
    decibels below the loudest; gain_db: the frames become up to this many decibels louder or quieter. Both need
    features.normalization=peak, which keeps decibels.
    """

    time_stretch: float = 0.1
    frequency_warp: float = 0.1
    frequency_masks: int = 2
    frequency_width: int = 15
    time_masks: int = 2
    time_width: int = 40
    time_fraction: float = 0.2
    min_snr_db: float | None = None
    gain_db: float = 0.0

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        problems = [f"{name}={value}: expected at least 0" for name, value in given.items() if value < 0]
        if self.time_stretch > 1 or self.frequency_warp > 1:
            problems.append(
                f"time_stretch={self.time_stretch}, frequency_warp={self.frequency_warp}: expected at most 1"
            )
        if self.min_snr_db is not None and self.min_snr_db > DYNAMIC_RANGE_DB:
            problems.append(
                f"min_snr_db={self.min_snr_db}: expected at most {DYNAMIC_RANGE_DB} decibels, or null for none"
            )
        if self.time_fraction > 1:
            problems.append(f"time_fraction={self.time_fraction}: expected a share, 0 to 1")
        if problems:
            raise ConfigError(problems)
