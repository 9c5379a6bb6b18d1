"""The recipes of speech recognition and audio classification. This file needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from qkv import presets, spec
from qkv.data.audio.sources import AudioSource, FeatureConfig, SpectrogramAugmentation
from qkv.data.cleaning import CleaningConfig
from qkv.decoding.config import DecodingConfig
from qkv.errors import ConfigError
from qkv.tasks.config import Pretrained, TokenizerConfig, check_tokenizer
from qkv.training.config import TrainingConfig


@dataclass(frozen=True)
class AudioData:
    """The recordings for training and validation.

    test: recordings that the run must not train on; equal audio in `train` is reported.
    cleaning: its max_length counts the tokens of a transcript; max_seconds: of a recording. A run stops if more than
    `max_dropped_fraction` are left out for any reason. batch_frames: the most frames and tokens in a batch, with
    padding.
    valid: recordings that are never trained on; without it, the fraction `held_out` of those in `train`.
    valid_recordings: how many of `valid` each validation decodes.
    """

    train: tuple[AudioSource, ...]
    valid: AudioSource | None = None
    held_out: float = 0.1
    test: tuple[AudioSource, ...] = ()
    features: FeatureConfig = FeatureConfig()
    augmentation: SpectrogramAugmentation | None = SpectrogramAugmentation()
    cleaning: CleaningConfig = CleaningConfig()
    max_seconds: float = 30.0
    batch_frames: int = 12_000
    valid_recordings: int = 300

    def __post_init__(self) -> None:
        problems = []
        if not self.train:
            problems.append("train=[]: expected at least one source of recordings to train on")
        how, scaling = self.augmentation, self.features.normalization
        if how is not None and (how.min_snr_db is not None or how.gain_db) and scaling != "peak":
            given = f"min_snr_db={how.min_snr_db}, gain_db={how.gain_db}"
            problems.append(f"augmentation: {given} were given; they need features.normalization=peak, not {scaling}")
        if not 0 < self.max_seconds <= 3600:
            problems.append(f"max_seconds={self.max_seconds}: expected more than 0 and at most 3,600 seconds")
        for name in ("batch_frames", "valid_recordings"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: expected at least 1")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class SpeechTransformer:
    """An encoder that reads frames through two convolutions (`qkv.spec.Frames`) and a decoder that predicts text.

    position: the positions in the self-attentions of both; sinusoidal: add sinusoids to the input, instead or as well.
    """

    d_model: int = 144
    heads: int = 4
    d_ff: int = 576
    encoder_layers: int = 6
    decoder_layers: int = 2
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu"
    position: spec.Rotary | spec.RelativeBias | spec.Alibi | None = spec.RelativeBias(32, 128)
    sinusoidal: bool = False
    tied: bool = False

    def __post_init__(self) -> None:
        self.spec(8, 8, ctc=True)  # a contradictory shape is refused together with the recipe

    def spec(self, mels: int, vocab: int, ctc: bool) -> spec.Transformer:
        """Build the spec of this shape for `mels` frequency bands; ctc: whether the encoder has a CTC head."""
        shape = presets.encoder_decoder(
            source_vocab=8,
            target_vocab=vocab,
            d_model=self.d_model,
            heads=self.heads,
            d_ff=self.d_ff,
            layers=(self.encoder_layers, self.decoder_layers),
            feed_forward=spec.FeedForward(self.d_ff, self.activation),
            position=self.position,
            sinusoidal=self.sinusoidal,
            tied=self.tied,
        )
        assert shape.encoder is not None
        encoder = replace(shape.encoder, input=spec.Frames(mels))
        return replace(shape, encoder=encoder, encoder_head=spec.Labels(vocab) if ctc else None)


@dataclass(frozen=True)
class AudioClassifier:
    """An encoder that classifies recordings: each transcript is a class, predicted from the mean over the positions.

    stem, stem_norm, stem_residual: convolutions over time and frequency in place of those over time, as in
    `qkv.spec.Frames`.
    """

    d_model: int = 96
    heads: int = 4
    d_ff: int = 288
    layers: int = 4
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu"
    position: spec.Rotary | spec.RelativeBias | spec.Alibi | None = spec.RelativeBias(32, 128)
    stem: tuple[spec.Convolution, ...] = ()
    stem_norm: Literal["none", "batch"] = "none"
    stem_residual: bool = False

    def __post_init__(self) -> None:
        self.spec(8, 8)  # a contradictory shape is refused together with the recipe

    def spec(self, mels: int, classes: int) -> spec.Transformer:
        """Build the spec of this shape for `mels` frequency bands and a number of classes."""
        both = SpeechTransformer(
            self.d_model, self.heads, self.d_ff, self.layers, 1, self.activation, self.position, self.position is None
        )
        encoder = both.spec(mels, 8, ctc=False).encoder
        assert encoder is not None
        reads = spec.Frames(mels, self.stem, self.stem_norm, self.stem_residual)
        return spec.Transformer(replace(encoder, input=reads), None, spec.Classes(classes))


@dataclass(frozen=True)
class CtcConfig:
    """CTC labels at each position of the encoder, besides the decoder (Watanabe et al. 2017).

    weight: their share of the loss, the rest being the decoder's; 0: no labels. decoding: their share of the score of a
    hypothesis; 1: only they are decoded.
    """

    weight: float = 0.3
    decoding_weight: float = 0.3

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)}: expected a share, 0 to 1"
            for name in ("weight", "decoding_weight")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.weight == 0 and self.decoding_weight:
            problems.append(
                f"decoding={self.decoding_weight} with weight=0: labels that are not learned cannot answer; set it to 0"
            )
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class SpeechConfig:
    """The recipe of a speech recognizer."""

    task: Literal["speech-recognition"]
    data: AudioData
    training: TrainingConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: SpeechTransformer | Pretrained = field(default_factory=SpeechTransformer)
    ctc: CtcConfig = CtcConfig()
    decoding: DecodingConfig = DecodingConfig()

    def __post_init__(self) -> None:
        check_tokenizer(self.model, self.tokenizer, TokenizerConfig())


@dataclass(frozen=True)
class AudioClassificationConfig:
    """The recipe of an audio classifier, whose classes are the transcripts of the recordings."""

    task: Literal["audio-classification"]
    data: AudioData
    training: TrainingConfig
    model: AudioClassifier = AudioClassifier()


OWN_DATA = "one manifest of recordings, one folder or one .npz file"
"""The files that `find_source` accepts."""


def find_source(files: Sequence[Path]) -> dict[str, Any] | None:
    """Return the data source that a user's files are, as a recipe writes it; None if they are none."""
    return {"kind": "recordings", "path": str(files[0])} if len(files) == 1 else None
