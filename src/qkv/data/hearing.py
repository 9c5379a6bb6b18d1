"""What a model that hears may learn from, named in a recipe; needs no torch until the sounds are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from qkv.data import corpora, generated, recordings
from qkv.data.corpora.digits import spoken_digits
from qkv.data.joining import Joining, join
from qkv.data.recordings import Recording
from qkv.errors import ConfigError


@dataclass(frozen=True)
class Recordings:
    """The recordings of a manifest, a folder or an .npz file (see `qkv.data.recordings.recordings`)."""

    path: Path
    audio: str | None = None
    text: str | None = None
    joined: Joining | None = None

    def recordings(self) -> list[Recording]:
        """All of them, unread; DataError for a manifest that cannot be read."""
        return _joined(recordings.recordings(self.path, self.audio, self.text), self.joined)


@dataclass(frozen=True)
class Fsdd:
    """The corpus fsdd: of each digit and speaker some takes, the first five to test on; of some speakers, or all."""

    split: Literal["train", "valid", "test", "all"] = "train"
    speakers: tuple[str, ...] = ()
    joined: Joining | None = None

    def recordings(self) -> list[Recording]:
        """All of them, unread; CorpusError if they are not at hand."""
        return _joined(spoken_digits(corpora.entry("fsdd"), self.split, self.speakers), self.joined)


@dataclass(frozen=True)
class Numbers:
    """Numbers under `below` that espeak-ng says, in voices that differ from split to split (`qkv.data.generated`)."""

    split: Literal["train", "valid", "test"] = "train"
    count: int = 2000
    below: int = 1000
    seed: int = 1
    joined: Joining | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not 1 <= self.below <= 1000:
            raise ConfigError([f"count={self.count}, below={self.below}: expected at least 1, and 1 to 1,000"])

    def recordings(self) -> list[Recording]:
        """All of them, unsaid; MissingExtraError without espeak-ng."""
        return _joined(generated.numbers(self.split, self.count, self.below, self.seed), self.joined)


SoundOrigin: TypeAlias = Recordings | Fsdd | Numbers
"""Where recordings come from; joined, some of them together are one."""


def name_of(origin: SoundOrigin) -> str:
    """What to call an origin in a message."""
    if isinstance(origin, Recordings):
        name = str(origin.path)
    elif isinstance(origin, Numbers):
        name = f"{origin.split} numbers by espeak-ng"
    else:
        name = f"fsdd/{origin.split}" + (f" ({', '.join(origin.speakers)})" if origin.speakers else "")
    return f"{name}, joined" if origin.joined else name


def _joined(parts: list[Recording], how: Joining | None) -> list[Recording]:
    return parts if how is None else join(parts, how)


@dataclass(frozen=True)
class Features:
    """How sound becomes frames: `qkv.data.audio.LogMel`. A sound of another rate is resampled.

    window, hop: in samples. seconds: to which each sound is filled with silence, and longer ones left out; None: it is
    as long as it is. scaling: "utterance" gives each band mean 0 and variance 1 over a sound, which takes away
    what the microphone did to it; "peak" keeps how loud bands are beside each other, which tells the words of a short
    sound apart.
    """

    mels: int = 80
    rate: int = 16_000
    window: int = 400
    hop: int = 160
    lowest: float = 0.0
    highest: float | None = None
    seconds: float | None = None
    scaling: Literal["utterance", "peak"] = "utterance"

    def __post_init__(self) -> None:
        highest = self.rate / 2 if self.highest is None else self.highest
        problems = [
            f"{name}={getattr(self, name)}: expected {least} to {most:,}"
            for name, least, most in (
                ("mels", 1, 1024),
                ("rate", 1_000, 384_000),
                ("window", 2, 2**16),
                ("hop", 1, self.window),
            )
            if not least <= getattr(self, name) <= most
        ]
        if self.seconds is not None and not 0 < self.seconds <= 3600:
            problems.append(f"seconds={self.seconds}: expected more than 0 and at most 3,600, or null")
        if not 0 <= self.lowest < highest <= self.rate / 2:
            problems.append(f"lowest={self.lowest}, highest={highest}: expected 0 <= lowest < highest <= half the rate")
        if problems:
            raise ConfigError(problems)


AUDIBLE = 80
"""How many decibels features of scaling "peak" keep below the loudest band (see `qkv.data.audio.LogMel`)."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to frames each time they are learned from.

    stretch: they are made up to exp(stretch) times longer or shorter (Ko et al. 2015); warp: their pitches up to
    exp(warp) times higher or lower, as those of another throat (Jaitly and Hinton 2013). Then stripes are hidden, as in
    SpecAugment (Park et al. 2019): masks of up to so many bands and frames, none longer than a share of the sound.
    Before that, noise: even noise is put under the frames, from inaudible up to so many decibels below the loudest;
    gain: they are made up to so many decibels louder or quieter. Both need features.scaling=peak, which keeps decibels.
    """

    stretch: float = 0.1
    warp: float = 0.1
    frequency_masks: int = 2
    frequency_width: int = 15
    time_masks: int = 2
    time_width: int = 40
    time_share: float = 0.2
    noise: float | None = None
    gain: float = 0.0

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        problems = [f"{name}={value}: expected at least 0" for name, value in given.items() if value < 0]
        if self.stretch > 1 or self.warp > 1:
            problems.append(f"stretch={self.stretch}, warp={self.warp}: expected at most 1")
        if self.noise is not None and self.noise > AUDIBLE:
            problems.append(f"noise={self.noise}: expected at most {AUDIBLE} decibels, or null for none")
        if self.time_share > 1:
            problems.append(f"time_share={self.time_share}: expected a share, 0 to 1")
        if problems:
            raise ConfigError(problems)
