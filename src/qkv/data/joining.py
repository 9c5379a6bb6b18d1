"""Connected speech from single recordings: some of one speaker, one after the other, with pauses and noise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qkv.data.recordings import Recording, Sound
from qkv.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

_RANGE = 30.0
"""Decibels between the loudest noise and the faintest."""


@dataclass(frozen=True)
class Joining:
    """How recordings become `count` connected ones, each of `least` to `most` of one speaker.

    gap: seconds of the longest pause, before, between and after them; noise: decibels by which speech is at least
    louder than the white noise added to it, and at most 30 more; None adds none. The same seed gives the same sounds.
    """

    count: int
    least: int = 1
    most: int = 7
    gap: float = 0.3
    noise: float | None = 10.0
    seed: int = 1

    def __post_init__(self) -> None:
        problems = []
        if self.count < 1:
            problems.append(f"count={self.count}: expected at least 1")
        if not 1 <= self.least <= self.most:
            problems.append(f"least={self.least}, most={self.most}: expected 1 <= least <= most")
        if not 0 <= self.gap <= 10:
            problems.append(f"gap={self.gap}: expected 0 to 10 seconds")
        if self.noise is not None and not -30 <= self.noise <= 120:
            problems.append(f"noise={self.noise}: expected -30 to 120 decibels, or null for none")
        if problems:
            raise ConfigError(problems)


def join(parts: Sequence[Recording], how: Joining) -> list[Recording]:
    """Connected recordings; which parts each has depends on (seed, its number) alone. DataError without parts."""
    if not parts:
        raise DataError("there are no recordings to join; expected at least one")
    speakers: dict[str, list[Recording]] = {}
    for part in parts:
        speakers.setdefault(part.speaker, []).append(part)
    names = sorted(speakers)
    return [_joined(speakers, names, how, number) for number in range(how.count)]


def _joined(speakers: dict[str, list[Recording]], names: list[str], how: Joining, number: int) -> Recording:
    bits = np.random.PCG64([how.seed, number])

    def below(count: int) -> int:
        return int(bits.random_raw()) % count

    def share() -> float:
        return int(bits.random_raw()) / 2**64

    own = speakers[names[below(len(names))]]
    chosen = [own[below(len(own))] for _ in range(how.least + below(how.most - how.least + 1))]
    gaps = [how.gap * share() for _ in range(len(chosen) + 1)]
    above = None if how.noise is None else how.noise + _RANGE * share()
    seed = below(2**62)

    def load() -> Sound:
        return _laid([part.load() for part in chosen], gaps, above, seed)

    stamp = hashlib.sha256(repr((how, number, [(one.name, one.stamp) for one in chosen])).encode()).hexdigest()[:16]
    return Recording(
        f"joined recording {number + 1}", " ".join(one.text for one in chosen), load, stamp, chosen[0].speaker
    )


def _laid(sounds: Sequence[Sound], gaps: Sequence[float], above: float | None, seed: int) -> Sound:
    """Sounds with pauses before, between and after them, and noise `above` decibels below."""
    import torch

    rates = {sound.rate for sound in sounds}
    if len(rates) > 1:
        raise DataError(f"recordings of {sorted(rates)} samples per second were to be joined; expected one rate")
    (rate,) = rates
    pieces: list[Tensor] = []
    times: list[tuple[float, float]] = []
    at = 0
    for sound, gap in zip(sounds, gaps[:-1], strict=True):
        pause = round(gap * rate)
        pieces += [torch.zeros(pause), sound.samples]
        times.append(((at + pause) / rate, (at + pause + len(sound.samples)) / rate))
        at += pause + len(sound.samples)
    samples = torch.cat([*pieces, torch.zeros(round(gaps[-1] * rate))])
    if above is not None:
        power = float(torch.cat([sound.samples for sound in sounds]).square().mean())
        noise = torch.randn(len(samples), generator=torch.Generator().manual_seed(seed))
        samples = samples + noise * (math.sqrt(power) * 10 ** (-above / 20))
    return Sound(samples, rate, tuple(times))
