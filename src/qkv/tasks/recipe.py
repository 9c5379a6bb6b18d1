"""Recipes: everything that makes a trained model, in one tree of frozen choices.

The same tree is written as YAML, changed on the command line (`training.minutes=3`) and built in Python. This file
needs no torch.

    task      what is learned: translate, pronounce
    data      which examples, from where, and how many tokens make a batch
    text      how lines become tokens
    model     the shape of the model; its vocabularies come from the text. Or a model to go on from (kind: from)
    training  how it is trained
    decoding  how it answers, unless asked otherwise
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from qkv import presets, spec
from qkv.data.cleaning import Cleaning
from qkv.data.corpora import Corpus
from qkv.data.reading import Files, Jsonl, Tsv
from qkv.decoding.options import Decoding
from qkv.errors import ConfigError
from qkv.text.training import Kind
from qkv.training.options import Training

Origin: TypeAlias = Corpus | Files | Tsv | Jsonl
"""Where examples come from: a split of a named corpus, two files of lines, or one file of pairs (each also .gz)."""


@dataclass(frozen=True)
class Data:
    """What to learn from and what to check on.

    weights: how often examples of each origin in `train` are drawn beside those of the others; without, all alike.
    test: sets that the run must not learn from; their sources are looked for in `train`, and reported.
    without: sets whose sources are left out of `train`.
    cleaning: what is kept of what is read, and how much may be dropped before the run stops.
    batch_tokens: the most tokens in a batch, source, target and padding together.
    valid_examples: how many of `valid` each validation decodes.
    """

    train: tuple[Origin, ...]
    valid: Origin
    weights: tuple[float, ...] = ()
    test: tuple[Origin, ...] = ()
    without: tuple[Origin, ...] = ()
    cleaning: Cleaning = Cleaning()
    batch_tokens: int = 4000
    valid_examples: int = 1000

    def __post_init__(self) -> None:
        problems = []
        if not self.train:
            problems.append("train=[]: expected at least one origin of examples to learn from")
        if self.weights and (len(self.weights) != len(self.train) or min(self.weights) <= 0):
            problems.append(f"weights={list(self.weights)}: expected one number above 0 for each of train, or none")
        for name in ("batch_tokens", "valid_examples"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: expected at least 1")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Words:
    """One tokenizer (see `qkv.text.train`); vocab None takes the kind's own default."""

    kind: Kind = "bpe"
    vocab: int | None = None
    lowercase: bool = False


@dataclass(frozen=True)
class Text:
    """How lines become tokens; without `target`, source and target share one tokenizer."""

    source: Words = Words()
    target: Words | None = None


@dataclass(frozen=True)
class Transformer:
    """An encoder-decoder Transformer whose blocks are all alike (see `qkv.presets.encoder_decoder`)."""

    d_model: int = 256
    heads: int = 4
    d_ff: int = 1024
    encoder_layers: int = 3
    decoder_layers: int = 3
    norm_at: Literal["pre", "post"] = "pre"
    norm: spec.Norm = spec.Norm()
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu"
    gated: bool = False
    position: spec.Rotary | spec.RelativeBias | spec.Alibi | None = None
    sinusoidal: bool = True
    qk_norm: spec.Norm | None = None
    tied: bool = True

    def __post_init__(self) -> None:
        self.spec(8, 8, shared=True)  # a shape that contradicts itself is refused with the recipe

    def spec(self, source_vocab: int, target_vocab: int, shared: bool) -> spec.Spec:
        """The spec of this shape for these vocabularies; `shared` if source and target have one."""
        return presets.encoder_decoder(
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
class From:
    """A trained model to go on from: its shape, its parameters and its tokenizers.

    folder: a model folder, or the name of a model that comes with the package.
    """

    folder: Path


Model: TypeAlias = Transformer | Recurrent | From


@dataclass(frozen=True)
class Recipe:
    """All that makes a trained model; the same recipe and seed on the same machine give the same bytes."""

    task: Literal["translate", "pronounce"]
    data: Data
    training: Training
    text: Text = Text()
    model: Model = field(default_factory=Transformer)
    decoding: Decoding = Decoding()

    def __post_init__(self) -> None:
        if isinstance(self.model, From) and self.text != Text():
            raise ConfigError(
                [
                    f"text: given beside model.folder={self.model.folder}, but that model's own tokenizers are used; "
                    "expected none: take text out, or set text={}"
                ]
            )
