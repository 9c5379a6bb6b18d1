"""The nodes of whole models: a stack of blocks, the Transformer, the dual encoder, the recurrent model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qkv.spec.blocks import Attention, Block, Norm, RelativeBias
from qkv.spec.heads import Actions, Head, Labels, PointerGenerator, Vector, Vocabulary
from qkv.spec.inputs import Convolutional, Input, Learned, Patches, Sinusoidal, Tokens, Trajectory
from qkv.spec.validation import require, require_choices, require_positive


@dataclass(frozen=True)
class Stack:
    """An input, its positions, and the blocks that process it.

    repeats: how often all blocks are applied, with the same parameters each time (Dehghani et al. 2019).
    """

    d_model: int
    blocks: tuple[Block, ...]
    input: Input
    positions: Learned | Sinusoidal | Convolutional | None = None
    embed_norm: Norm | None = None
    final_norm: Norm | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "d_model", "repeats")
        require(len(self.blocks) > 0, self, "blocks=() was given; a stack has at least one block")
        if isinstance(self.positions, Sinusoidal):
            require(self.d_model % 2 == 0, self, f"d_model={self.d_model} is odd; sinusoidal positions come in pairs")
        if isinstance(self.positions, Convolutional):
            groups = self.positions.groups
            require(self.d_model % groups == 0, self, f"d_model={self.d_model} is not a multiple of groups={groups}")
            require(
                not any(block.self_attention.causal for block in self.blocks),
                self,
                "positions=Convolutional was given with a causal block, to which it would show the future",
            )
        if isinstance(self.input, Patches) and isinstance(self.positions, Learned):
            patches = self.positions.length - self.input.class_tokens
            require(
                patches > 0 and math.isqrt(patches) ** 2 == patches,
                self,
                f"positions: length={self.positions.length} less the input's class_tokens={self.input.class_tokens} "
                f"is {patches}, which is no square of patches",
            )
        attentions = [one.self_attention for one in self.blocks if isinstance(one.self_attention, Attention)]
        by_position = {attention.position: attention.heads for attention in attentions}
        for attention in attentions:
            if isinstance(attention.position, RelativeBias):
                require(
                    by_position[attention.position] == attention.heads,
                    self,
                    f"blocks share one RelativeBias but differ in heads ({by_position[attention.position]} and "
                    f"{attention.heads}); give the RelativeBias of one of them another size",
                )


@dataclass(frozen=True)
class Transformer:
    """An encoder-decoder (translation), a decoder (language model) or an encoder (classifier).

    shared_embedding: source and target share one embedding (Vaswani et al. 2017, section 3.4). encoder_head: a head of
    the
    encoder besides the decoder, which labels each position; an output can be read from these labels alone (CTC with
    attention, Watanabe et al. 2017).
    """

    encoder: Stack | None
    decoder: Stack | None
    head: Head
    shared_embedding: bool = False
    encoder_head: Labels | None = None

    def __post_init__(self) -> None:
        encoder, decoder = self.encoder, self.decoder
        require(encoder is not None or decoder is not None, self, "neither encoder nor decoder was given")
        if decoder is not None:
            crossing = [block.cross_attention is not None for block in decoder.blocks]
            require(
                encoder is not None or not any(crossing),
                self,
                "decoder blocks have cross_attention but encoder is None",
            )
            require(
                encoder is None or any(crossing), self, "encoder was given but no decoder block has cross_attention"
            )
            require(
                all(block.self_attention.causal for block in decoder.blocks),
                self,
                "a decoder block has self_attention.causal=False; a decoder would see the tokens it is to predict",
            )
            require(
                isinstance(self.head, Vocabulary | PointerGenerator),
                self,
                f"head={type(self.head).__name__} needs encoder alone; decoder was given",
            )
        if encoder is not None:
            require(
                all(block.cross_attention is None for block in encoder.blocks),
                self,
                "encoder blocks have cross_attention",
            )
            if isinstance(self.head, Actions):
                require(
                    isinstance(encoder.input, Trajectory)
                    and all(block.self_attention.causal for block in encoder.blocks),
                    self,
                    "head=Actions was given; the encoder must then have the input Trajectory, with causal blocks "
                    "that do "
                    "not see the action they are to choose",
                )
        if isinstance(self.head, PointerGenerator):
            require(
                self.shared_embedding,
                self,
                "head=PointerGenerator was given without shared_embedding; a token that is copied from the source "
                "must be the same token in the target",
            )
        require(
            self.encoder_head is None or (encoder is not None and decoder is not None),
            self,
            "encoder_head was given without encoder and decoder; an encoder alone has head=Labels",
        )
        if self.shared_embedding:
            require(encoder is not None and decoder is not None, self, "shared_embedding needs encoder and decoder")
            assert encoder is not None and decoder is not None
            source, target = encoder.input, decoder.input
            require(
                isinstance(source, Tokens) and isinstance(target, Tokens),
                self,
                "shared_embedding, but encoder and decoder do not both read Tokens",
            )
            assert isinstance(source, Tokens) and isinstance(target, Tokens)
            for name, left, right in (
                ("d_model", encoder.d_model, decoder.d_model),
                ("vocab", source.vocab, target.vocab),
            ):
                require(
                    left == right, self, f"shared_embedding, but {name} is {left} in encoder and {right} in decoder"
                )


@dataclass(frozen=True)
class DualEncoder:
    """Two encoders with vectors of one size: every source is compared with every target, by their cosine similarity
    times a
    learned factor (Radford et al. 2021).
    """

    source: Transformer
    target: Transformer

    def __post_init__(self) -> None:
        widths = []
        for name, tower in (("source", self.source), ("target", self.target)):
            require(
                isinstance(tower.head, Vector) and tower.head.normalized,
                self,
                f"{name} answers with {tower.head}; it must be a Vector with normalized=True",
            )
            assert isinstance(tower.head, Vector) and tower.encoder is not None
            widths.append(tower.head.width or tower.encoder.d_model)
        require(widths[0] == widths[1], self, f"source's vectors have {widths[0]} numbers and target's {widths[1]}")


@dataclass(frozen=True)
class Recurrent:
    """The encoder-decoder that preceded the Transformer.

    bidirectional: the encoder reads in both directions, with half of d_model each. bridged: a linear layer makes the
    decoder's first state from the encoder's last (Bahdanau et al. 2015, appendix A.2.2); otherwise they are equal.
    attention: None, the decoder starts from the encoder's last state and sees nothing else (Sutskever 2014, Cho 2014);
    "additive", it attends before each step (Bahdanau et al. 2015); "dot" or "general", after (Luong et al. 2015).
    """

    cell: Literal["gru", "lstm"]
    d_model: int
    layers: int
    source: Tokens
    target: Tokens
    attention: Literal["additive", "dot", "general"] | None = None
    head: Vocabulary = Vocabulary(tied=False, bias=True)
    bidirectional: bool = True
    bridged: bool = True

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "d_model", "layers")
        require(
            self.d_model % 2 == 0 or not self.bidirectional,
            self,
            f"d_model={self.d_model} is odd; each direction of the encoder takes half",
        )
        require(
            self.bridged or (self.cell == "gru" and self.layers == 1 and not self.bidirectional),
            self,
            f"bridged=False was given with cell={self.cell!r}, layers={self.layers}, bidirectional="
            f"{self.bidirectional}; only one layer of a GRU that reads forwards ends with what a decoder begins with",
        )


Spec: TypeAlias = Transformer | DualEncoder | Recurrent
