"""The task hear: recordings to frames, labels read beside a decoder, and models that write or name what they hear."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn import functional

from qkv import config, inputs, spec, tasks, view
from qkv.cli import main
from qkv.data import corpora
from qkv.data.audio import frames, synthesis
from qkv.data.audio.concatenation import ConcatenationConfig, concatenate_recordings
from qkv.data.audio.features import LogMel
from qkv.data.audio.recordings import AudioClip, Recording, load_recordings, recording_from_file
from qkv.data.audio.sources import FeatureConfig, Fsdd, Recordings, SpectrogramAugmentation, SpokenNumbers
from qkv.data.cleaning import CleaningConfig
from qkv.decoding.ctc import ctc_greedy_decode, ctc_log_probabilities, forced_align
from qkv.errors import ConfigError, CorpusError, DataError, MissingExtraError, SpecError, StorageError, VocabularyError
from qkv.generation_rules import GenerationRules
from qkv.models import build
from qkv.tasks.speech.classification import LabelEncoder
from qkv.tasks.speech.config import AudioClassifier, AudioData
from qkv.tasks.speech.training import build_training_setup, joint_ctc_loss, load_data
from qkv.tasks.speech.transcription import build_log_mel
from qkv.training.reporters import NullReporter

RATE = 4000
PITCHES = {"low": 250, "mid": 700, "high": 1500}
FEATURES = LogMel(8, RATE, 128, 64)


def make_tone(word: str, seconds: float = 0.2, seed: int = 0) -> np.ndarray[Any, Any]:
    """A word of a language of three pitches, with some noise."""
    times = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.01, len(times))
    sounding = times > 0.06  # what sounds all the time is nothing once each band has mean 0
    return (0.5 * np.sin(2 * np.pi * PITCHES[word] * times) * sounding + noise).astype(np.float32)


def synthesize(text: str, seed: int = 0) -> np.ndarray[Any, Any]:
    pieces = [piece for word in text.split() for piece in (make_tone(word, seed=seed), np.zeros(200, np.float32))]
    return np.concatenate(pieces)


TEXTS = [" ".join(words) for count in (1, 2) for words in itertools.product(PITCHES, repeat=count)]


def write_npz(path: Path, texts: list[str], repeats: int = 1, **other: Any) -> Path:
    sounds = [synthesize(text, seed) for seed in range(repeats) for text in texts]
    offsets = np.cumsum([0, *map(len, sounds)])
    np.savez(path, samples=np.concatenate(sounds), offsets=offsets, text=np.array(texts * repeats), rate=RATE, **other)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings to train on, others to validate on, and files of two of them."""
    soundfile = pytest.importorskip("soundfile")
    write_npz(tmp_path / "train.npz", TEXTS, 3)
    write_npz(tmp_path / "valid.npz", TEXTS[:6])
    for name in ("low", "high mid"):
        soundfile.write(tmp_path / f"{name}.wav", synthesize(name, 9), RATE)
    return tmp_path


def build_tree(folder: Path) -> dict[str, Any]:
    return {
        "task": "speech-recognition",
        "data": {
            "train": [{"kind": "recordings", "path": str(folder / "train.npz")}],
            "valid": {"kind": "recordings", "path": str(folder / "valid.npz")},
            "features": {"mels": 8, "sample_rate": RATE, "n_fft": 128, "hop_length": 64},
            "augmentation": {"time_stretch": 0.1, "frequency_warp": 0.02, "frequency_width": 1, "time_width": 1},
            "batch_frames": 400,
        },
        "tokenizer": {"kind": "word"},
        "model": {
            "kind": "speech_transformer",
            "d_model": 24,
            "heads": 2,
            "d_ff": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
        },
        "training": {
            "max_steps": 8,
            "dropout": 0.1,
            "label_smoothing": 0.0,
            "optimizer": {"learning_rate": 0.01},
            "validation": {"every": 4, "metric": "wer"},
        },
        "ctc": {"weight": 0.5, "decoding_weight": 0.5},
        "decoding": {"method": {"kind": "beam", "size": 2}},
    }


def build_recipe(folder: Path, *changes: str) -> tasks.SpeechConfig:
    return config.from_dict(tasks.SpeechConfig, config.apply_overrides(build_tree(folder), changes))


def build_classifier_recipe(folder: Path, *changes: str) -> tasks.AudioClassificationConfig:
    tree = {name: node for name, node in build_tree(folder).items() if name in ("data", "training")}
    tree["task"] = "audio-classification"
    return config.from_dict(tasks.AudioClassificationConfig, config.apply_overrides(tree, changes))


# Recordings


def test_every_layout_gives_the_same_recordings(folder: Path) -> None:
    low, two = folder / "low.wav", folder / "high mid.wav"
    (folder / "m").mkdir()
    (folder / "voice" / "clips").mkdir(parents=True)
    (folder / "libri" / "7" / "1").mkdir(parents=True)
    manifests = {
        "m/a.tsv": f"sentence\tpath\tclient_id\nlow\t{low}\t7\nhigh mid\t{two}\t7\n",
        "m/b.csv": f'path,speaker,text\n{low},7,low\n"{two}",7,high mid\n',
        "m/c.jsonl": "".join(
            json.dumps({"audio": str(path), "text": path.stem, "speaker": 7}) + "\n" for path in (low, two)
        ),
        "m/d.tsv": f"{low}\tlow\n{two}\thigh mid\n",
        "voice/train.tsv": "client_id\tpath\tsentence\n7\tlow.wav\tlow\n7\thigh mid.wav\thigh mid\n",
        "libri/7/1/7-1.trans.txt": "7-1-0000 low\n7-1-0001 high mid\n",
    }
    for name, text in manifests.items():
        (folder / name).write_text(text)
    for path, number in ((low, "0000"), (two, "0001")):
        shutil.copy(path, folder / "voice" / "clips")
        shutil.copy(path, folder / "libri" / "7" / "1" / f"7-1-{number}.wav")
    expected = [synthesize("low", 9), synthesize("high mid", 9)]
    for name in ("m/a.tsv", "m/b.csv", "m/c.jsonl", "m/d.tsv", "voice", "libri"):
        found = load_recordings(folder / name)
        assert [one.text for one in found] == ["low", "high mid"], name
        assert {one.speaker for one in found} == ({""} if name == "m/d.tsv" else {"7"}), name
        for one, samples in zip(found, expected, strict=True):
            sound = one.load()
            assert sound.sample_rate == RATE and np.abs(sound.samples.numpy() - samples).max() < 1e-3
    (one,) = load_recordings(write_npz(folder / "one.npz", ["mid low"], speaker=np.array(["x"])))
    assert one.text == "mid low" and one.speaker == "x"
    assert torch.equal(one.load().samples, torch.from_numpy(synthesize("mid low")))


def test_a_manifest_that_says_nothing_is_refused_in_words(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "text.tsv").write_text("id\tlocale\tage\n1\ten\t2\n")
    (folder / "torn.tsv").write_text("path\ttext\nlow.wav\n")
    (folder / "bad.jsonl").write_text("{\n")
    (folder / "list.jsonl").write_text("[1]\n")
    (folder / "number.jsonl").write_text('{"path": "low.wav", "text": 3}\n')
    (folder / "x.trans.txt").write_text("only-a-name\n")
    (folder / "odd.wav").write_text("")
    np.savez(folder / "short.npz", samples=np.zeros(3, np.float32), offsets=np.array([0, 9]), text=["a"], rate=1000)
    np.savez(folder / "less.npz", samples=np.zeros(3))
    (folder / "broken.npz").write_bytes(b"PK no")
    for name, words in {
        "absent": "does not exist",
        "empty": "holds no manifest",
        "text.tsv": "columns id, locale, age; expected one of path",
        "torn.tsv": "row 2 has 1 columns, expected 2",
        "bad.jsonl": "line 1 is not JSON",
        "list.jsonl": "contains a list",
        "number.jsonl": "entry 1 has no text under 'text'",
        "odd.wav": "is not a manifest",
        "short.npz": "do not fit together",
        "less.npz": "has no offsets and no text and no rate",
        "broken.npz": "cannot be read as arrays",
    }.items():
        with pytest.raises(DataError, match=words):
            load_recordings(folder / name)
    with pytest.raises(DataError, match="a name, a space and the transcript"):
        load_recordings(folder)
    (folder / "x.trans.txt").unlink()
    with pytest.raises(DataError, match=r"several manifests \(bad.jsonl"):
        load_recordings(folder)
    with pytest.raises(DataError, match="expected duration"):
        (folder / "whole.tsv").write_text("path\ttext\nlow.wav\tlow\n")
        load_recordings(folder / "whole.tsv", text="duration")


def test_joined_recordings_are_the_same_each_time_and_know_when_words_are_said() -> None:
    def part(word: str, speaker: str) -> Recording:
        return Recording(word, word, lambda: AudioClip(torch.from_numpy(make_tone(word)), RATE), word, speaker)

    parts = [part(word, speaker) for word in PITCHES for speaker in ("a", "b")]
    how = ConcatenationConfig(20, min_parts=2, max_parts=4, max_pause=0.25, min_snr_db=20.0)
    first, second = concatenate_recordings(parts, how), concatenate_recordings(parts, how)
    other = concatenate_recordings(
        parts, ConcatenationConfig(20, min_parts=2, max_parts=4, max_pause=0.25, min_snr_db=20.0, seed=2)
    )
    assert [(one.text, one.fingerprint) for one in first] == [(one.text, one.fingerprint) for one in second]
    assert [one.text for one in first] != [one.text for one in other]
    assert {len(one.text.split()) for one in first} == {2, 3, 4}
    for one, again in zip(first[:5], second, strict=False):
        sound = one.load()
        assert torch.equal(sound.samples, again.load().samples)
        for (start, end), word in zip(sound.word_times, one.text.split(), strict=True):
            heard = sound.samples[round(start * RATE) : round(end * RATE)].numpy()
            assert np.corrcoef(heard, make_tone(word))[0, 1] > 0.9
        silence = sound.samples[: round(sound.word_times[0][0] * RATE)]
        speech = sum(make_tone(word).astype(float).var() for word in one.text.split()) / len(sound.word_times)
        if len(silence) > 100:
            assert 18 < 10 * math.log10(speech / float(silence.var())) < 52
    clean = concatenate_recordings(parts, ConcatenationConfig(1, max_pause=0.0, min_snr_db=None))[0]
    assert torch.equal(clean.load().samples, torch.cat([torch.from_numpy(make_tone(w)) for w in clean.text.split()]))
    with pytest.raises(DataError, match="no recordings to join"):
        concatenate_recordings([], how)
    with pytest.raises(ConfigError, match="min_parts=3, max_parts=2.*\n?.*") as problems:
        ConcatenationConfig(0, min_parts=3, max_parts=2, max_pause=-1, min_snr_db=500)
    assert len(problems.value.problems) == 4


def test_digits_are_split_by_take_and_by_speaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "fsdd" / "recordings"
    place.mkdir(parents=True)
    monkeypatch.setenv("QKV_DATA", str(tmp_path))
    with pytest.raises(CorpusError, match="QKV_DATA"):
        Fsdd().list_recordings()
    for digit, speaker, take in itertools.product(range(10), corpora.fsdd.SPEAKERS, range(50)):
        (place / f"{digit}_{speaker}_{take}.wav").touch()
    parts = {split: Fsdd(split).list_recordings() for split in ("train", "valid", "test")}
    assert {split: len(part) for split, part in parts.items()} == corpora.find_corpus("fsdd").splits
    names = [one.name for part in parts.values() for one in part]
    assert len(set(names)) == 3000
    assert {Path(one.name).stem.split("_")[2] for one in parts["test"]} == set("01234")
    theo = Fsdd("all", ("theo",)).list_recordings()
    assert len(theo) == 500 and {one.speaker for one in theo} == {"theo"}
    assert {one.text for one in theo} == set(corpora.fsdd.WORDS)
    assert len(corpora.load_pairs("fsdd", "test")) == 300
    with pytest.raises(CorpusError, match="no speaker 'tehe'"):
        Fsdd("all", ("tehe",)).list_recordings()
    (place / "3_theo_7.wav").unlink()
    with pytest.raises(CorpusError, match="lacks 1 recordings, such as 3_theo_7"):
        Fsdd("valid").list_recordings()


@pytest.mark.skipif(
    not Path(os.environ.get("QKV_DATA") or "/nowhere", "fsdd").exists(), reason="needs fsdd in the folder QKV_DATA"
)
def test_the_real_digits_are_all_there() -> None:
    found = Fsdd("test").list_recordings()
    assert len(found) == 300 and len({one.name for one in found}) == 300
    sound = found[0].load()
    assert (
        sound.sample_rate == 8000
        and 0.1 < len(sound.samples) / 8000 < 3
        and 0.01 < float(sound.samples.abs().max()) <= 1
    )


# Frames


def make_preparation(**changes: Any) -> frames.SpeechPreprocessor:
    given = {
        "features": FEATURES,
        "tokenizer": LabelEncoder(("high", "low", "mid")),
        "cleaning": CleaningConfig(),
        "max_seconds": 1.0,
    }
    return frames.SpeechPreprocessor(**{**given, "fits_ctc": False, "normalize_text": str.strip, **changes})


def make_recording(text: str, samples: Tensor, rate: int = RATE, stamp: str = "1") -> Recording:
    return Recording(f"a recording of {text}", text, lambda: AudioClip(samples, rate), stamp)


def test_what_cannot_be_used_is_counted_and_named(tmp_path: Path) -> None:
    good = [make_recording(word, torch.from_numpy(make_tone(word))) for word in PITCHES] * 40
    bad = [
        make_recording("", torch.from_numpy(make_tone("low"))),
        make_recording("low", torch.zeros(2 * RATE)),
        recording_from_file(tmp_path / "absent.wav", "mid"),
        make_recording("never", torch.from_numpy(make_tone("low"))),
    ]
    with pytest.raises(DataError, match=r"3.2% of the examples would be dropped, 1.0% may be") as told:
        make_preparation()([*good, *bad])
    for words in ("without a text, or one that is not known: 2", "longer than 1 seconds: 1", "it does not exist"):
        assert words in str(told.value)
    store, kept, said = make_preparation(cleaning=CleaningConfig(max_dropped_fraction=0.05))([*good, *bad])
    assert len(store) == len(kept) == 120 and "4 dropped" in said
    with pytest.raises(DataError, match="no example is left"):
        make_preparation()(bad)


def test_the_store_is_kept_found_again_and_made_anew_for_other_sounds(tmp_path: Path) -> None:
    sounds = [make_recording(word, torch.from_numpy(make_tone(word))) for word in PITCHES]
    store, kept, _ = make_preparation()(sounds, tmp_path)
    assert kept == [0, 1, 2] and [[*map(int, ids)] for _, ids in (store[n] for n in range(3))] == [[1], [2], [0]]
    assert (store[0][0] - FEATURES(torch.from_numpy(make_tone("low")))).abs().max() < 0.01
    assert store.lengths.tolist() == [[12, 2]] * 3
    again, _, told = make_preparation()([make_recording(word, torch.zeros(9)) for word in PITCHES], tmp_path)
    assert "kept from before" in told and torch.equal(again[1][0], store[1][0])
    assert len(list(tmp_path.iterdir())) == 1
    make_preparation()(
        [make_recording(word, torch.from_numpy(make_tone(word)), stamp="2") for word in PITCHES], tmp_path
    )
    make_preparation(features=LogMel(9, RATE, 128, 64))(sounds, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    folder = next(tmp_path.iterdir())
    np.save(folder / "ids.npy", np.zeros(1, np.int64))
    with pytest.raises(DataError, match="is inconsistent; delete that folder"):
        frames.FrameStore.open(folder)
    (folder / "ids.npy").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read"):
        frames.FrameStore.open(folder)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be created"):
        make_preparation()(sounds, tmp_path / "file")


def test_other_rates_are_resampled_and_told() -> None:
    fast = make_recording("low", torch.from_numpy(make_tone("low")).repeat_interleave(2), 2 * RATE)
    slow = make_recording("mid", torch.from_numpy(make_tone("mid"))[::2].contiguous(), RATE // 2)
    store, _, told = make_preparation()([fast, slow, make_recording("low", torch.from_numpy(make_tone("low")))])
    assert "1 recordings of 8,000 samples per second resampled to 4,000" in told
    assert "1 recordings of 2,000 samples per second resampled to 4,000; they have nothing above 1,000 Hz" in told
    assert [frames.shape[1] for frames, _ in (store[n] for n in range(3))] == [12, 12, 12]


def test_a_sound_needs_room_for_its_labels() -> None:
    class Letters(LabelEncoder):
        def encode_batch(self, lines: Any) -> list[list[int]]:
            return [[3] * len(line) for line in lines]

    tokenizer = Letters(("a", "b", "c", "d"))
    short = torch.from_numpy(make_tone("low"))[: 64 * 6]  # three positions: two equal labels and a blank between
    everything = CleaningConfig(max_dropped_fraction=1.0)
    ready = make_preparation(tokenizer=tokenizer, fits_ctc=True, cleaning=everything)
    assert ready([make_recording("dd", short), make_recording("ddd", short)])[1] == [0]
    assert len(make_preparation(tokenizer=tokenizer)([make_recording("ddd", short)])[1]) == 1


def test_a_recipe_says_how_loudness_is_scaled() -> None:
    sound = torch.from_numpy(make_tone("mid"))
    for scaling in ("utterance", "peak"):
        features = FeatureConfig(8, RATE, 128, 64, normalization=scaling)
        assert torch.equal(build_log_mel(features)(sound), LogMel(8, RATE, 128, 64, normalization=scaling)(sound))


def test_frames_change_at_random_by_torchs_seed_alone() -> None:
    sound = FEATURES(torch.from_numpy(make_tone("mid", 1.0)))
    nothing = SpectrogramAugmentation(0.0, 0.0, 0, 0, 0, 0)
    assert torch.equal(frames.augment_frames(sound, nothing), sound)
    how = SpectrogramAugmentation(time_stretch=0.3, frequency_warp=0.2, frequency_width=3, time_width=9)
    torch.manual_seed(5)
    some = [frames.augment_frames(sound, how) for _ in range(20)]
    torch.manual_seed(5)
    assert all(torch.equal(frames.augment_frames(sound, how), before) for before in some)
    lengths = {changed.shape[1] for changed in some}
    assert len(lengths) > 5 and min(lengths) >= 62 * math.exp(-0.3) - 1 and max(lengths) <= 62 * math.exp(0.3) + 1
    torch.manual_seed(6)
    ramp = torch.arange(40.0).expand(8, -1)
    stretched = frames.augment_frames(ramp, SpectrogramAugmentation(0.5, 0.0, 0, 0, 0, 0))
    torch.testing.assert_close(stretched[0], torch.linspace(0, 39, stretched.shape[1]))
    higher = frames.augment_frames(ramp.T.contiguous(), SpectrogramAugmentation(0.0, 0.5, 0, 0, 0, 0))
    factor = float(higher[1, 0])
    torch.testing.assert_close(higher[:, 0], (torch.arange(40.0) * factor).clamp(max=39))
    with pytest.raises(ConfigError, match="time_fraction"):
        SpectrogramAugmentation(time_fraction=2)
    with pytest.raises(ConfigError, match="min_snr_db=81: expected at most 80 decibels"):
        SpectrogramAugmentation(min_snr_db=81)


# Labels


def enumerate_ctc_paths(text: tuple[int, ...], length: int, labels: int) -> list[tuple[int, ...]]:
    """Every way to read a text (0 is blank)."""
    every = itertools.product(range(labels), repeat=length)
    return [path for path in every if tuple(k for k, _ in itertools.groupby(path) if k) == text]


@pytest.mark.parametrize("text", [(1,), (1, 2), (2, 2), (1, 2, 1)])
def test_labels_sum_over_every_path_and_stand_on_the_best(text: tuple[int, ...]) -> None:
    torch.manual_seed(len(text))
    logits = torch.randn(1, 5, 3) * 2
    values = logits[0].log_softmax(-1)
    ways = {
        path: sum(float(values[place, label]) for place, label in enumerate(path))
        for path in enumerate_ctc_paths(text, 5, 3)
    }
    (total,) = ctc_log_probabilities(logits, [text], 0)
    assert total == pytest.approx(math.log(sum(map(math.exp, ways.values()))), abs=1e-4)
    best = max(ways, key=lambda path: ways[path])
    runs, at = [], 0
    for label, run in itertools.groupby(best):
        length = len(list(run))
        runs += [(at, at + length)] if label else []
        at += length
    assert forced_align(logits[0], text, 0) == runs


def test_labels_in_a_batch_and_what_has_no_room() -> None:
    logits = torch.randn(2, 6, 4)
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    both = ctc_log_probabilities(logits, [[1, 2], [3]], 0, mask)
    alone = [ctc_log_probabilities(logits[:1], [[1, 2]], 0)[0], ctc_log_probabilities(logits[1:, :3], [[3]], 0)[0]]
    assert both == pytest.approx(alone, abs=1e-5)
    assert ctc_log_probabilities(logits[:1, :2], [[1, 1]], 0) == [-math.inf]
    assert ctc_log_probabilities(logits[:1], [[]], 0)[0] == pytest.approx(
        float(logits[0].log_softmax(-1)[:, 0].sum()), 1e-4
    )
    for text in ([1, 1], []):
        with pytest.raises(DataError, match="were to be found at 2 positions"):
            forced_align(logits[0, :2], text, 0)
    assert ctc_greedy_decode(logits[:1], 0) == [[k for k, _ in itertools.groupby(logits[0].argmax(-1).tolist()) if k]]


def listener(vocab: int = 7) -> Any:
    torch.manual_seed(3)
    from qkv.tasks.speech.config import SpeechTransformer

    return build(SpeechTransformer(16, 2, 16, 1, 1).spec(4, vocab, ctc=True)).eval()


def test_an_encoder_answers_beside_its_decoder() -> None:
    model = listener()
    assert spec.from_json(spec.to_json(model.spec)) == model.spec
    with pytest.raises(SpecError, match="encoder_head was given without"):
        spec.Transformer(model.spec.encoder, None, spec.Labels(3), encoder_head=spec.Labels(3))
    source, target = torch.randn(2, 4, 11), torch.tensor([[1, 4, 5], [1, 6, 0]])
    mask = torch.arange(11) < torch.tensor([[11], [6]])
    memory = model.encode(source, mask)
    assert torch.equal(model.decode(target, memory), model(source, target, mask))
    assert model.compute_encoder_logits(memory).shape == (2, 6, 7)
    alone = model.compute_encoder_logits(model.encode(source[1:, :, :6]))
    torch.testing.assert_close(model.compute_encoder_logits(memory)[1:, :3], alone)
    model.encoder_head = None
    with pytest.raises(SpecError, match="encoder has no head"):
        model.compute_encoder_logits(memory)


def test_the_joint_loss_is_both_losses_by_weight() -> None:
    model = listener()
    batch = frames.collate_speech([(torch.randn(4, 12), [4, 5]), (torch.randn(4, 9), [6])], _Special(), [0, 1])
    assert batch.source is not None and batch.source_mask is not None and batch.target is not None
    written, plain = joint_ctc_loss(0, 0.0, 0.0)(model, batch)
    logits = model(batch.source, batch.target, batch.source_mask)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
    torch.testing.assert_close(written, expected)
    torch.testing.assert_close(plain, expected)
    memory = model.encode(batch.source, batch.source_mask)
    read = -sum(ctc_log_probabilities(model.compute_encoder_logits(memory), [[4, 5], [6]], 0, memory.mask))
    both, _ = joint_ctc_loss(0, 0.3, 0.0)(model, batch)
    assert both.item() == pytest.approx(0.7 * expected.item() + 0.3 * read, rel=1e-5)


class _Special:
    pad, bos, eos = 0, 1, 2


# From recordings to answers


def test_a_listener_learns_and_is_asked_from_the_command_line(folder: Path) -> None:
    plainly = ("training.max_steps=60", "data.augmentation=null", "training.dropout=0", "training.validation.every=60")
    learned = tasks.train(build_recipe(folder, *plainly), folder=folder / "run", reporter=NullReporter())
    assert learned.result.metrics["wer"] < 30
    files = [str(folder / "low.wav"), str(folder / "high mid.wav")]
    runner = tasks.load(folder / "run")
    assert isinstance(runner, tasks.TextGenerator) and isinstance(learned.model, tasks.TextGenerator)
    assert runner.frontend == learned.model.frontend
    assert [one.text for one, *_ in runner.predict_ranked(files)] == [
        one.text for one, *_ in learned.model.predict_ranked(files)
    ]
    looked = runner.look(files[1])
    assert isinstance(looked.input, tasks.AudioInput) and len(looked.input.samples) == len(synthesize("high mid"))
    assert " ".join(word.text for word in looked.word_times) == looked.answer.text
    axis = view.build_run(runner, files[1]).source
    assert (
        axis is not None and axis.words == looked.word_times and any(name.endswith(" s high") for name in axis.tokens)
    )
    assert all(0 <= word.start < word.end <= len(looked.input.samples) / RATE + 0.05 for word in looked.word_times)
    shell = CliRunner()
    found = shell.invoke(main, ["run", str(folder / "run"), files[0], str(folder / "absent.wav"), files[1]])
    assert found.exit_code == 2 and "absent.wav does not exist" in found.stderr
    assert found.stdout.splitlines() == [next(runner.predict_ranked(files[:1]))[0].text]
    found = shell.invoke(main, ["evaluate", str(folder / "run"), str(folder / "valid.npz")])
    assert found.exit_code == 0 and "wer" in found.stdout and "exact_match" in found.stdout, found.output
    found = shell.invoke(main, ["evaluate", str(folder / "run"), "--corpus", "multi30k"])
    assert found.exit_code == 2 and "has no recordings" in found.stderr
    drawn, page = folder / "words.svg", ["--html", str(folder / "page.html")]
    found = shell.invoke(main, ["look", str(folder / "run"), files[1], *page, "--plot-words", str(drawn)])
    assert found.exit_code == 0, found.output
    named = [str(one.text) for one in ElementTree.parse(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert [word.text for word in looked.word_times] == [name for name in named if not name.endswith(" s")]
    found = shell.invoke(main, ["look", "pronunciation", "cat", *page, "--plot-words", str(drawn)])
    assert found.exit_code == 2 and "needs a model that transcribes speech" in found.stderr
    assert len(next(runner.predict_ranked(files[:1], tasks.override_method(runner.decoding, n_best=2)))) == 2


def test_answers_come_from_the_decoder_the_labels_or_both(folder: Path) -> None:
    learned = tasks.train(build_recipe(folder, "training.max_steps=20"), folder=folder / "run", reporter=NullReporter())
    runner = learned.model
    assert isinstance(runner, tasks.TextGenerator)
    sounds = [torch.from_numpy(synthesize(text, 5)) for text in TEXTS]
    hearing = runner.frontend
    assert hearing is not None
    for share in (0.0, 0.4, 1.0):
        asked = replace(runner, frontend=replace(hearing, ctc_weight=share))
        together = [one[0] for one in asked.transcribe(sounds)]
        alone = [next(asked.transcribe([one]))[0] for one in sounds]
        assert [one.tokens for one in together] == [one.tokens for one in alone]
        for left, right in zip(together, alone, strict=True):
            assert left.score == pytest.approx(right.score, abs=1e-3)


def test_a_run_that_was_stopped_ends_with_the_same_bytes(folder: Path) -> None:
    class Stops(NullReporter):
        def on_step_end(self, step: int, progress: float) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    whole, halves = folder / "whole", folder / "halves"
    tasks.train(build_recipe(folder), folder=whole, reporter=NullReporter())
    stopped = tasks.train(build_recipe(folder), folder=halves, reporter=Stops())
    assert stopped.result.stop_reason == "interrupted" and (halves / "tokens").is_dir()
    tasks.train(build_recipe(folder), folder=halves, resume=True, reporter=NullReporter())
    assert (whole / "model.safetensors").read_bytes() == (halves / "model.safetensors").read_bytes()
    assert not (halves / "tokens").exists()


def test_a_model_goes_on_with_other_recordings_of_the_same_words(folder: Path) -> None:
    tasks.train(build_recipe(folder), folder=folder / "run", reporter=NullReporter())
    start = f"model={{kind: pretrained, path: {folder / 'run'}}}"
    further = tasks.train(build_recipe(folder, start, "tokenizer={}"), folder=folder / "more", reporter=NullReporter())
    assert further.result.step == 8
    with pytest.raises(ConfigError, match="data.features"):
        tasks.train(
            build_recipe(folder, start, "tokenizer={}", "data.features.mels=9"),
            folder=folder / "x",
            reporter=NullReporter(),
        )
    np.savez(
        folder / "other.npz", samples=synthesize("low"), offsets=np.array([0, 1000]), text=np.array(["loud"]), rate=RATE
    )
    other = f"data.train=[{{kind: recordings, path: {folder / 'other.npz'}}}]"
    with pytest.raises(VocabularyError, match="loud"):
        tasks.train(build_recipe(folder, start, "tokenizer={}", other), folder=folder / "y", reporter=NullReporter())


def test_a_published_listener_goes_on_with_recordings(folder: Path) -> None:
    long = "data.features.seconds=1.5", "ctc={weight: 0, decoding_weight: 0}", "training.max_steps=2"
    runner = tasks.train(build_recipe(folder, *long), folder=folder / "run", reporter=NullReporter()).model
    assert isinstance(runner, tasks.TextGenerator)
    first = runner.target_tokenizer.encode("high")
    replace(
        runner,
        generation=GenerationRules(runner.target_tokenizer.bos, (runner.target_tokenizer.eos,), (), tuple(first)),
    ).save(folder / "p")
    start = f"model={{kind: pretrained, path: {folder / 'p'}}}", "tokenizer={}"
    further = build_recipe(folder, *start, "data.features={}", "data.augmentation.time_stretch=0.5")
    taught = build_training_setup(further, load_data(further), folder / "l", folder / "t", False)
    batch = taught.collate([0, 4])
    assert batch.source is not None and batch.source.shape == (2, 8, int(1.5 * RATE) // 64) and batch.target is not None
    bos, eos = runner.target_tokenizer.bos, runner.target_tokenizer.eos
    two = runner.target_tokenizer.encode(TEXTS[4])
    assert batch.target[1].tolist() == [bos, *first, *two] and batch.labels[1].tolist() == [
        frames.IGNORE_INDEX,
        *two,
        eos,
    ]
    learned = tasks.train(further, folder=folder / "more", reporter=NullReporter())
    again = tasks.load(folder / "more")
    assert (
        isinstance(again, tasks.TextGenerator)
        and again.generation is not None
        and again.generation.forced_prefix == tuple(first)
    )
    assert again.frontend == runner.frontend and learned.result.step == 8
    answers = [one.text for one, *_ in again.predict_ranked([str(folder / "low.wav")])]
    assert answers[0].startswith("high")  # what was told to come first still does
    shorter = build_recipe(folder, *start, "data.features.seconds=0.3")
    with pytest.raises(DataError, match=r"longer than 0\.3 seconds"):
        tasks.train(shorter, folder=folder / "x", reporter=NullReporter())
    with pytest.raises(ConfigError, match="data.features"):
        tasks.train(
            build_recipe(folder, *start, "data.features.seconds=1.6"), folder=folder / "x", reporter=NullReporter()
        )
    with pytest.raises(ConfigError, match="reads text; expected a model that reads audio"):
        tasks.train(
            build_recipe(folder, "model={kind: pretrained, path: pronunciation}", "tokenizer={}"), folder=folder / "y"
        )


def test_noise_is_put_under_the_frames_and_not_over_them() -> None:
    features = LogMel(40, RATE, 256, 128, normalization="peak")
    quiet = features(torch.from_numpy(make_tone("low", seed=1)) * 0.1)
    torch.manual_seed(0)
    noisy = frames.augment_frames(quiet, SpectrogramAugmentation(0.0, 0.0, 0, 0, 0, 0, min_snr_db=30))
    drawn = float((quiet.max() - noisy.min()) * 40)  # a unit is four decades of power, 40 dB
    assert 28 < drawn < 82 and bool((noisy >= quiet - 1e-5).all())
    assert float((noisy.max() - quiet.max()).abs()) < 0.01, "the loudest stays as loud"
    louder = frames.augment_frames(quiet, SpectrogramAugmentation(0.0, 0.0, 0, 0, 0, 0, gain_db=12)) - quiet
    assert louder.std() < 1e-5 and 0 < abs(float(louder.mean())) * 40 <= 12
    # powers are added: what is as loud as the noise becomes twice as loud, 3 dB
    level = frames._add_noise(torch.tensor([[1.0, 0.0]]), 40.0)[0, 1]
    assert float(level) * 40 == pytest.approx(3.0, abs=6.0) and float(level) > 0
    with pytest.raises(
        ConfigError, match="min_snr_db=30, gain_db=0.0 were given; they need features.normalization=peak"
    ):
        AudioData((SpokenNumbers(),), SpokenNumbers("valid"), augmentation=SpectrogramAugmentation(min_snr_db=30))


STEM = (spec.Convolution(4, 5, 2), spec.Convolution(4, 3, 1), spec.Convolution(6, 3, 3))


@torch.no_grad()
def test_a_stem_hears_pitch_and_time_and_padding_changes_nothing() -> None:
    choice = AudioClassifier(16, 2, 16, 1, stem=STEM, stem_norm="batch", stem_residual=True).spec(10, 3)
    assert choice.encoder is not None and isinstance(choice.encoder.input, spec.Frames)
    assert choice.encoder.input.frames_per_position == 6 and spec.from_json(spec.to_json(choice)) == choice
    torch.manual_seed(0)
    reader = inputs.build_embedding(choice.encoder)
    reader(torch.randn(8, 10, 40))  # what the norms remember
    reader.eval()
    sound = torch.randn(1, 10, 23)
    alone = reader(sound)
    assert alone.shape == (1, 4, 16)
    padded, real = functional.pad(sound, (0, 14), value=7.0), torch.arange(37)[None] < 23
    found, positions = reader(padded, mask=real), reader.position_mask(real)
    assert positions is not None and positions.tolist() == [[True] * 4 + [False] * 3]
    torch.testing.assert_close(found[positions], alone[0], rtol=1e-4, atol=1e-5)
    higher = sound.roll(1, dims=1)
    assert not torch.allclose(reader(higher), alone, atol=1e-2)
    with pytest.raises(SpecError, match="kernel_size=4 was given; it must be odd"):
        spec.Frames(10, (spec.Convolution(4, 4, 2),))
    with pytest.raises(SpecError, match="stem_norm=batch was given, and no stem"):
        spec.Frames(10, stem_norm="batch")


@pytest.mark.parametrize("stem", ["", ", stem: [{channels: 4, kernel_size: 3, stride: 4}], stem_norm: batch"])
def test_a_classifier_names_what_it_hears(stem: str, folder: Path) -> None:
    pytest.importorskip("soundfile").write(folder / "mid.wav", make_tone("mid", seed=4), RATE)
    write_npz(folder / "train.npz", list(PITCHES), 8)
    write_npz(folder / "valid.npz", list(PITCHES))
    change = (
        f"model={{d_model: 16, heads: 2, d_ff: 16, layers: 1{stem}}}",
        "training.max_steps=40",
        "training.validation={every: 40, metric: accuracy, mode: max}",
    )
    learned = tasks.train(build_classifier_recipe(folder, *change), folder=folder / "run", reporter=NullReporter())
    assert learned.result.metrics["accuracy"] == 100
    found = CliRunner().invoke(main, ["run", str(folder / "run"), str(folder / "mid.wav")])
    assert found.stdout == "mid\n", found.output
    found = CliRunner().invoke(main, ["evaluate", str(folder / "run"), str(folder / "valid.npz")])
    assert found.exit_code == 0 and "100.00" in found.stdout, found.output
    looked = tasks.load(folder / "run").look(str(folder / "mid.wav"))
    assert isinstance(looked.input, tasks.AudioInput)
    heard = looked["encoder.0.self_attention"].keys * looked.input.seconds_per_position
    assert heard == pytest.approx(len(looked.input.samples) / RATE, abs=2 * looked.input.seconds_per_position)
    with pytest.raises(ConfigError, match="accuracy needs mode max"):
        tasks.train(
            build_classifier_recipe(folder, *change, "training.validation.mode=min"),
            folder=folder / "x",
            reporter=NullReporter(),
        )
    write_npz(folder / "train.npz", ["low"])
    with pytest.raises(DataError, match="name 1 classes"):
        tasks.train(build_classifier_recipe(folder, *change), folder=folder / "y", reporter=NullReporter())


def test_recipes_that_contradict_themselves_or_leak_are_told(folder: Path) -> None:
    for change, words in (
        ("ctc={weight: 0, decoding: 0.5}", "labels that are not learned cannot answer"),
        ("data.train=[]", "at least one source of recordings"),
        ("data.features.n_fft=1", "n_fft=1: expected 2"),
        ("data.max_seconds=0", "max_seconds=0"),
        ("model.heads=5", "not a multiple of heads=5"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_recipe(folder, change)
    for change, words in (
        ("training.validation.metric=bleu", "expected one of loss, wer, exact_match"),
        ("training.validation.mode=max", "wer needs mode min"),
    ):
        with pytest.raises(ConfigError, match=words):
            tasks.train(build_recipe(folder, change), folder=folder / "run", reporter=NullReporter())
    train = build_recipe(folder).data.train[0]
    assert isinstance(train, Recordings)
    same = load_data(build_recipe(folder, f"data.valid.path={train.path}"))
    assert any("leakage: 36 of 36" in note for note in same.notes), same.notes
    shown = CliRunner().invoke(main, ["data", "report", "spoken-digits"])
    assert shown.exit_code in (0, 2)
    assert {"spoken-digits", "spoken-digits-classification"} <= set(tasks.list_recipes())


def test_numbers_are_said_by_voices_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    parts = {split: SpokenNumbers(split, 30).list_recordings() for split in ("train", "valid", "test")}
    voices = [{one.speaker.partition("+")[2] for one in part} for part in parts.values()]
    assert not voices[0] & voices[1] and not voices[0] & voices[2] and not voices[1] & voices[2]
    again = SpokenNumbers("train", 30).list_recordings()
    assert [(one.text, one.fingerprint) for one in again] == [(one.text, one.fingerprint) for one in parts["train"]]
    sound = parts["test"][0].load()
    assert (
        sound.sample_rate == 22050
        and 0.3 < len(sound.samples) / sound.sample_rate < 3
        and float(sound.samples.abs().max()) > 0.1
    )
    said = {0: "zero", 15: "fifteen", 40: "forty", 71: "seventy one", 300: "three hundred", 912: "nine hundred twelve"}
    assert all(synthesis.spell_number(number) == words for number, words in said.items())
    with pytest.raises(DataError, match="no voice 'xx'"):
        synthesis.synthesize("one", synthesis.Voice("xx", 150, 50))
    with pytest.raises(ConfigError, match="count=0, below=1001"):
        SpokenNumbers(count=0, below=1001)


def test_without_espeak_a_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    synthesis._load_library.cache_clear()
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qkv\[speech\]'"):
        SpokenNumbers().list_recordings()
    synthesis._load_library.cache_clear()
