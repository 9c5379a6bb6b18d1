"""Spoken digits: the recordings of the Free Spoken Digit Dataset, and the corresponding pairs."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from qkv.data.audio.recordings import Recording, recording_from_file, recordings_from_arrays
from qkv.data.corpora.fetch import find_local, read_content
from qkv.data.corpora.info import CorpusInfo, CorpusSelection
from qkv.data.text.pairs import Pair
from qkv.errors import CorpusError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TAKES = {"test": range(5), "valid": range(5, 10), "train": range(10, 50), "all": range(50)}
"""The takes of each split, out of 50 that each speaker has of each digit; the test split is that of the authors."""


def load_spoken_digits(info: CorpusInfo, split: str, speakers: tuple[str, ...] = ()) -> list[Recording]:
    """Load the recordings of some takes by some speakers (by default all).

    From QKV_DATA: the corpus in one file, fsdd/fsdd_8k.npz, or a folder fsdd/recordings as it is published.
    Raises CorpusError if neither exists, or for an unknown speaker or split.
    """
    if split not in TAKES:
        raise CorpusError(f"{info.name} has no split {split!r}; expected one of {', '.join(TAKES)}")
    if strange := [one for one in speakers if one not in SPEAKERS]:
        raise CorpusError(f"{info.name} has no speaker {strange[0]!r}; expected some of {', '.join(SPEAKERS)}")
    chosen = {
        f"{digit}_{speaker}_{take}" for digit in range(10) for speaker in speakers or SPEAKERS for take in TAKES[split]
    }
    found = {Path(one.name).stem: one for one in _load_folder() or _load_npz(info)}
    if missing := sorted(chosen - set(found)):
        raise CorpusError(f"{info.name} lacks {len(missing):,} recordings, such as {missing[0]}.wav: copy it again")
    return [found[name] for name in sorted(chosen)]


def read_digit_pairs(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read the names of the recordings, and the words in them."""
    return [(one.name, one.text) for one in load_spoken_digits(info, selection.split)]


def _load_folder() -> list[Recording]:
    folder = Path(os.environ.get("QKV_DATA") or os.devnull, "fsdd", "recordings")
    return [
        recording_from_file(path, WORDS[int(path.name[0])], path.stem.split("_")[1])
        for path in sorted(folder.glob("[0-9]_*_*.wav"))
    ]


def _load_npz(info: CorpusInfo) -> list[Recording]:
    (file,) = info.files
    with np.load(io.BytesIO(read_content(file, info.name)), allow_pickle=False) as arrays:
        samples, offsets, label, take = (arrays[name] for name in ("pcm", "offsets", "label", "take"))
        speakers = arrays["speakers"][arrays["speaker"]].tolist()
    words = [WORDS[digit] for digit in label]
    names = [f"{file.path}/{digit}_{who}_{number}" for digit, who, number in zip(label, speakers, take, strict=True)]
    return recordings_from_arrays(str(find_local(file)), samples, offsets, words, 8000, speakers, names)
