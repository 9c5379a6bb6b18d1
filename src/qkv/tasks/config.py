"""Recipes: everything that makes a trained model, in one tree of frozen choices.

The same tree is written as YAML, changed on the command line (`training.max_minutes=3`) and built in Python. This file
needs no torch.

    task      what is learned: translate, pronounce, summarize (`Recipe`), write (`WriteRecipe`), see (`SeeRecipe`),
              hear (`HearRecipe`)
    data      which examples, from where, and how many tokens make a batch
    text      how text becomes tokens
    model     the shape of the model; its vocabularies come from the text. Or a model to go on from (kind: pretrained)
    training  how it is trained
    decoding  how it answers, unless asked otherwise
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from qkv import presets, spec
from qkv.data.cleaning import CleaningConfig
from qkv.data.corpora import Corpus
from qkv.data.text.documents import TextSource
from qkv.data.text.pairs import Csv, Jsonl, ParallelFiles, Tsv
from qkv.decoding.config import DecodingConfig, LengthLimit, Sample
from qkv.errors import ConfigError, SpecError
from qkv.tasks.image_classification.config import ImageData, ViT
from qkv.tasks.reinforcement_learning.config import DecisionTransformerConfig
from qkv.tasks.speech.config import AudioClassifier, AudioData, CtcConfig, SpeechTransformer
from qkv.text.trainers import TokenizerKind
from qkv.training.config import TrainingConfig

DataSource: TypeAlias = Corpus | ParallelFiles | Tsv | Csv | Jsonl
"""Where examples come from: a split of a named corpus, two files of lines, or one file of pairs (each also .gz)."""


@dataclass(frozen=True)
class Text2TextData:
    """The examples to train on and those to validate on.

    train: the sources of the training examples.
    valid: the examples to validate on; without it, a part of the training examples is held out.
    held_out: the fraction of the training examples to hold out where there is no `valid`.
    sampling_weights: how often examples of each source in `train` are drawn, relative to the others; all alike unless
    given.
    test: examples that must not be trained on; the run reports those whose source is also in `train`.
    exclude: examples whose sources are left out of `train`.
    cleaning: which examples are kept, and how many may be dropped before the run stops.
    batch_tokens: the largest number of tokens in a batch: source, target and padding together.
    valid_examples: how many examples of `valid` each validation decodes.
    """

    train: tuple[DataSource, ...]
    valid: DataSource | None = None
    held_out: float = 0.05
    sampling_weights: tuple[float, ...] = ()
    test: tuple[DataSource, ...] = ()
    exclude: tuple[DataSource, ...] = ()
    cleaning: CleaningConfig = CleaningConfig()
    batch_tokens: int = 4000
    valid_examples: int = 1000

    def __post_init__(self) -> None:
        problems = []
        if not self.train:
            problems.append("train=[]: expected at least one source of training examples")
        if not 0 < self.held_out < 1:
            problems.append(f"held_out={self.held_out}: expected a fraction above 0 and below 1")
        if self.sampling_weights and (len(self.sampling_weights) != len(self.train) or min(self.sampling_weights) <= 0):
            problems.append(
                f"sampling_weights={list(self.sampling_weights)}: expected one number above 0 for each of train, or "
                f"none"
            )
        for name in ("batch_tokens", "valid_examples"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: expected at least 1")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class TextData:
    """Which texts to train on and which to validate on; see `qkv.data.text.documents` for where they may come from.

    valid: texts that are never trained on, wherever they come from; without, `held_out` of what is in `train`: that
    share of the documents, or the end of the only one.
    context: how many tokens the model sees at a time. batch_tokens: how many there are in a batch.
    valid_characters: how much of `valid` each validation reads, and `stride`, how far its window moves on (as far as it
    sees, unless given).
    """

    train: tuple[TextSource, ...]
    valid: TextSource | None = None
    held_out: float = 0.1
    context: int = 256
    batch_tokens: int = 4096
    valid_characters: int = 200_000
    stride: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.train:
            problems.append("train=[]: expected at least one source of texts to train on")
        if not 0 < self.held_out < 1:
            problems.append(f"held_out={self.held_out}: expected a share above 0 and below 1")
        if self.context < 2:
            problems.append(f"context={self.context}: expected at least 2 tokens")
        if self.batch_tokens < self.context:
            problems.append(f"batch_tokens={self.batch_tokens}: expected at least context={self.context}")
        if self.valid_characters < 1:
            problems.append(f"valid_characters={self.valid_characters}: expected at least 1")
        if self.stride is not None and not 0 < self.stride <= self.context:
            problems.append(f"stride={self.stride}: expected 1 to context={self.context}, or null")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class TokenizerConfig:
    """One tokenizer (see `qkv.text.train`); vocab None takes the kind's own default."""

    kind: TokenizerKind = "bpe"
    vocab_size: int | None = None
    lowercase: bool = False


@dataclass(frozen=True)
class TokenizerPairConfig:
    """How lines become tokens; without `target`, source and target share one tokenizer."""

    source: TokenizerConfig = TokenizerConfig()
    target: TokenizerConfig | None = None


@dataclass(frozen=True)
class Transformer:
    """An encoder-decoder Transformer whose blocks are all alike (see `qkv.presets.encoder_decoder`).

    copies: answers may also be made of tokens of the source (See et al. 2017); both sides then share a tokenizer.
    """

    d_model: int = 256
    heads: int = 4
    d_ff: int = 1024
    encoder_layers: int = 3
    decoder_layers: int = 3
    norm_at: Literal["pre", "post"] = "pre"
    norm: spec.Norm = spec.Norm()
    activation: Literal["relu", "relu_squared", "gelu", "gelu_tanh", "silu"] = "relu"
    gated: bool = False
    position: spec.Rotary | spec.RelativeBias | spec.Alibi | None = None
    sinusoidal: bool = True
    qk_norm: spec.Norm | None = None
    tied: bool = True
    pointer_generator: bool = False

    def __post_init__(self) -> None:
        self.spec(8, 8, shared=True)  # a shape that contradicts itself is refused with the recipe

    def spec(self, source_vocab: int, target_vocab: int, shared: bool) -> spec.Spec:
        """The spec of this shape for these vocabularies; `shared` if source and target have one."""
        shape = presets.encoder_decoder(
            source_vocab=source_vocab,
            target_vocab=target_vocab,
            d_model=self.d_model,
            heads=self.heads,
            d_ff=self.d_ff,
            layers=(self.encoder_layers, self.decoder_layers),
            norm_at=self.norm_at,
            norm=self.norm,
            feed_forward=spec.FeedForward(self.d_ff, self.activation, self.gated),
            position=self.position,
            sinusoidal=self.sinusoidal,
            qk_norm=self.qk_norm,
            shared_embedding=shared,
            tied=self.tied,
        )
        if not self.pointer_generator:
            return shape
        return replace(shape, head=spec.PointerGenerator(self.d_model, spec.Vocabulary(tied=self.tied)))


@dataclass(frozen=True)
class Recurrent:
    """The recurrent encoder-decoder without attention, or with (see `qkv.spec.Recurrent`)."""

    cell: Literal["gru", "lstm"] = "gru"
    d_model: int = 256
    layers: int = 1
    attention: Literal["additive", "dot", "general"] | None = None

    def __post_init__(self) -> None:
        self.spec(8, 8, shared=False)  # likewise

    def spec(self, source_vocab: int, target_vocab: int, shared: bool) -> spec.Spec:
        """The spec of this shape for these vocabularies."""
        return spec.Recurrent(
            self.cell, self.d_model, self.layers, spec.Tokens(source_vocab), spec.Tokens(target_vocab), self.attention
        )


@dataclass(frozen=True)
class Decoder:
    """A decoder alone whose blocks are all alike: a language model, or one that reads a source and then answers it.

    position: how attention knows distances. sinusoidal: waves are added to what is read, instead or as well. bias:
    whether the linear layers have one. tied: tokens are answered with the vectors they are read by.
    """

    d_model: int = 256
    heads: int = 4
    layers: int = 4
    d_ff: int = 1024
    norm: spec.Norm = spec.Norm()
    activation: Literal["relu", "relu_squared", "gelu", "gelu_tanh", "silu"] = "gelu"
    gated: bool = False
    position: spec.Rotary | spec.RelativeBias | spec.Alibi | None = spec.Rotary()
    sinusoidal: bool = False
    qk_norm: spec.Norm | None = None
    bias: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        self.spec(8)  # a shape that contradicts itself is refused with the recipe

    def spec(self, vocab: int, target_vocab: int | None = None, shared: bool = True) -> spec.Transformer:
        """The spec of this shape for a vocabulary, the one of source and target."""
        if self.d_model % self.heads:
            raise SpecError(f"d_model={self.d_model} is not a multiple of heads={self.heads}")
        attention = spec.Attention(
            self.heads,
            self.d_model // self.heads,
            position=self.position,
            causal=True,
            qk_norm=self.qk_norm,
            bias=self.bias,
        )
        forward = spec.FeedForward(self.d_ff, self.activation, self.gated, self.bias)
        stack = spec.Stack(
            d_model=self.d_model,
            blocks=(spec.Block(attention, forward, norm=self.norm),) * self.layers,
            input=spec.Tokens(vocab, scale=self.tied),
            positions=spec.Sinusoidal() if self.sinusoidal else None,
            final_norm=self.norm,
        )
        return spec.Transformer(None, stack, spec.Vocabulary(tied=self.tied))


@dataclass(frozen=True)
class Pretrained:
    """A trained model to go on from: its shape, its parameters and its tokenizers, or how it prepares its images.

    folder: a model folder, or the name of a model that comes with the package. A model that sees may also be a
    published one; of other classes than those to learn, it gets new scores for these, which begin at 0.
    """

    path: Path


ModelConfig: TypeAlias = Transformer | Recurrent | Decoder | Pretrained


@dataclass(frozen=True)
class Text2TextConfig:
    """All that makes a trained model; the same recipe and seed on the same machine give the same bytes."""

    task: Literal["translation", "pronunciation", "summarization"]
    data: Text2TextData
    training: TrainingConfig
    tokenizer: TokenizerPairConfig = TokenizerPairConfig()
    model: ModelConfig = field(default_factory=Transformer)
    decoding: DecodingConfig = DecodingConfig()

    def __post_init__(self) -> None:
        _check_tokenizer(self.model, self.tokenizer, TokenizerPairConfig())
        copies = isinstance(self.model, Transformer) and self.model.pointer_generator
        if self.tokenizer.target is not None and (copies or isinstance(self.model, Decoder)):
            what = "a model that copies" if copies else "a decoder alone"
            raise ConfigError(
                [
                    f"tokenizer.target: given, but {what} has one vocabulary for source and target: set "
                    f"tokenizer.target=null"
                ]
            )


@dataclass(frozen=True)
class LanguageModelingConfig:
    """All that makes a trained language model; the same bytes as with `Text2TextConfig`."""

    task: Literal["language-modeling"]
    data: TextData
    training: TrainingConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: Decoder | Pretrained = field(default_factory=Decoder)
    decoding: DecodingConfig = DecodingConfig(Sample(top_p=0.95), LengthLimit(0.0, 200))

    def __post_init__(self) -> None:
        _check_tokenizer(self.model, self.tokenizer, TokenizerConfig())


@dataclass(frozen=True)
class ImageClassificationConfig:
    """All that makes a trained classifier of images; the same bytes as with `Text2TextConfig`."""

    task: Literal["image-classification"]
    data: ImageData
    training: TrainingConfig
    model: ViT | Pretrained = field(default_factory=ViT)


@dataclass(frozen=True)
class SpeechConfig:
    """All that makes a trained model that writes down what it hears, or names it; the same bytes as with
    `Text2TextConfig`.

    A classifier needs no `text`, `ctc` and `decoding`.
    """

    task: Literal["speech-recognition"]
    data: AudioData
    training: TrainingConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: SpeechTransformer | AudioClassifier | Pretrained = field(default_factory=SpeechTransformer)
    ctc: CtcConfig = CtcConfig()
    decoding: DecodingConfig = DecodingConfig()

    def __post_init__(self) -> None:
        _check_tokenizer(self.model, self.tokenizer, TokenizerConfig())


RecipeConfig: TypeAlias = (
    Text2TextConfig | LanguageModelingConfig | ImageClassificationConfig | DecisionTransformerConfig | SpeechConfig
)

RECIPE_CONFIGS: dict[str, type[RecipeConfig]] = {
    "translation": Text2TextConfig,
    "pronunciation": Text2TextConfig,
    "summarization": Text2TextConfig,
    "language-modeling": LanguageModelingConfig,
    "image-classification": ImageClassificationConfig,
    "decision-transformer": DecisionTransformerConfig,
    "speech-recognition": SpeechConfig,
}
"""What the recipe of each task holds."""


def _check_tokenizer(
    model: ModelConfig | SpeechTransformer | AudioClassifier,
    tokenizer: TokenizerPairConfig | TokenizerConfig,
    default: TokenizerPairConfig | TokenizerConfig,
) -> None:
    if isinstance(model, Pretrained) and tokenizer != default:
        raise ConfigError(
            [
                f"tokenizer: given beside model.path={model.path}, but that model's own tokenizers are used; "
                "expected none: take tokenizer out, or set tokenizer={}"
            ]
        )
