"""What a model is: a tree of small frozen choices that has the shape of the module tree.

A spec says everything that shapes the parameters and the mathematics, and nothing about training. It is kept as
JSON beside the weights and rebuilds the model with no look-up of a name. This file needs no torch.

    Transformer                       Recurrent
      encoder: Stack | None             source, target: Tokens
      decoder: Stack | None             attention: None | "additive" | "dot" | "general"
        reads: Tokens | Patches | ...   answers: Vocabulary
        positions: Learned | Sinusoidal | Convolved | None
        blocks: (Block, ...)
          self_attention, cross_attention: Attention (position: Rotary | RelativeBias | Alibi | None)
          self_attention may be a Recurrence
          feed_forward: FeedForward | Experts
          norm: Norm, norm_at: "pre" | "post" | "both" | "result"
      answers: Vocabulary | Labels | Classes | Vector | Actions | States

    Towers
      source, target: Transformer       two encoders, whose vectors are compared
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from qkv.errors import SpecError


def _require(holds: bool, node: object, rule: str) -> None:
    if not holds:
        raise SpecError(f"{type(node).__name__}: {rule}")


def _require_positive(node: Any, *names: str) -> None:
    for name in names:
        value = getattr(node, name)
        _require(value is None or value > 0, node, f"{name}={value} was given; it must be greater than 0")


def _require_choices(node: Any) -> None:
    for name, choices in _choices(type(node)).items():
        value = getattr(node, name)
        _require(
            value in choices, node, f"{name}={value!r} was given; it must be one of {', '.join(map(repr, choices))}"
        )


def _choices(cls: type[object]) -> dict[str, tuple[Any, ...]]:
    """The fields of `cls` that are a choice between words, with the words (and None where it is allowed)."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        parts = (
            get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
        )
        if any(typing.get_origin(part) is Literal for part in parts):
            found[name] = tuple(w for p in parts for w in (get_args(p) if typing.get_origin(p) is Literal else (None,)))
    return found


@dataclass(frozen=True)
class Norm:
    """Layer normalisation (Ba et al. 2016) or its root-mean-square form without centring (Zhang & Sennrich 2019)."""

    kind: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "eps")


@dataclass(frozen=True)
class AcrossHeads:
    """A norm over the queries (or keys) of all heads together, rather than over each head's own (OLMo 2)."""

    norm: Norm


@dataclass(frozen=True)
class Interpolated:
    """Rotary angles divided by `factor`, so that a longer text fits the angles once learned (Chen et al. 2023)."""

    factor: float

    def __post_init__(self) -> None:
        _require_positive(self, "factor")


@dataclass(frozen=True)
class ByWavelength:
    """Rotary angles divided by `factor` where a wave is longer than `length` / `low`, kept where it is shorter than
    `length` / `high`, blended between (Llama 3.1). length: positions learned before the scaling."""

    factor: float
    low: float
    high: float
    length: int

    def __post_init__(self) -> None:
        _require_positive(self, "factor", "low", "length")
        _require(self.high > self.low, self, f"high={self.high} was given; it must be greater than low={self.low}")


@dataclass(frozen=True)
class Yarn:
    """Rotary angles divided by `factor` in dimensions that turn less than `slow` times over `length` positions, kept
    in those that turn more than `fast` times, blended between; queries and keys grow by `attention` (Peng et al. 2023).
    whole: the blend begins and ends at whole dimensions."""

    factor: float
    length: int
    fast: float = 32.0
    slow: float = 1.0
    attention: float = 1.0
    whole: bool = True

    def __post_init__(self) -> None:
        _require_positive(self, "factor", "length", "fast", "slow", "attention")


@dataclass(frozen=True)
class Stretched:
    """Rotary angles divided dimension by dimension: by `short` up to `length` positions, by `long` in longer texts;
    queries and keys grow by `attention` (LongRoPE, Ding et al. 2024)."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    length: int
    attention: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, "length", "attention")
        _require(
            len(self.short) == len(self.long), self, f"short has {len(self.short)} numbers and long {len(self.long)}"
        )


Scaling: TypeAlias = Interpolated | ByWavelength | Yarn | Stretched


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021): queries and keys are turned by angles that grow with the position.

    fraction: the share of each head's dimensions that is turned (the first ones). scaling: how the angles of a model
    that learned on short texts are changed for longer ones.
    """

    base: float = 10000.0
    fraction: float = 1.0
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "base", "fraction")
        _require(self.fraction <= 1, self, f"fraction={self.fraction} was given; it must be at most 1")


@dataclass(frozen=True)
class RelativeBias:
    """A learned number for each head and bucket of distances, added to the scores (Raffel et al. 2020, T5).

    All attentions of a stack that carry an equal RelativeBias share its numbers.
    """

    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        _require_positive(self, "buckets", "max_distance")
        _require(
            self.max_distance > self.buckets // 2,
            self,
            f"max_distance={self.max_distance} is not beyond half of buckets={self.buckets}, "
            "the distances that have a bucket of their own",
        )


@dataclass(frozen=True)
class Alibi:
    """A fixed penalty, linear in the distance, with a slope for each head, times `factor` (Press et al. 2022)."""

    factor: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, "factor")


Position: TypeAlias = Rotary | RelativeBias | Alibi


@dataclass(frozen=True)
class Attention:
    """Multi-head attention (Vaswani et al. 2017, section 3.2); with fewer kv_heads than heads, grouped (Ainslie 2023).

    d_value defaults to d_key and kv_heads to heads; scale to 1 / sqrt(d_key). softcap bends the scores to within
    plus and minus its value. qk_norm normalises queries and keys, each head's own or across heads. sinks adds a
    learned score for each head that takes weight and gives no value.
    """

    heads: int
    d_key: int
    d_value: int | None = None
    kv_heads: int | None = None
    position: Position | None = None
    causal: bool = False
    window: int | None = None
    qk_norm: Norm | AcrossHeads | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        _require_positive(self, "heads", "d_key", "d_value", "kv_heads", "window", "scale", "softcap")
        if self.kv_heads is not None:
            _require(
                self.heads % self.kv_heads == 0,
                self,
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}",
            )
        if isinstance(self.position, Rotary):
            turned = self.d_key * self.position.fraction
            _require(
                turned == int(turned) and int(turned) % 2 == 0,
                self,
                f"d_key={self.d_key} x rotary fraction={self.position.fraction} is not an even number",
            )


Activation: TypeAlias = Literal["relu", "gelu", "gelu_tanh", "gelu_sigmoid", "silu", "tanh"]
"""gelu_tanh and gelu_sigmoid are the two approximations of Hendrycks and Gimpel 2016."""


@dataclass(frozen=True)
class FeedForward:
    """Two linear layers around an activation; gated, a third multiplies the activated one (Shazeer 2020).

    limit: the gate is at most that, and what it multiplies is kept within plus and minus that, and 1 added to it
    (OpenAI 2025, gpt-oss).
    """

    d_ff: int
    activation: Activation = "relu"
    gated: bool = False
    bias: bool = True
    limit: float | None = None

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "d_ff", "limit")
        _require(self.limit is None or self.gated, self, f"limit={self.limit} was given with gated=False")


@dataclass(frozen=True)
class Experts:
    """`count` feed-forward networks, `chosen` of which read each token: those that a linear layer scores highest.

    Their results are blended by the softmax of these scores (Shazeer et al. 2017).
    """

    count: int
    chosen: int
    each: FeedForward

    def __post_init__(self) -> None:
        _require_positive(self, "count", "chosen")
        _require(self.chosen <= self.count, self, f"chosen={self.chosen} was given of count={self.count}")


@dataclass(frozen=True)
class Recurrence:
    """In the place of attention to the past: a state that takes it along (SSRU, Kim et al. 2019, section 3.1).

    forget = sigmoid(W_f x + b); state = forget * state before + (1 - forget) * W x; what leaves is relu(state).
    """

    @property
    def causal(self) -> bool:
        """The future has no way in."""
        return True

    @property
    def position(self) -> None:
        """It knows the order by itself."""
        return None


@dataclass(frozen=True)
class Block:
    """One layer: attention to itself, attention to the memory (if any), feed-forward, each around a residual.

    norm_at: "post" x = norm(x + f(x)) as in 2017; "pre" x = x + f(norm(x)); "both" x = x + norm(f(norm(x)));
    "result" x = x + norm(f(x)). parallel: attention and feed-forward read the same x, and both results are added
    (Wang and Komatsuzaki 2021). first_norm: False leaves out the norm before the self-attention of a "pre" block.
    """

    self_attention: Attention | Recurrence
    feed_forward: FeedForward | Experts
    cross_attention: Attention | None = None
    norm: Norm = Norm()
    norm_at: Literal["pre", "post", "both", "result"] = "pre"
    parallel: bool = False
    first_norm: bool = True

    def __post_init__(self) -> None:
        _require_choices(self)
        if self.parallel:
            _require(self.norm_at == "pre", self, f"parallel with norm_at={self.norm_at!r}; it must be 'pre'")
            _require(self.cross_attention is None, self, "parallel was given with cross_attention, which has no place")
        _require(self.first_norm or self.norm_at == "pre", self, f"first_norm=False with norm_at={self.norm_at!r}")
        if self.cross_attention is not None:
            _require(
                not self.cross_attention.causal, self, "cross_attention.causal=True was given; a memory has no future"
            )
            _require(
                not isinstance(self.cross_attention.position, Rotary),
                self,
                "cross_attention.position=Rotary was given; queries and keys of two sequences share no positions",
            )


@dataclass(frozen=True)
class Segments:
    """Up to `count` texts in one input, each ended by the token `separator`; a learned vector for each (BERT)."""

    count: int
    separator: int

    def __post_init__(self) -> None:
        _require_positive(self, "count")
        _require(self.separator >= 0, self, f"separator={self.separator} was given; it must be a token's number")


@dataclass(frozen=True)
class Tokens:
    """Reads a vocabulary's numbers: one learned vector each, times sqrt(d_model) if scaled (2017, section 3.4).

    width: the vectors' own, projected to d_model afterwards (Lan et al. 2020); d_model itself unless given.
    """

    vocab: int
    scale: bool = False
    width: int | None = None
    segments: Segments | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "vocab", "width")


@dataclass(frozen=True)
class Patches:
    """Reads an image in squares of size x size pixels, each turned into a vector (Dosovitskiy et al. 2021).

    leading: learned vectors before them, such as a class token. registers: more of these, that have no position
    (Darcet et al. 2024). smooth: learned positions are interpolated with antialiasing, for an image of another size.
    """

    size: int
    channels: int = 3
    leading: int = 1
    registers: int = 0
    smooth: bool = False

    def __post_init__(self) -> None:
        _require_positive(self, "size", "channels")
        for name in ("leading", "registers"):
            _require(getattr(self, name) >= 0, self, f"{name}={getattr(self, name)} was given; it must be at least 0")


@dataclass(frozen=True)
class Frames:
    """Reads sound as frames of `mels` bands of pitch: two convolutions of width 3, each before a GELU, of which the
    second makes one position of two frames (Radford et al. 2022, section 2.2)."""

    mels: int

    def __post_init__(self) -> None:
        _require_positive(self, "mels")


@dataclass(frozen=True)
class Convolution:
    """A window of `width` neighbours that moves on by `stride` and makes `channels` numbers at each stop."""

    channels: int
    width: int
    stride: int

    def __post_init__(self) -> None:
        _require_positive(self, "channels", "width", "stride")


@dataclass(frozen=True)
class Waveform:
    """Reads the samples of a sound through convolutions, each before a GELU, and projects what they make, normalised
    (Baevski et al. 2020, section 2).

    norm_at: "first", each channel of the first convolution is normalised over time (Wu and He 2018); "each", what
    every convolution makes is, over its channels.
    """

    convolutions: tuple[Convolution, ...]
    norm_at: Literal["first", "each"] = "first"
    bias: bool = False

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(len(self.convolutions) > 0, self, "convolutions=() was given; at least one makes samples positions")


@dataclass(frozen=True)
class Trajectory:
    """Reads what an agent went through, each step as three positions: the return it is to reach, the state it sees
    and the action it takes, of `state` and `action` numbers (Chen et al. 2021).

    longest: how many steps an episode may have; a learned vector for the time of a step is added to its three.
    """

    state: int
    action: int
    longest: int

    def __post_init__(self) -> None:
        _require_positive(self, "state", "action", "longest")


Reads: TypeAlias = Tokens | Patches | Frames | Waveform | Trajectory


@dataclass(frozen=True)
class Learned:
    """A learned vector for each position up to `length`, added to what is read.

    Of an image, the leading vectors and a square of patches; another image's are interpolated between these.
    """

    length: int

    def __post_init__(self) -> None:
        _require_positive(self, "length")


@dataclass(frozen=True)
class Sinusoidal:
    """Fixed waves of geometrically growing length, added to what is read (Vaswani et al. 2017, section 3.5).

    layout: "paired", sine and cosine of a wave side by side as in the paper; "halves", all sines before all cosines;
    "tensor2tensor", halves whose longest wave is 10000 * 2 pi exactly, as in its authors' code. start: the number of
    the first position.
    """

    layout: Literal["paired", "halves", "tensor2tensor"] = "paired"
    start: int = 0

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.start >= 0, self, f"start={self.start} was given; it must be at least 0")


@dataclass(frozen=True)
class Convolved:
    """What stands around a position, seen through a convolution of `groups` groups over `width` neighbours and a
    GELU, added to what is read (Baevski et al. 2020, section 2)."""

    width: int
    groups: int = 1

    def __post_init__(self) -> None:
        _require_positive(self, "width", "groups")


@dataclass(frozen=True)
class Stack:
    """What is read, where it stands, and the blocks it goes through.

    repeats: how often it goes through all of them, with the same parameters each time (Dehghani et al. 2019).
    """

    d_model: int
    blocks: tuple[Block, ...]
    reads: Reads
    positions: Learned | Sinusoidal | Convolved | None = None
    embed_norm: Norm | None = None
    final_norm: Norm | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        _require_positive(self, "d_model", "repeats")
        _require(len(self.blocks) > 0, self, "blocks=() was given; a stack has at least one block")
        if isinstance(self.positions, Sinusoidal):
            _require(self.d_model % 2 == 0, self, f"d_model={self.d_model} is odd; sinusoidal positions come in pairs")
        if isinstance(self.positions, Convolved):
            groups = self.positions.groups
            _require(self.d_model % groups == 0, self, f"d_model={self.d_model} is not a multiple of groups={groups}")
            _require(
                not any(block.self_attention.causal for block in self.blocks),
                self,
                "positions=Convolved was given with a causal block, to which it would show the future",
            )
        if isinstance(self.reads, Patches) and isinstance(self.positions, Learned):
            patches = self.positions.length - self.reads.leading
            _require(
                patches > 0 and math.isqrt(patches) ** 2 == patches,
                self,
                f"positions: length={self.positions.length} less the reads' leading={self.reads.leading} "
                f"is {patches}, which is no square of patches",
            )
        attentions = [one.self_attention for one in self.blocks if isinstance(one.self_attention, Attention)]
        by_position = {attention.position: attention.heads for attention in attentions}
        for attention in attentions:
            if isinstance(attention.position, RelativeBias):
                _require(
                    by_position[attention.position] == attention.heads,
                    self,
                    f"blocks share one RelativeBias but differ in heads ({by_position[attention.position]} and "
                    f"{attention.heads}); give the RelativeBias of one of them another size",
                )


@dataclass(frozen=True)
class Dense:
    """A linear layer, an activation and perhaps a norm between the last block and the answer (Devlin et al. 2019)."""

    activation: Activation
    norm: Norm | None = None

    def __post_init__(self) -> None:
        _require_choices(self)


@dataclass(frozen=True)
class Vocabulary:
    """Answers with a score for each token of the vocabulary that the last stack reads (tied: by its own vectors).

    scale: what the scores are multiplied by. dense: what goes before the comparison.
    """

    tied: bool = True
    bias: bool = False
    softcap: float | None = None
    scale: float | None = None
    dense: Dense | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "softcap", "scale")


@dataclass(frozen=True)
class Labels:
    """Answers each position with a score for each of `count` labels."""

    count: int
    dense: Dense | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "count")


Pool: TypeAlias = Literal["first", "second", "mean", "last"]
"""One vector for a whole input: that of one position, or the mean of what was read (leading vectors left out)."""


@dataclass(frozen=True)
class Classes:
    """Answers with one of `count` classes for the whole input; also: from a second vector beside the first."""

    count: int
    pool: Pool = "mean"
    dense: Dense | None = None
    also: Pool | None = None

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "count")


@dataclass(frozen=True)
class Vector:
    """Answers with one vector for the whole input, projected to `width` if given, of length 1 if `unit`."""

    pool: Pool = "mean"
    width: int | None = None
    unit: bool = True

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "width")


@dataclass(frozen=True)
class Actions:
    """Answers each step of a trajectory with the action to take there, as its state shows it, and with the return and
    the state that follow, as its action shows them (Chen et al. 2021). bounded: actions lie between -1 and 1."""

    bounded: bool = True


@dataclass(frozen=True)
class States:
    """Answers with the last block's own vector for each position."""


Answers: TypeAlias = Vocabulary | Labels | Classes | Vector | Actions | States


@dataclass(frozen=True)
class Transformer:
    """An encoder and a decoder (translation), a decoder alone (language model) or an encoder alone (classifier).

    shared_embedding: source and target use one embedding (Vaswani et al. 2017, section 3.4).
    """

    encoder: Stack | None
    decoder: Stack | None
    answers: Answers
    shared_embedding: bool = False

    def __post_init__(self) -> None:
        encoder, decoder = self.encoder, self.decoder
        _require(encoder is not None or decoder is not None, self, "neither encoder nor decoder was given")
        if decoder is not None:
            crossing = [block.cross_attention is not None for block in decoder.blocks]
            _require(
                encoder is not None or not any(crossing),
                self,
                "decoder blocks have cross_attention but encoder is None",
            )
            _require(
                encoder is None or any(crossing), self, "encoder was given but no decoder block has cross_attention"
            )
            _require(
                all(block.self_attention.causal for block in decoder.blocks),
                self,
                "a decoder block has self_attention.causal=False; a decoder would see the tokens it is to predict",
            )
            _require(
                isinstance(self.answers, Vocabulary),
                self,
                f"answers={type(self.answers).__name__} needs encoder alone; decoder was given",
            )
        if encoder is not None:
            _require(
                all(block.cross_attention is None for block in encoder.blocks),
                self,
                "encoder blocks have cross_attention",
            )
            if isinstance(self.answers, Actions):
                _require(
                    isinstance(encoder.reads, Trajectory)
                    and all(block.self_attention.causal for block in encoder.blocks),
                    self,
                    "answers=Actions was given; the encoder must then read a Trajectory, with causal blocks that do "
                    "not see the action they are to choose",
                )
        if self.shared_embedding:
            _require(encoder is not None and decoder is not None, self, "shared_embedding needs encoder and decoder")
            assert encoder is not None and decoder is not None
            source, target = encoder.reads, decoder.reads
            _require(
                isinstance(source, Tokens) and isinstance(target, Tokens),
                self,
                "shared_embedding, but encoder and decoder do not both read Tokens",
            )
            assert isinstance(source, Tokens) and isinstance(target, Tokens)
            for name, left, right in (
                ("d_model", encoder.d_model, decoder.d_model),
                ("vocab", source.vocab, target.vocab),
            ):
                _require(
                    left == right, self, f"shared_embedding, but {name} is {left} in encoder and {right} in decoder"
                )


@dataclass(frozen=True)
class Towers:
    """Two encoders that answer with vectors of one width, compared: every source with every target, by the cosine of
    their angle times a learned factor (Radford et al. 2021)."""

    source: Transformer
    target: Transformer

    def __post_init__(self) -> None:
        widths = []
        for name, tower in (("source", self.source), ("target", self.target)):
            _require(
                isinstance(tower.answers, Vector) and tower.answers.unit,
                self,
                f"{name} answers with {tower.answers}; it must be a Vector with unit=True",
            )
            assert isinstance(tower.answers, Vector) and tower.encoder is not None
            widths.append(tower.answers.width or tower.encoder.d_model)
        _require(widths[0] == widths[1], self, f"source's vectors have {widths[0]} numbers and target's {widths[1]}")


@dataclass(frozen=True)
class Recurrent:
    """The encoder-decoder that attention replaced.

    bidirectional: the encoder reads in both directions, with half of d_model each. bridged: a linear layer makes the
    decoder's first state from the encoder's last (Bahdanau et al. 2015, appendix A.2.2); else they are the same.
    attention: None, the decoder starts from the encoder's last state and sees nothing else (Sutskever 2014, Cho 2014);
    "additive", it looks back before each step (Bahdanau et al. 2015); "dot" or "general", after (Luong et al. 2015).
    """

    cell: Literal["gru", "lstm"]
    d_model: int
    layers: int
    source: Tokens
    target: Tokens
    attention: Literal["additive", "dot", "general"] | None = None
    answers: Vocabulary = Vocabulary(tied=False, bias=True)
    bidirectional: bool = True
    bridged: bool = True

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_positive(self, "d_model", "layers")
        _require(
            self.d_model % 2 == 0 or not self.bidirectional,
            self,
            f"d_model={self.d_model} is odd; each direction of the encoder takes half",
        )
        _require(
            self.bridged or (self.cell == "gru" and self.layers == 1 and not self.bidirectional),
            self,
            f"bridged=False was given with cell={self.cell!r}, layers={self.layers}, bidirectional="
            f"{self.bidirectional}; only one layer of a GRU that reads forwards ends with what a decoder begins with",
        )


Spec: TypeAlias = Transformer | Towers | Recurrent

_NODES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Norm, AcrossHeads, Interpolated, ByWavelength, Yarn, Stretched, Rotary, RelativeBias, Alibi, Attention,
        Recurrence, FeedForward, Experts, Block, Segments, Tokens, Patches, Frames, Convolution, Waveform,
        Trajectory, Learned, Sinusoidal, Convolved, Stack, Dense, Vocabulary, Labels, Classes, Vector, Actions,
        States, Transformer, Towers, Recurrent,
    )
}  # fmt: skip


def to_json(spec: Spec) -> str:
    """Write a spec as JSON: each node an object whose "node" names its class."""

    def encode(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"node": type(value).__name__, **fields}
        return [encode(item) for item in value] if isinstance(value, tuple) else value

    return json.dumps(encode(spec), indent=1)


def from_json(text: str) -> Spec:
    """Read a spec that `to_json` wrote. Raises SpecError for text that is not one, naming the place."""

    def decode(value: Any, where: str) -> Any:
        if isinstance(value, list):
            return tuple(decode(item, f"{where}[{number}]") for number, item in enumerate(value))
        if not isinstance(value, Mapping):
            return value
        name = value.get("node")
        if name not in _NODES:
            raise SpecError(f"{where}: node={name!r} was given; it must be one of {', '.join(_NODES)}")
        cls, fields = (
            _NODES[name],
            {key: decode(item, f"{where}.{key}") for key, item in value.items() if key != "node"},
        )
        hints = typing.get_type_hints(cls)
        for key, item in fields.items():
            if key not in hints:
                raise SpecError(f"{where}: {name} has no field {key!r}; it has {', '.join(hints)}")
            if not _fits(item, hints[key]):
                raise SpecError(f"{where}.{key}={item!r} was given; {name} takes {hints[key]} there")
        try:
            return cls(**fields)
        except TypeError as error:
            raise SpecError(f"{where}: {error}") from None

    try:
        spec = decode(json.loads(text), "spec")
    except json.JSONDecodeError as error:
        raise SpecError(f"the spec is not JSON: {error}") from None
    if not isinstance(spec, Spec):
        raise SpecError(f"the spec is a {type(spec).__name__}; it must be a Transformer or a Recurrent, or Towers")
    return spec


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if origin is typing.Union or isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
