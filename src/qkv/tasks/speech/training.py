"""Training of speech recognizers: an encoder reads recordings, its CTC head and a decoder predict transcripts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from qkv.data import Batch, BatchSampler
from qkv.data.audio.features import LogMel
from qkv.data.audio.frames import FrameStore, SpeechPreprocessor, collate_speech
from qkv.data.audio.recordings import Recording
from qkv.data.audio.sources import AudioSource, FeatureConfig, SpectrogramAugmentation, describe_source
from qkv.decoding import Greedy
from qkv.errors import ConfigError, DataError, VocabularyError
from qkv.evaluation import transcript_errors
from qkv.evaluation.words import normalize_transcript
from qkv.models import SequenceModel, build
from qkv.models.transformer import Transformer
from qkv.tasks.config import Pretrained
from qkv.tasks.model_folder import Card
from qkv.tasks.registry import TASKS
from qkv.tasks.speech.config import AudioClassificationConfig, SpeechConfig, SpeechTransformer
from qkv.tasks.speech.transcription import SpeechFrontend, build_log_mel, greedy_decode
from qkv.tasks.text_generator import TextGenerator, find_unknown_symbols
from qkv.tasks.training_setup import (
    TrainingSetup,
    build_tokenizer,
    get_special_tokens,
    load_base_model,
    save_tokenizer,
)
from qkv.tasks.validation import Validator
from qkv.text import Tokenizer
from qkv.training import ValidationResult
from qkv.training.loss import cross_entropy, smoothed_and_plain_cross_entropy

_N_SAMPLES = 4
_MODES: Mapping[str, Literal["min", "max"]] = {"loss": "min", "wer": "min", "exact_match": "max"}


@dataclass(frozen=True)
class SpeechSplits:
    """Recordings for training and validation, not yet read; `notes` are for the user."""

    train: list[Recording]
    valid: list[Recording]
    notes: tuple[str, ...] = ()


def load_data(recipe: SpeechConfig | AudioClassificationConfig) -> SpeechSplits:
    """Find a recipe's recordings. Raises DataError or CorpusError for a manifest that cannot be read."""
    data = recipe.data
    train = [one for origin in data.train for one in _list_recordings(origin)]
    if data.valid is None:  # recordings of the same text stay together
        chosen = set(sorted({one.text for one in train}, key=_hash_text)[: max(1, round(data.held_out * len(train)))])
        texts = {one.text for one in train}
        if len(texts) > len(chosen):
            every, train = ([one for one in train if (one.text in chosen) == side] for side in (True, False))
        else:  # few texts, each recorded often, as for an audio classifier: every nth recording
            step = max(2, round(1 / data.held_out))
            every, train = train[::step], [one for number, one in enumerate(train) if number % step]
        if not train:
            raise DataError("there is one recording; expected at least two, one of them to validate on")
    else:
        every = _list_recordings(data.valid)
    name = "the held-out part of data.train" if data.valid is None else describe_source(data.valid)
    valid = every[:: max(1, len(every) // data.valid_recordings)][: data.valid_recordings]
    notes = [f"{', '.join(map(describe_source, data.train))}: {len(train):,} recordings to train on"]
    notes.append(f"{name}: {len(valid):,} of {len(every):,} recordings to validate on")
    held_out = {name: every} | {describe_source(origin): _list_recordings(origin) for origin in data.test}
    return SpeechSplits(train, valid, (*notes, *_describe_overlap(train, held_out)))


def _hash_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _list_recordings(source: AudioSource) -> list[Recording]:
    found = source.list_recordings()
    if not found:
        raise DataError(f"{describe_source(source)} contains no recordings; expected at least one")
    return found


def _describe_overlap(train: Sequence[Recording], held_out: dict[str, list[Recording]]) -> list[str]:
    """Describe what training and held-out recordings have in common: audio, and speakers."""
    stamps, speakers = {one.name for one in train}, {one.speaker for one in train} - {""}
    notes = []
    for name, recordings in held_out.items():
        if both := [one for one in recordings if one.name in stamps and not one.name.startswith("joined ")]:
            notes.append(
                f"leakage: {len(both):,} of {len(recordings):,} recordings of {name} are also trained on, such as "
                f"{both[0].name}; take them out of one of the two"
            )
        own = {one.speaker for one in recordings} - {""}
        if own and speakers:
            notes.append(f"{name}: {len(own & speakers)} of its {len(own)} speakers are also trained on")
    return notes


def build_training_setup(
    recipe: SpeechConfig, splits: SpeechSplits, run_folder: Path, cache_folder: Path, resume: bool
) -> TrainingSetup:
    """Build the tokenizer, the frames, the initial model and its validator."""
    data = recipe.data
    runner = _build_or_load_model(recipe, splits, run_folder, resume)
    has_ctc = _has_ctc_head(runner.module)
    assert runner.frontend is not None
    written = normalize_transcript if runner.generation is None else _with_leading_space
    prepare = SpeechPreprocessor(
        runner.frontend.features, runner.target_tokenizer, data.cleaning, data.max_seconds, has_ctc, written
    )
    store, _, train_notes = prepare(splits.train, cache_folder)
    checked, kept, valid_notes = prepare(splits.valid)

    def batch(numbers: Sequence[int]) -> Batch:
        return _collate(runner, store, numbers, data.augmentation)

    losses = joint_ctc_loss(
        get_special_tokens(runner).pad, recipe.ctc.weight if has_ctc else 0.0, recipe.training.label_smoothing
    )
    transcript_errors(["a"], ["a"])  # without its library, the first validation would stop the run, and lose it
    validator = _build_validator(runner, checked, [splits.valid[number] for number in kept], recipe)
    sampler = BatchSampler(store.lengths, data.batch_frames, recipe.training.seed)
    notes = [f"to train on: {train_notes}", f"to validate on: {valid_notes}"]
    return TrainingSetup(runner, sampler, batch, validator, _MODES, notes, losses)


def _collate(
    runner: TextGenerator,
    store: FrameStore,
    indices: Sequence[int],
    augmentation: SpectrogramAugmentation | None = None,
) -> Batch:
    assert runner.frontend is not None
    first, alike = runner.rules.forced_prefix, runner.frontend.features.seconds is not None
    return collate_speech(
        [store[number] for number in indices],
        get_special_tokens(runner),
        indices,
        augmentation,
        forced_prefix=first,
        fixed_length=alike,
    )


def _with_leading_space(text: str) -> str:
    """Return a text as a published model writes it after its first tokens: unchanged, after a space."""
    return f" {text.strip()}"


def _has_ctc_head(model: SequenceModel) -> bool:
    """Return whether the encoder of a model has a CTC head."""
    return isinstance(model, Transformer) and model.encoder_head is not None


def joint_ctc_loss(blank: int, weight: float, label_smoothing: float) -> Callable[[Any, Batch], tuple[Tensor, Tensor]]:
    """Return the loss of both heads: (1 - weight) * the decoder's loss + weight * CTC (Watanabe et al. 2017, eq. 9).

    The decoder's cross-entropy without smoothing is returned as well; both are summed over the targets.
    """

    def losses(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        memory = model.encode(batch.source, batch.source_mask)
        written, plain = smoothed_and_plain_cross_entropy(
            model.decode(batch.target, memory), batch.labels, label_smoothing
        )
        if not weight:
            return written, plain
        targets = batch.target[:, 1:] if batch.target is not None else batch.labels
        lengths = (batch.labels >= 0).sum(dim=1) - 1  # the end token is not a label
        read = functional.ctc_loss(
            model.compute_encoder_logits(memory).float().log_softmax(-1).transpose(0, 1),
            targets,
            memory.mask.sum(dim=1),
            lengths,
            blank,
            reduction="sum",
            zero_infinity=True,  # audio that was shortened may be too short for its transcript
        )
        return (1 - weight) * written + weight * read, plain

    return losses


def _build_validator(
    runner: TextGenerator, store: FrameStore, recordings: Sequence[Recording], recipe: SpeechConfig
) -> Validator:
    """Return the validator of some recordings.

    Transcripts come from the CTC labels where there are any, else from the decoder, greedily: validation runs often
    and is compared only with itself.
    """
    references = [normalize_transcript(one.text) for one in recordings]
    batches = [_collate(runner, store, own) for own in BatchSampler(store.lengths, recipe.data.batch_frames).batches(0)]
    decoding = replace(recipe.decoding, method=Greedy())

    def compute_loss(model: SequenceModel, batch: Batch) -> tuple[float, int, list[tuple[int, str]]]:
        assert batch.source is not None
        loss = float(cross_entropy(model(batch.source, batch.target, batch.source_mask), batch.labels))
        tokens = greedy_decode(replace(runner, module=model), batch.source, batch.source_mask, decoding)
        texts = map(runner.target_tokenizer.decode, tokens)
        return loss, batch.target_tokens, list(zip(batch.index.tolist(), texts, strict=True))

    def score(_: SequenceModel, predictions: list[list[tuple[int, str]]]) -> ValidationResult:
        by_number = dict(pair for own in predictions for pair in own)
        answers = [by_number.get(number, "") for number in range(len(references))]
        scores = runner.task.score(answers, [(text,) for text in references])
        pairs = list(zip(references, answers, strict=True))[:_N_SAMPLES]
        samples = [f"{reference}  ->  {answer}" for reference, answer in pairs]
        return ValidationResult({name: one.value for name, one in scores.items()}, samples)

    return Validator(lambda: batches, compute_loss, score)


def _build_or_load_model(recipe: SpeechConfig, splits: SpeechSplits, run_folder: Path, resume: bool) -> TextGenerator:
    """Build or load the initial model with its tokenizer and features: new, or those of a model to fine-tune."""
    task = TASKS["speech-recognition"]
    if isinstance(recipe.model, Pretrained):
        trained = load_base_model(recipe.model, is_speech_model=True)
        assert trained.frontend is not None
        frontend = SpeechFrontend(
            _resolve_features(recipe, trained.frontend.features),
            recipe.ctc.decoding_weight * _has_ctc_head(trained.module),
        )
        _check_vocabulary(splits, trained.target_tokenizer)
        return replace(trained, task=task, decoding=recipe.decoding, card=Card(), frontend=frontend)
    kept = run_folder / "source.tokenizer.json"
    if resume:
        tokenizer = Tokenizer.load(kept)
    else:
        tokenizer = build_tokenizer((normalize_transcript(one.text) for one in splits.train), recipe.tokenizer)
        save_tokenizer(tokenizer, kept)
    features = build_log_mel(recipe.data.features)
    torch.manual_seed(recipe.training.seed)
    assert isinstance(recipe.model, SpeechTransformer)
    model = build(recipe.model.spec(features.mels, tokenizer.size, ctc=recipe.ctc.weight > 0))
    frontend = SpeechFrontend(features, recipe.ctc.decoding_weight)
    return TextGenerator(model, tokenizer, tokenizer, task, recipe.decoding, frontend=frontend)


def _resolve_features(recipe: SpeechConfig, known: LogMel) -> LogMel:
    """Return the features of the model to fine-tune. Raises ConfigError if a recipe sets different ones.

    Audio may be padded with silence to fewer seconds than in the model's own features.
    """
    given = recipe.data.features
    if given == FeatureConfig():
        return known
    features = build_log_mel(given)
    shorter = known.seconds is not None and features.seconds is not None and features.seconds <= known.seconds
    if features != replace(known, seconds=features.seconds if shorter else known.seconds):
        assert isinstance(recipe.model, Pretrained)
        raise ConfigError(
            [
                f"data.features: the model in {recipe.model.path} reads audio as {known}; give those, or "
                f"data.features={{}}"
            ]
        )
    return features


def _check_vocabulary(splits: SpeechSplits, tokenizer: Tokenizer) -> None:
    """Raise VocabularyError for training texts for which a model has no tokens."""
    for one in splits.train:
        if strange := find_unknown_symbols(tokenizer, normalize_transcript(one.text)):
            raise VocabularyError(
                f"{one.name}: {one.text[:60]!r} has {', '.join(map(repr, strange[:3]))}, which the model to fine-tune "
                "never writes; give it similar texts, or train a new model"
            )
