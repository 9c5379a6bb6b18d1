"""Audio recordings and their transcripts: from manifests, the layouts of LibriSpeech and Common Voice, or an npz file.

Nothing is read before a recording's audio is loaded, and its problems are reported then. This module needs no torch
until then.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qkv.data.text.pairs import read_lines
from qkv.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

_AUDIO_COLUMNS = ("path", "audio", "file", "file_name", "filename", "audio_filepath", "wav")
_TEXT_COLUMNS = ("sentence", "text", "transcript", "transcription", "normalized_text")
_SPEAKER_COLUMNS = ("client_id", "speaker", "speaker_id")
_AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")


class AudioClip(NamedTuple):
    """Samples (samples,) float32 in about -1..1, with `sample_rate` samples per second.

    times: the start and the end of each word in seconds, if known.
    """

    samples: Tensor
    sample_rate: int
    word_times: tuple[tuple[float, float], ...] = ()


class Recording(NamedTuple):
    """An audio recording and its transcript. load reads it, and raises DataError if it is not audio.

    stamp: changes whenever the audio changes, and is known without reading it.
    """

    name: str
    text: str
    load: Callable[[], AudioClip]
    fingerprint: str
    speaker: str = ""


def load_recordings(path: Path, audio: str | None = None, text: str | None = None) -> list[Recording]:
    """List the recordings of a manifest (.tsv, .csv, .jsonl), a folder that contains one or has LibriSpeech's layout,
    or an
    .npz file. audio, text: the columns of a manifest, or keys, with the file and its transcript.

    Raises DataError for a folder or file of another kind.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a manifest, an .npz file or a folder: check the path")
    if path.is_dir():
        if found := sorted(path.glob("**/*.trans.txt")):
            return [one for transcripts in found for one in _read_librispeech(transcripts)]
        path = _find_manifest(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    folders = [path.parent, path.parent / "clips"]  # Common Voice keeps its audio in clips
    rows = _read_manifest(path, audio, text)
    speakers = next((name for name in _SPEAKER_COLUMNS if rows and name in rows[0]), None)
    found_recordings = []
    for row in rows:
        file = next((place for folder in folders if (place := folder / row["\0audio"]).exists()), Path(row["\0audio"]))
        found_recordings.append(recording_from_file(file, row["\0text"], str(row.get(speakers or "", ""))))
    return found_recordings


def _find_manifest(folder: Path) -> Path:
    found = sorted(one for one in folder.iterdir() if one.suffix in (".tsv", ".csv", ".jsonl", ".npz"))
    if len(found) == 1:
        return found[0]
    what = f"several manifests ({', '.join(one.name for one in found)}): name the one" if found else "no manifest"
    raise DataError(
        f"{folder} holds {what}; expected one .tsv, .csv or .jsonl file with the columns path and text, or files "
        "*.trans.txt as in LibriSpeech"
    )


def _read_librispeech(transcripts: Path) -> Iterator[Recording]:
    for number, line in enumerate(read_lines(transcripts), 1):
        name, space, text = line.partition(" ")
        if not space:
            raise DataError(f"{transcripts}, line {number} is {line!r}; expected a name, a space and the transcript")
        places = [transcripts.parent / f"{name}{form}" for form in _AUDIO_SUFFIXES]
        yield recording_from_file(
            next((one for one in places if one.exists()), places[0]), text, name.partition("-")[0]
        )


def _read_manifest(path: Path, audio: str | None, text: str | None) -> list[dict[str, Any]]:
    """Read the rows of a manifest by column, with the file under "\0audio" and the text under "\0text"."""
    names = [column for column in (audio, text) if column is not None]
    if path.suffix == ".jsonl":
        rows = [_parse_object(line, f"{path}, line {number}") for number, line in enumerate(read_lines(path), 1)]
    elif path.suffix in (".tsv", ".csv"):
        table = list(_read_table(path))
        head = [column.strip().lower() if column not in names else column for column in table[0]]
        known = {*_AUDIO_COLUMNS, *_TEXT_COLUMNS, *names}
        if len(head) == 2 and not known & {*head}:  # no header, but a file and its text in each row
            head, table = ["path", "text"], [[], *table]
        rows = []
        for number, cells in enumerate(table[1:], 2):
            if len(cells) != len(head):
                raise DataError(f"{path}, row {number} has {len(cells)} columns, expected {len(head)} as its head has")
            rows.append(dict(zip(head, cells, strict=True)))
    else:
        raise DataError(f"{path} is not a manifest; expected a file .tsv, .csv, .jsonl or .npz, or a folder")
    chosen = _choose_column(path, rows, audio, _AUDIO_COLUMNS), _choose_column(path, rows, text, _TEXT_COLUMNS)
    for number, row in enumerate(rows, 1):
        for column, name in zip(chosen, ("\0audio", "\0text"), strict=True):
            if not isinstance(row.get(column), str):
                raise DataError(f"{path}: entry {number} has no text under {column!r}; expected one in each")
            row[name] = row[column]
    return rows


def _read_table(path: Path) -> Iterator[list[str]]:
    if path.suffix == ".tsv":
        yield from (line.split("\t") for line in read_lines(path))
    else:
        yield from csv.reader(read_lines(path), strict=True)


def _parse_object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); expected one object on each line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where} contains a {type(record).__name__}; expected an object with a file and its text")
    return record


def _choose_column(path: Path, rows: list[dict[str, Any]], given: str | None, candidates: Sequence[str]) -> str:
    there = list(rows[0]) if rows else []
    found = given if given is not None else next((name for name in candidates if name in there), None)
    if found is None or found not in there:
        expected = given if given is not None else f"one of {', '.join(candidates)}"
        raise DataError(
            f"{path} has the columns {', '.join(there) or 'of an empty file'}; expected {expected}: name it "
            "in the recipe (audio, text)"
        )
    return found


def recording_from_file(path: Path, text: str, speaker: str = "") -> Recording:
    """Return the recording in an audio file."""

    def load() -> AudioClip:
        from qkv.data.audio import features

        return AudioClip(*features.read_native(path))

    try:
        status = path.stat()
        stamp = f"{status.st_size}:{status.st_mtime_ns}"
    except OSError:
        stamp = "missing"  # loading it reports the problem
    return Recording(str(path), text, load, stamp, speaker)


def _read_npz(path: Path) -> list[Recording]:
    """Read a file of numpy: samples (all,), int16 or floats; offsets (recordings + 1,); text (recordings,); rate."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path} cannot be read as arrays ({error}); expected what numpy.savez writes") from error
    if missing := [name for name in ("samples", "offsets", "text", "rate") if name not in arrays]:
        raise DataError(
            f"{path} has no {' and no '.join(missing)}, but {', '.join(arrays)}; expected samples (all recordings one "
            "after the other), offsets (where each begins, and the end), text and rate (samples per second)"
        )
    texts = [str(text) for text in arrays["text"]]
    speakers = [str(one) for one in arrays["speaker"]] if "speaker" in arrays else [""] * len(texts)
    return recordings_from_arrays(str(path), arrays["samples"], arrays["offsets"], texts, int(arrays["rate"]), speakers)


def recordings_from_arrays(
    name: str,
    samples: npt.NDArray[Any],
    offsets: npt.NDArray[Any],
    texts: Sequence[str],
    sample_rate: int,
    speakers: Sequence[str],
    names: Sequence[str] = (),
) -> list[Recording]:
    """Split recordings that are concatenated in `samples`, int16 or floats in about -1..1, at `offsets`.

    Raises DataError for arrays that do not fit together.
    """
    fits = samples.ndim == 1 and (samples.dtype == np.int16 or samples.dtype.kind == "f")
    bounds = offsets.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets) == len(texts) + 1 == len(speakers) + 1
    if not (fits and bounds and offsets[0] >= 0 and offsets[-1] <= len(samples) and (np.diff(offsets) >= 0).all()):
        raise DataError(
            f"{name}: samples {samples.dtype} {samples.shape}, offsets {offsets.dtype} {offsets.shape} and "
            f"{len(texts)} texts do not fit together; expected int16 or floats one after the other, rising offsets, "
            "one more than there are texts"
        )
    stamp = hashlib.sha256(np.ascontiguousarray(samples).tobytes()).hexdigest()[:16]
    called = names or [f"{name}, recording {number}" for number in range(1, len(texts) + 1)]
    return [
        Recording(
            called[number], text, _ArraySlice(samples, int(start), int(end), sample_rate), stamp, speakers[number]
        )
        for number, (text, start, end) in enumerate(zip(texts, offsets[:-1], offsets[1:], strict=True))
    ]


@dataclass(frozen=True)
class _ArraySlice:
    """Reads a slice of an array as audio."""

    samples: npt.NDArray[Any]
    start: int
    end: int
    sample_rate: int

    def __call__(self) -> AudioClip:
        import torch

        piece = self.samples[self.start : self.end]
        scale = 2.0**15 if piece.dtype == np.int16 else 1.0
        return AudioClip(torch.from_numpy(piece.astype(np.float32) / scale), self.sample_rate)
