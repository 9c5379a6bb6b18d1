"""The nodes of a block: attention with its positions, feed-forward, norms, and their places around residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from qkv.spec.validation import require, require_choices, require_positive


@dataclass(frozen=True)
class Norm:
    """Layer normalisation (Ba et al. 2016) or its root-mean-square form without centring (Zhang & Sennrich 2019)."""

    kind: Literal["layer", "rms"] = "layer"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "eps")


@dataclass(frozen=True)
class AcrossHeads:
    """A norm over the queries (or keys) of all heads together, rather than over each head's own (OLMo 2)."""

    norm: Norm


@dataclass(frozen=True)
class LinearScaling:
    """Rotary angles divided by `factor`, so that longer texts fit the learned range of angles (Chen et al. 2023)."""

    factor: float

    def __post_init__(self) -> None:
        require_positive(self, "factor")


@dataclass(frozen=True)
class Llama3Scaling:
    """Rotary angles scaled by wavelength (Llama 3.1): divided by `factor` if the wavelength exceeds `original_length` /
    `low_freq_factor`, kept if it is below `original_length` / `high_freq_factor`, interpolated between.
    original_length:
    the positions learned before the scaling.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int

    def __post_init__(self) -> None:
        require_positive(self, "factor", "low_freq_factor", "original_length")
        require(
            self.high_freq_factor > self.low_freq_factor,
            self,
            f"high_freq_factor={self.high_freq_factor} was given; it must be greater than "
            f"low_freq_factor={self.low_freq_factor}",
        )


@dataclass(frozen=True)
class YarnScaling:
    """Rotary angles divided by `factor` in dimensions that turn fewer than `beta_slow` times over `original_length`
    positions, kept in those that turn more than `beta_fast` times, interpolated between; queries and keys are
    multiplied by
    `attention_factor` (Peng et al. 2023). truncate: the interpolation begins and ends at whole dimensions.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "factor", "original_length", "beta_fast", "beta_slow", "attention_factor")


@dataclass(frozen=True)
class LongRopeScaling:
    """Rotary angles divided by a factor for each dimension: `short_factor` up to `original_length` positions,
    `long_factor`
    in longer texts; queries and keys are multiplied by `attention_factor` (LongRoPE, Ding et al. 2024).
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_length: int
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "original_length", "attention_factor")
        require(
            len(self.short_factor) == len(self.long_factor),
            self,
            f"short_factor has {len(self.short_factor)} numbers and long_factor {len(self.long_factor)}",
        )


Scaling: TypeAlias = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021): queries and keys are rotated by angles that grow with the position.

    fraction: the share of each head's dimensions that is rotated (the first ones). scaling: how the angles of a model
    that
    was trained on short texts are changed for longer ones.
    """

    base: float = 10000.0
    fraction: float = 1.0
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        require_positive(self, "base", "fraction")
        require(self.fraction <= 1, self, f"fraction={self.fraction} was given; it must be at most 1")


@dataclass(frozen=True)
class RelativeBias:
    """A learned bias of the scores for each head and bucket of distances (Raffel et al. 2020, T5).

    All attentions of a stack with an equal RelativeBias share its parameters.
    """

    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        require_positive(self, "buckets", "max_distance")
        require(
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
        require_positive(self, "factor")


Position: TypeAlias = Rotary | RelativeBias | Alibi


@dataclass(frozen=True)
class Attention:
    """Multi-head attention (Vaswani et al. 2017, section 3.2); with fewer kv_heads than heads, grouped (Ainslie 2023).

    d_value defaults to d_key and kv_heads to heads; scale to 1 / sqrt(d_key). softcap limits the scores to plus and
    minus
    its value by a tanh. qk_norm normalises queries and keys, for each head or across heads. sinks adds a learned score
    for each head that takes weight and has no value.
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
        require_positive(self, "heads", "d_key", "d_value", "kv_heads", "window", "scale", "softcap")
        if self.kv_heads is not None:
            require(
                self.heads % self.kv_heads == 0,
                self,
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}",
            )
        if isinstance(self.position, Rotary):
            turned = self.d_key * self.position.fraction
            require(
                turned == int(turned) and int(turned) % 2 == 0,
                self,
                f"d_key={self.d_key} x rotary fraction={self.position.fraction} is not an even number",
            )


Activation: TypeAlias = Literal["relu", "relu_squared", "gelu", "gelu_tanh", "gelu_sigmoid", "silu", "tanh"]
"""gelu_tanh and gelu_sigmoid are the two approximations by Hendrycks and Gimpel 2016."""


@dataclass(frozen=True)
class FeedForward:
    """Two linear layers around an activation; gated, a third is multiplied by the activated one (Shazeer 2020).

    limit: clamp the gate to at most this value, clamp what it multiplies to plus and minus this value and add 1 to it
    (OpenAI 2025, gpt-oss).
    """

    d_ff: int
    activation: Activation = "relu"
    gated: bool = False
    bias: bool = True
    limit: float | None = None

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "d_ff", "limit")
        require(self.limit is None or self.gated, self, f"limit={self.limit} was given with gated=False")


@dataclass(frozen=True)
class Experts:
    """`count` feed-forward networks, `top_k` of which process each token: those with the highest router scores.

    Their outputs are averaged with the softmax of these scores as weights (Shazeer et al. 2017).
    """

    count: int
    top_k: int
    expert: FeedForward

    def __post_init__(self) -> None:
        require_positive(self, "count", "top_k")
        require(self.top_k <= self.count, self, f"top_k={self.top_k} was given of count={self.count}")


@dataclass(frozen=True)
class SSRU:
    """A recurrent unit in place of self-attention to the past (SSRU, Kim et al. 2019, section 3.1).

    forget = sigmoid(W_f x + b); state = forget * previous state + (1 - forget) * W x; the output is relu(state).
    """

    @property
    def causal(self) -> bool:
        """Always true: later positions cannot affect earlier ones."""
        return True

    @property
    def position(self) -> None:
        """Always None: recurrence needs no positions."""
        return None


@dataclass(frozen=True)
class Block:
    """One layer: self-attention, optional cross-attention and feed-forward, each with a residual around it.

    norm_at: "post" x = norm(x + f(x)) as in 2017; "pre" x = x + f(norm(x)); "both" x = x + norm(f(norm(x)));
    "result" x = x + norm(f(x)). parallel: attention and feed-forward read the same x, and both results are added
    (Wang and Komatsuzaki 2021). has_first_norm: False omits the norm before the self-attention of a "pre" block.
    """

    self_attention: Attention | SSRU
    feed_forward: FeedForward | Experts
    cross_attention: Attention | None = None
    norm: Norm = Norm()
    norm_at: Literal["pre", "post", "both", "result"] = "pre"
    parallel: bool = False
    has_first_norm: bool = True

    def __post_init__(self) -> None:
        require_choices(self)
        if self.parallel:
            require(self.norm_at == "pre", self, f"parallel with norm_at={self.norm_at!r}; it must be 'pre'")
            require(self.cross_attention is None, self, "parallel was given with cross_attention, which has no place")
        require(
            self.has_first_norm or self.norm_at == "pre", self, f"has_first_norm=False with norm_at={self.norm_at!r}"
        )
        if self.cross_attention is not None:
            require(
                not self.cross_attention.causal, self, "cross_attention.causal=True was given; a memory has no future"
            )
            require(
                not isinstance(self.cross_attention.position, Rotary),
                self,
                "cross_attention.position=Rotary was given; queries and keys of two sequences share no positions",
            )
