"""Synthetic speech: espeak-ng speaks numbers in many voices. The library comes with pip (espeakng-loader) or the
system."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qkv.data.audio.recordings import AudioClip, Recording
from qkv.errors import DataError, MissingExtraError

ACCENTS = ("en", "en-us", "en-gb-scotland")
VARIANTS = {
    "train": ("m1", "m2", "m3", "m5", "m6", "m7", "f1", "f2", "f4", "f5"),
    "valid": ("m4", "f3"),
    "test": ("m8", "linda"),
}
"""The voices of each split: those of the training split do not occur in the others."""

_BELOW_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SYNCHRONOUS, _RATE, _PITCH, _UTF8 = 2, 1, 3, 1  # constants of espeak-ng's speak_lib.h


def spell_number(number: int) -> str:
    """Spell a number from 0 to 999 in words: 342 -> "three hundred forty two"."""
    if number < 20:
        return _BELOW_TWENTY[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f" {_BELOW_TWENTY[number % 10]}" if number % 10 else "")
    return f"{_BELOW_TWENTY[number // 100]} hundred" + (f" {spell_number(number % 100)}" if number % 100 else "")


_CALLBACKS: list[Any] = []  # they must live as long as the library


@dataclass(frozen=True)
class Voice:
    """A speaker: an accent and a variant of espeak-ng's voices, words per minute, and pitch from 0 to 99."""

    name: str
    rate: int
    pitch: int


def generate_spoken_numbers(split: str, count: int, below: int, seed: int) -> list[Recording]:
    """Generate spoken numbers under `below`, each in a voice of the split; the seed determines numbers and voices.

    The audio is not identical each time: espeak-ng varies its output a little.
    Raises MissingExtraError without espeak-ng.
    """
    _load_library()
    found = []
    for number in range(count):
        bits = np.random.PCG64([seed, number, sorted(VARIANTS).index(split)])
        random_integers = [int(bits.random_raw()) for _ in range(5)]
        text = spell_number(random_integers[0] % below)
        name = (
            f"{ACCENTS[random_integers[1] % len(ACCENTS)]}+{VARIANTS[split][random_integers[2] % len(VARIANTS[split])]}"
        )
        voice = Voice(name, 120 + random_integers[3] % 100, 30 + random_integers[4] % 50)
        found.append(Recording(f"{text}, said by {voice}", text, _Utterance(text, voice), str(voice), name))
    return found


@dataclass(frozen=True)
class _Utterance:
    text: str
    voice: Voice

    def __call__(self) -> AudioClip:
        import torch

        samples, rate = synthesize(self.text, self.voice)
        return AudioClip(torch.from_numpy(samples), rate)


def synthesize(text: str, voice: Voice) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int]:
    """Synthesize speech with espeak-ng: samples float32 and their rate per second. Raises DataError if it cannot."""
    library, rate, chunks = _load_library()
    chunks.clear()
    if library.espeak_SetVoiceByName(voice.name.encode()):
        raise DataError(f"espeak-ng has no voice {voice.name!r}; install its data again")
    for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch)):
        library.espeak_SetParameter(parameter, value, 0)
    raw = text.encode()
    library.espeak_Synth(raw, len(raw) + 1, 0, 0, 0, _UTF8, None, None)
    if not chunks:
        raise DataError(f"espeak-ng produced no audio for {text!r}; expected some")
    return np.frombuffer(b"".join(chunks), dtype=np.int16).astype(np.float32) / np.float32(2**15), rate


@cache
def _load_library() -> tuple[Any, int, list[bytes]]:
    """Load the library; return it with its sample rate and the buffer of its output."""
    try:
        loader = importlib.import_module("espeakng_loader")
        path, data = str(loader.get_library_path()), str(loader.get_data_path()).encode()
    except ImportError:
        path, data = ctypes.util.find_library("espeak-ng") or "", None
    if not path:
        raise MissingExtraError(
            "generated speech needs espeak-ng, which is not installed; install it with: pip install 'qkv[speech]' (or "
            "apt install espeak-ng), or give recordings of your own (docs/how-to/recognize-speech.md)"
        )
    library = ctypes.CDLL(path)
    rate = int(library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0))
    if rate <= 0:
        raise MissingExtraError(f"{path} finds no data to speak with; install espeak-ng again")
    chunks: list[bytes] = []

    def take(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(take)
    library.espeak_SetSynthCallback(callback)
    _CALLBACKS.append(callback)
    return library, rate, chunks
