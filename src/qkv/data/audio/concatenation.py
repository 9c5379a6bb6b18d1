"""Connected speech from single recordings: several of one speaker in sequence, with pauses and noise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qkv.data.audio.recordings import AudioClip, Recording
from qkv.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

_NOISE_RANGE_DB = 30.0
"""The range in decibels between the loudest noise and the faintest."""


@dataclass(frozen=True)
class ConcatenationConfig:
    """How recordings become `count` connected ones, each of `min_parts` to `max_parts` recordings of one speaker.

    max_pause: the longest pause in seconds, before, between and after them; min_snr_db: the least signal-to-noise ratio
    of
    the added white noise, and at most 30 more; None adds none. The same seed gives the same audio.
    """

    count: int
    min_parts: int = 1
    max_parts: int = 7
    max_pause: float = 0.3
    min_snr_db: float | None = 10.0
    seed: int = 1

    def __post_init__(self) -> None:
        problems = []
        if self.count < 1:
            problems.append(f"count={self.count}: expected at least 1")
        if not 1 <= self.min_parts <= self.max_parts:
            problems.append(
                f"min_parts={self.min_parts}, max_parts={self.max_parts}: expected 1 <= min_parts <= max_parts"
            )
        if not 0 <= self.max_pause <= 10:
            problems.append(f"max_pause={self.max_pause}: expected 0 to 10 seconds")
        if self.min_snr_db is not None and not -30 <= self.min_snr_db <= 120:
            problems.append(f"min_snr_db={self.min_snr_db}: expected -30 to 120 decibels, or null for none")
        if problems:
            raise ConfigError(problems)


def concatenate_recordings(parts: Sequence[Recording], config: ConcatenationConfig) -> list[Recording]:
    """Build connected recordings; the parts of each depend only on (seed, its number). Raises DataError without
    parts."""
    if not parts:
        raise DataError("there are no recordings to join; expected at least one")
    speakers: dict[str, list[Recording]] = {}
    for part in parts:
        speakers.setdefault(part.speaker, []).append(part)
    names = sorted(speakers)
    return [_concatenate_one(speakers, names, config, number) for number in range(config.count)]


def _concatenate_one(
    speakers: dict[str, list[Recording]], names: list[str], config: ConcatenationConfig, number: int
) -> Recording:
    bits = np.random.PCG64([config.seed, number])

    def below(count: int) -> int:
        return int(bits.random_raw()) % count

    def share() -> float:
        return int(bits.random_raw()) / 2**64

    own = speakers[names[below(len(names))]]
    chosen = [own[below(len(own))] for _ in range(config.min_parts + below(config.max_parts - config.min_parts + 1))]
    gaps = [config.max_pause * share() for _ in range(len(chosen) + 1)]
    above = None if config.min_snr_db is None else config.min_snr_db + _NOISE_RANGE_DB * share()
    seed = below(2**62)

    def load() -> AudioClip:
        return _mix([part.load() for part in chosen], gaps, above, seed)

    stamp = hashlib.sha256(
        repr((config, number, [(one.name, one.fingerprint) for one in chosen])).encode()
    ).hexdigest()[:16]
    return Recording(
        f"joined recording {number + 1}", " ".join(one.text for one in chosen), load, stamp, chosen[0].speaker
    )


def _mix(clips: Sequence[AudioClip], pauses: Sequence[float], snr_db: float | None, seed: int) -> AudioClip:
    """Concatenate clips with pauses before, between and after them, and add noise `snr_db` decibels below."""
    import torch

    rates = {sound.sample_rate for sound in clips}
    if len(rates) > 1:
        raise DataError(f"recordings of {sorted(rates)} samples per second were to be joined; expected one rate")
    (rate,) = rates
    pieces: list[Tensor] = []
    times: list[tuple[float, float]] = []
    at = 0
    for sound, gap in zip(clips, pauses[:-1], strict=True):
        pause = round(gap * rate)
        pieces += [torch.zeros(pause), sound.samples]
        times.append(((at + pause) / rate, (at + pause + len(sound.samples)) / rate))
        at += pause + len(sound.samples)
    samples = torch.cat([*pieces, torch.zeros(round(pauses[-1] * rate))])
    if snr_db is not None:
        power = float(torch.cat([sound.samples for sound in clips]).square().mean())
        noise = torch.randn(len(samples), generator=torch.Generator().manual_seed(seed))
        samples = samples + noise * (math.sqrt(power) * 10 ** (-snr_db / 20))
    return AudioClip(samples, rate, tuple(times))
