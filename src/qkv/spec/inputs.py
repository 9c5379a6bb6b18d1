"""The nodes of what a stack reads: tokens, patches of an image, frames or samples of a sound, steps of an agent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qkv.spec.validation import require, require_choices, require_positive


@dataclass(frozen=True)
class Segments:
    """Up to `count` texts in one input, each ended by the token `separator`; a learned vector for each (BERT)."""

    count: int
    separator: int

    def __post_init__(self) -> None:
        require_positive(self, "count")
        require(self.separator >= 0, self, f"separator={self.separator} was given; it must be a token's number")


@dataclass(frozen=True)
class Tokens:
    """Reads a vocabulary's numbers: one learned vector each, times sqrt(d_model) if scaled (2017, section 3.4).

    width: the vectors' own, projected to d_model afterwards (Lan et al. 2020); d_model itself unless given.
    project_first: they are projected before their positions are added, and without a bias (Zhang et al. 2022).
    """

    vocab: int
    scale: bool = False
    width: int | None = None
    segments: Segments | None = None
    project_first: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "vocab", "width")
        require(not self.project_first or self.width is not None, self, "project_first, but no width was given")
        require(not self.project_first or self.segments is None, self, "project_first, and segments; expected one")


@dataclass(frozen=True)
class Convolution:
    """A window of `kernel_size` neighbours that moves on by `stride` and makes `channels` numbers at each stop."""

    channels: int
    kernel_size: int
    stride: int

    def __post_init__(self) -> None:
        require_positive(self, "channels", "kernel_size", "stride")


@dataclass(frozen=True)
class Patches:
    """Reads an image in squares of size x size pixels, each turned into a vector (Dosovitskiy et al. 2021).

    class_tokens: learned vectors before them, such as a class token. registers: more of these, that have no position
    (Darcet et al. 2024). antialias: learned positions are interpolated with antialiasing, for an image of another size.
    stem: convolutions over the image, each before a GELU, whose strides make smaller squares of these (Xiao et al.
    2021); the vectors are then made of what they give. stem_norm: "batch", what each convolution makes is normalised
    over the batch (Ioffe and Szegedy 2015). stem_residual: a convolution that keeps the shape has its result added to
    what it read (He et al. 2016).
    """

    size: int
    channels: int = 3
    class_tokens: int = 1
    registers: int = 0
    antialias: bool = False
    stem: tuple[Convolution, ...] = ()
    stem_norm: Literal["none", "batch"] = "none"
    stem_residual: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "size", "channels")
        _check_stem(self)
        strides = math.prod(one.stride for one in self.stem)
        require(self.size % strides == 0, self, f"size={self.size} is not a multiple of {strides}, the stem's strides")
        for name in ("class_tokens", "registers"):
            require(getattr(self, name) >= 0, self, f"{name}={getattr(self, name)} was given; it must be at least 0")


@dataclass(frozen=True)
class Frames:
    """Reads sound as frames of `mels` bands of pitch: two convolutions of width 3, each before a GELU, of which the
    second makes one position of two frames (Radford et al. 2022, section 2.2).

    stem, stem_norm, stem_residual: instead, convolutions over time and pitch, as over an image (see `Patches`); then a
    position is made of what they give for all bands.
    """

    mels: int
    stem: tuple[Convolution, ...] = ()
    stem_norm: Literal["none", "batch"] = "none"
    stem_residual: bool = False

    @property
    def frames_per_position(self) -> int:
        """How many frames make a position."""
        return math.prod(one.stride for one in self.stem) if self.stem else 2

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "mels")
        _check_stem(self)


def _check_stem(node: Patches | Frames) -> None:
    for one in node.stem:
        require(
            one.kernel_size % 2 == 1,
            node,
            f"stem: kernel_size={one.kernel_size} was given; it must be odd, to have a middle",
        )
    for name, unset in (("stem_norm", "none"), ("stem_residual", False)):
        given = getattr(node, name)
        require(bool(node.stem) or given == unset, node, f"{name}={given} was given, and no stem; expected both")


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
        require_choices(self)
        require(len(self.convolutions) > 0, self, "convolutions=() was given; at least one makes samples positions")


@dataclass(frozen=True)
class Trajectory:
    """Reads what an agent went through, each step as three positions: the return it is to reach, the state it sees
    and the action it takes, of `state_dim` and `action_dim` numbers (Chen et al. 2021).

    max_episode_steps: how many steps an episode may have; a learned vector for the time of a step is added to its
    three.
    return_conditioned: whether returns are read; without, each step is two positions, and the model clones behaviour.
    """

    state_dim: int
    action_dim: int
    max_episode_steps: int
    return_conditioned: bool = True

    @property
    def positions_per_step(self) -> int:
        """How many positions a step is."""
        return 3 if self.return_conditioned else 2

    def __post_init__(self) -> None:
        require_positive(self, "state_dim", "action_dim", "max_episode_steps")


Input: TypeAlias = Tokens | Patches | Frames | Waveform | Trajectory


@dataclass(frozen=True)
class Learned:
    """A learned vector for each position up to `length`, added to what is read.

    Of an image, the leading vectors and a square of patches; another image's are interpolated between these.
    """

    length: int

    def __post_init__(self) -> None:
        require_positive(self, "length")


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
        require_choices(self)
        require(self.start >= 0, self, f"start={self.start} was given; it must be at least 0")


@dataclass(frozen=True)
class Convolutional:
    """What stands around a position, seen through a convolution of `groups` groups over `kernel_size` neighbours and a
    GELU, added to what is read (Baevski et al. 2020, section 2)."""

    kernel_size: int
    groups: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "kernel_size", "groups")
