"""The parts of recipes that several tasks share: data sources, tokenizers and the shapes of models.

A recipe is everything that determines a trained model, in one tree of frozen options. The same tree is written as YAML,
changed on the command line (`training.max_minutes=3`) and built in Python. Each task has its own tree, in the file
`config.py` of its folder. None of these files needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from qkv import presets, spec
from qkv.data.corpora import Corpus
from qkv.data.text.pairs import Csv, Jsonl, ParallelFiles, Tsv
from qkv.errors import ConfigError, SpecError
from qkv.text.trainers import TokenizerKind

DataSource: TypeAlias = Corpus | ParallelFiles | Tsv | Csv | Jsonl
"""Sources of examples: a split of a named corpus, two files of lines, or one file of pairs (each also .gz)."""


@dataclass(frozen=True)
class TokenizerConfig:
    """One tokenizer (see `qkv.text.train`); vocab None uses the default of its kind."""

    kind: TokenizerKind = "bpe"
    vocab_size: int | None = None
    lowercase: bool = False


@dataclass(frozen=True)
class TokenizerPairConfig:
    """The tokenizers of a recipe; without `target`, source and target share one."""

    source: TokenizerConfig = TokenizerConfig()
    target: TokenizerConfig | None = None


@dataclass(frozen=True)
class Transformer:
    """An encoder-decoder Transformer with equal blocks (see `qkv.presets.encoder_decoder`).

    copies: whether the output may also copy tokens of the source (See et al. 2017); both sides then share a tokenizer.
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
        self.spec(8, 8, shared=True)  # a contradictory shape is refused together with the recipe

    def spec(self, source_vocab: int, target_vocab: int, shared: bool) -> spec.Spec:
        """Build the spec of this shape for these vocabularies; `shared` if source and target have one."""
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
    """The recurrent encoder-decoder with or without attention (see `qkv.spec.Recurrent`)."""

    cell: Literal["gru", "lstm"] = "gru"
    d_model: int = 256
    layers: int = 1
    attention: Literal["additive", "dot", "general"] | None = None

    def __post_init__(self) -> None:
        self.spec(8, 8, shared=False)  # likewise

    def spec(self, source_vocab: int, target_vocab: int, shared: bool) -> spec.Spec:
        """Build the spec of this shape for these vocabularies."""
        return spec.Recurrent(
            self.cell, self.d_model, self.layers, spec.Tokens(source_vocab), spec.Tokens(target_vocab), self.attention
        )


@dataclass(frozen=True)
class Decoder:
    """A decoder with equal blocks: a language model, or one that reads a source before its target.

    position: the positions in the attentions. sinusoidal: add sinusoids to the input, instead or as well. bias: whether
    the
    linear layers have biases. tied: whether the embedding is also the output matrix.
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
        self.spec(8)  # a contradictory shape is refused together with the recipe

    def spec(self, vocab: int, target_vocab: int | None = None, shared: bool = True) -> spec.Transformer:
        """Build the spec of this shape for the shared vocabulary of source and target."""
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
    """A trained model to fine-tune: its shape, its parameters and its tokenizers or image processor.

    path: a model folder, or the name of a model that comes with the package. An image model may also be a published
    one; for other classes than its own, it gets a new classifier, which starts at 0.
    """

    path: Path


ModelConfig: TypeAlias = Transformer | Recurrent | Decoder | Pretrained


def check_tokenizer(model: object, tokenizer: object, default: object) -> None:
    """Raise ConfigError for tokenizer options in a recipe that fine-tunes a model, which has its own tokenizers."""
    if isinstance(model, Pretrained) and tokenizer != default:
        raise ConfigError(
            [
                f"tokenizer: given with model.path={model.path}, but that model's own tokenizers are used; "
                "expected none: take tokenizer out, or set tokenizer={}"
            ]
        )
