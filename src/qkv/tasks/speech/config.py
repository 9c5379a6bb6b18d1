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
    """Which recordings to train on and which to validate on.

    test: recordings that the run must not learn from; equal sounds are looked for in `train`, and reported.
    cleaning: its max_length counts the tokens of a text; longest: seconds of a recording. More than `allow_dropped` may
    not be left out, for whatever reason. batch_frames: the most frames and tokens in a batch, padding included.
    valid: recordings that are never trained on; without, `held_out`, a fraction, of those in `train`.
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
    """An encoder that reads frames through two convolutions (`qkv.spec.Frames`) and a decoder that writes.

    position: how the self-attention of both knows distances; sinusoidal: waves are added to what is read, instead or
    as well.
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
        self.spec(8, 8, ctc=True)  # a shape that contradicts itself is refused with the recipe

    def spec(self, mels: int, vocab: int, ctc: bool) -> spec.Transformer:
        """The spec of this shape for frames of so many bands; labels: whether the encoder answers by itself too."""
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
    """An encoder alone that names what it hears: each text is a class, and the mean over the positions chooses it.

    stem, stem_norm, stem_residual: convolutions over time and pitch in place of those over time, as in
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
        self.spec(8, 8)  # a shape that contradicts itself is refused with the recipe

    def spec(self, mels: int, classes: int) -> spec.Transformer:
        """The spec of this shape for frames of so many bands, and so many classes."""
        both = SpeechTransformer(
            self.d_model, self.heads, self.d_ff, self.layers, 1, self.activation, self.position, self.position is None
        )
        encoder = both.spec(mels, 8, ctc=False).encoder
        assert encoder is not None
        reads = spec.Frames(mels, self.stem, self.stem_norm, self.stem_residual)
        return spec.Transformer(replace(encoder, input=reads), None, spec.Classes(classes))


@dataclass(frozen=True)
class CtcConfig:
    """Labels at each position of the encoder, beside the decoder (Watanabe et al. 2017).

    weight: their share of the loss, the decoder having the rest; 0: there are none. decoding: their share in the rank
    of an answer; 1: they alone answer.
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
    """The recipe of an audio classifier, which learns the text of each recording as its class."""

    task: Literal["audio-classification"]
    data: AudioData
    training: TrainingConfig
    model: AudioClassifier = AudioClassifier()


OWN_DATA = "one manifest of recordings, one folder or one .npz file"
"""The files that `find_source` takes."""


def find_source(files: Sequence[Path]) -> dict[str, Any] | None:
    """Return the data source that a user's files are, as a recipe writes it; None if they are none."""
    return {"kind": "recordings", "path": str(files[0])} if len(files) == 1 else None
