"""Recordings as frames and tokens, in two files that are memory-mapped, and the augmentation of frames."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qkv.data.audio.features import LogMel, mask_spectrogram, resample
from qkv.data.audio.recordings import AudioClip, Recording
from qkv.data.audio.sources import DYNAMIC_RANGE_DB, SpectrogramAugmentation
from qkv.data.batch import IGNORE_INDEX, Batch, Ids, SupportsSpecialTokens, collate
from qkv.data.cleaning import CleaningConfig, CleaningReport, IssueCount, SupportsEncode
from qkv.errors import DataError, StorageError

_FORMAT_VERSION = 1
_DECIBELS_PER_UNIT = 40  # decibels for a difference of 1 in frames with "peak" normalisation


@dataclass(frozen=True)
class FrameStore:
    """Examples of (frames, target ids).

    frames (all frames, mels) float16 concatenates those of all examples, ids (tokens,) int64 the tokens;
    bounds (examples + 1, 2) int64 are the offsets of the frames and the tokens of each example.
    """

    frames: npt.NDArray[np.float16]
    ids: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, number: int) -> tuple[Tensor, Ids]:
        """Return the frames (mels, frames) float32 and the tokens, without special ones, of an example."""
        (start, first), (end, last) = self.bounds[number], self.bounds[number + 1]
        return torch.from_numpy(self.frames[start:end].astype(np.float32)).T, self.ids[first:last]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The frames of each example, and its tokens with the one special one: (examples, 2)."""
        lengths: npt.NDArray[np.int64] = np.diff(self.bounds, axis=0) + np.array([0, 1])
        return lengths

    @classmethod
    def open(cls, folder: Path) -> FrameStore:
        """Map a store that `SpeechPreprocessor` wrote. Raises DataError if it is missing, truncated or altered."""
        try:
            frames, ids, bounds = (
                np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("frames", "ids", "bounds")
            )
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"the store of frames {folder} cannot be read ({error}); {_REBUILD_ADVICE}") from error
        whole = frames.ndim == 2 and frames.dtype == np.float16 and ids.dtype == bounds.dtype == np.int64
        if not (whole and bounds.ndim == 2 and len(bounds) and (bounds[-1] == [len(frames), len(ids)]).all()):
            raise DataError(f"the store of frames {folder} is inconsistent; {_REBUILD_ADVICE}")
        return cls(np.asarray(frames), np.asarray(ids), np.asarray(bounds))


_REBUILD_ADVICE = "delete that folder, it is made again from the recordings"


@dataclass(frozen=True)
class SpeechPreprocessor:
    """The conversion of recordings to examples: features, the tokens of their transcripts, and the selection of
    examples.

    normalize_text: applied to a transcript before tokenization. fits_ctc: whether the tokens must fit into the
    positions,
    two frames each, with blanks between equal ones (CTC, Graves et al. 2006).
    """

    features: LogMel
    tokenizer: SupportsEncode
    cleaning: CleaningConfig
    max_seconds: float
    fits_ctc: bool
    normalize_text: Callable[[str], str]

    def __call__(self, recordings: Sequence[Recording], cache: Path | None = None) -> tuple[FrameStore, list[int], str]:
        """Return the examples, the indices of their recordings, and notes about them.

        With a `cache` folder the store is kept there under a name that depends on everything that determines its
        content.
        Raises DataError if more examples are dropped than allowed, or none are left.
        """
        folder = None if cache is None else cache / f"frames-{self._cache_key(recordings)}"
        if folder is not None and folder.exists():
            kept: list[int] = np.load(folder / "kept.npy", allow_pickle=False).tolist()
            return FrameStore.open(folder), kept, f"{len(kept):,} recordings, kept from before in {folder}"
        with tempfile.TemporaryDirectory(prefix="qkv-frames-", dir=_make_folder(cache)) as beside:
            place = Path(beside) / "whole"
            place.mkdir()
            kept, report = self._write(recordings, place)
            if folder is None:
                store = FrameStore.open(place)
                return FrameStore(np.array(store.frames), np.array(store.ids), np.array(store.bounds)), kept, report
            if not folder.exists():
                os.rename(place, folder)
        return FrameStore.open(folder), kept, report

    def _write(self, recordings: Sequence[Recording], place: Path) -> tuple[list[int], str]:
        report, rates = CleaningReport(), dict.fromkeys((self.features.sample_rate,), 0)
        bounds, ids, kept = [(0, 0)], [], []
        seconds = 0.0
        texts = [self.normalize_text(one.text) for one in recordings]
        tokens = self.tokenizer.encode_batch(texts)
        try:
            with open(place / "raw", "wb") as raw:
                for number, (one, own) in enumerate(zip(recordings, tokens, strict=True)):
                    frames, reason, sound = self._compute_frames(one, texts[number], own)
                    if frames is None or sound is None:
                        report.dropped.setdefault(reason, IssueCount()).add(number + 1, one.name)
                        continue
                    raw.write(np.ascontiguousarray(frames.T.numpy().astype(np.float16)).tobytes())
                    rates[sound.sample_rate] = rates.get(sound.sample_rate, 0) + 1
                    bounds.append((bounds[-1][0] + frames.shape[1], bounds[-1][1] + len(own)))
                    ids += own
                    kept.append(number)
                    seconds += len(sound.samples) / sound.sample_rate
            report.kept = len(kept)
            report.check(self.cleaning)
            flat = np.memmap(place / "raw", np.float16, "r", shape=(bounds[-1][0], self.features.mels))
            for name, array in (("frames", flat), ("ids", ids), ("bounds", bounds), ("kept", kept)):
                np.save(place / f"{name}.npy", np.asarray(array, dtype=None if name == "frames" else np.int64))
            del flat
            (place / "raw").unlink()
        except OSError as error:
            raise StorageError(f"cannot write {place}: {error}; free some space or choose another folder") from error
        return kept, _describe(report, rates, self.features.sample_rate, seconds)

    def _compute_frames(self, one: Recording, text: str, own: list[int]) -> tuple[Tensor | None, str, AudioClip | None]:
        """Compute the frames of a recording, or say why there are none; also return its stored audio."""
        if not text.strip() or not own:
            return None, "without a text, or one that is not known", None
        if len(own) > self.cleaning.max_length:
            return None, f"a text longer than {self.cleaning.max_length} tokens", None
        try:
            sound = one.load()
            samples = resample(sound.samples, sound.sample_rate, self.features.sample_rate)
        except DataError as error:
            return None, f"unreadable ({str(error).replace(one.name, 'it')})", None
        longest = min(self.max_seconds, self.features.seconds or self.max_seconds)
        if len(samples) > longest * self.features.sample_rate:
            return None, f"longer than {longest:g} seconds", None
        samples = pad_to_window(samples, self.features)
        frames = self.features(samples)
        room = -(-frames.shape[1] // 2)
        needed = len(own) + sum(left == right for left, right in zip(own, own[1:], strict=False))
        if self.fits_ctc and needed > room:
            return None, "too short for its text", None
        return frames, "", sound

    def _cache_key(self, recordings: Iterable[Recording]) -> str:
        head = [_FORMAT_VERSION, self.features, self.cleaning, self.max_seconds, self.fits_ctc, self.tokenizer.digest]
        hashed = hashlib.sha256(repr(head).encode())
        for one in recordings:
            hashed.update(repr((one.name, self.normalize_text(one.text), one.fingerprint)).encode())
        return hashed.hexdigest()[:32]


def pad_to_window(samples: Tensor, features: LogMel) -> Tensor:
    """Append silence to samples that are too short for a frame."""
    missing = max(features.n_fft, features.hop_length) - len(samples)
    return torch.nn.functional.pad(samples, (0, missing)) if missing > 0 else samples


def _describe(report: CleaningReport, rates: dict[int, int], rate: int, seconds: float) -> str:
    notes = [f"{seconds / 60:.1f} minutes of sound. {report}"]
    for stored, count in sorted(rates.items()):
        if stored != rate and count:
            above = f"; they have nothing above {stored // 2:,} Hz" if stored < rate else ""
            notes.append(f"  {count:,} recordings of {stored:,} samples per second resampled to {rate:,}{above}")
    return "\n".join(notes)


def _make_folder(cache: Path | None) -> Path | None:
    if cache is not None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{cache} could not be created: {error}; choose a writable folder") from error
    return cache


def collate_speech(
    examples: Sequence[tuple[Tensor, Ids]],
    tokenizer: SupportsSpecialTokens,
    index: Sequence[int],
    augmentation: SpectrogramAugmentation | None = None,
    *,
    forced_prefix: Sequence[int] = (),
    fixed_length: bool = False,
) -> Batch:
    """Collate examples of frames (mels, frames) and target ids into a batch: source (batch, mels, frames) float32.

    Augmentation draws from torch's own generator. forced_prefix: tokens that every output begins with, which are not
    labels. fixed_length: whether augmentation keeps the number of frames.
    """
    source, mask = pad_frames(augment_sources(examples, augmentation, fixed_length))
    texts = collate([(None, [*forced_prefix, *ids]) for _, ids in examples], None, tokenizer, index)
    texts.labels[:, : len(forced_prefix)] = IGNORE_INDEX
    return Batch(source, mask, texts.target, texts.labels, texts.index)


def augment_sources(
    examples: Sequence[tuple[Tensor, Ids]],
    augmentation: SpectrogramAugmentation | None = None,
    fixed_length: bool = False,
) -> list[Tensor]:
    """Return the frames of examples, augmented if a configuration is given.

    fixed_length: then crop the frames, or repeat the last one, to the original length.
    """
    if augmentation is None:
        return [frames for frames, _ in examples]
    changed = [augment_frames(frames, augmentation) for frames, _ in examples]
    if not fixed_length:
        return changed
    places = [torch.arange(frames.shape[1]) for frames, _ in examples]
    return [one[:, place.clamp(max=one.shape[1] - 1)] for one, place in zip(changed, places, strict=True)]


def pad_frames(sources: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad frames (mels, frames) with zeros to (batch, mels, longest); return them and their mask (batch, longest)
    bool."""
    lengths = torch.tensor([frames.shape[1] for frames in sources])
    source = sources[0].new_zeros(len(sources), sources[0].shape[0], int(lengths.max()))
    for row, frames in enumerate(sources):
        source[row, :, : frames.shape[1]] = frames
    return source, torch.arange(source.shape[2]) < lengths[:, None]


def augment_frames(frames: Tensor, config: SpectrogramAugmentation) -> Tensor:
    """Augment frames (mels, frames) with torch's own generator, see `SpectrogramAugmentation`."""
    if config.time_stretch:
        factor = math.exp(_draw_uniform(-config.time_stretch, config.time_stretch))
        frames = _stretch(frames, round(frames.shape[1] * factor))
    if config.frequency_warp:
        bands = torch.arange(frames.shape[0]) * math.exp(_draw_uniform(-config.frequency_warp, config.frequency_warp))
        frames = _interpolate_columns(frames.T, bands).T
    if config.min_snr_db is not None:
        frames = _add_noise(frames, _draw_uniform(config.min_snr_db, DYNAMIC_RANGE_DB))
    if config.gain_db:
        frames = frames + _draw_uniform(-config.gain_db, config.gain_db) / _DECIBELS_PER_UNIT
    return mask_spectrogram(
        frames,
        frequency_masks=config.frequency_masks,
        frequency_width=config.frequency_width,
        time_masks=config.time_masks,
        time_width=config.time_width,
        time_fraction=config.time_fraction,
    )


def _add_noise(frames: Tensor, snr_db: float) -> Tensor:
    """Add noise to frames with "peak" normalisation, `snr_db` decibels below the loudest, about 2 more or less."""
    noise = frames.max() - snr_db / _DECIBELS_PER_UNIT + 0.05 * torch.randn_like(frames)
    scale = _DECIBELS_PER_UNIT / 10 * math.log(10)  # powers are added, not their logarithms
    return torch.logaddexp(frames * scale, noise * scale) / scale


def _draw_uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _stretch(frames: Tensor, count: int) -> Tensor:
    count = max(2, count)
    return _interpolate_columns(frames, torch.arange(count) * ((frames.shape[1] - 1) / (count - 1)))


def _interpolate_columns(table: Tensor, places: Tensor) -> Tensor:
    """Interpolate the columns of a table (rows, columns) at fractional indices; the last column extends to the end."""
    places = places.clamp(max=table.shape[1] - 1)
    before = places.long()
    share = places - before
    return table[:, before] * (1 - share) + table[:, (before + 1).clamp(max=table.shape[1] - 1)] * share
