"""The nodes of inputs: tokens, patches of an image, frames or samples of audio, steps of an agent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qkv.spec.validation import require, require_choices, require_positive


@dataclass(frozen=True)
class Segments:
    """Up to `count` segments in one input, each ended by the token `separator`, with a learned vector
    for each (BERT)."""

    count: int
    separator: int

    def __post_init__(self) -> None:
        require_positive(self, "count")
        require(self.separator >= 0, self, f"separator={self.separator} was given; it must be a token's number")


@dataclass(frozen=True)
class Tokens:
    """Token ids: one learned vector for each, times sqrt(d_model) if scaled (2017, section 3.4).

    width: the size of the vectors, which are then projected to d_model (Lan et al. 2020); d_model by default.
    project_first: project before the positions are added, without a bias (Zhang et al. 2022).
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
    """A convolution over `kernel_size` neighbours with a `stride` and `channels` output channels."""

    channels: int
    kernel_size: int
    stride: int

    def __post_init__(self) -> None:
        require_positive(self, "channels", "kernel_size", "stride")


@dataclass(frozen=True)
class Patches:
    """An image in patches of size x size pixels, each of which becomes a vector (Dosovitskiy et al. 2021).

    class_tokens: learned vectors before them, such as a class token. registers: more of these, without positions
    (Darcet et al. 2024). antialias: interpolate learned positions with antialiasing for an image of another size.
    stem: convolutions over the image, each followed by a GELU, whose output is split into patches, smaller by their
    strides
    (Xiao et al. 2021). stem_norm: "batch" normalises the output of each convolution over the batch (Ioffe and Szegedy
    2015). stem_residual: add the output of a convolution that keeps the shape to its input (He et al. 2016).
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
    """Audio as frames of `mels` frequency bands: two convolutions of width 3, each followed by a GELU, the second of
    which
    makes one position of two frames (Radford et al. 2022, section 2.2).

    stem, stem_norm, stem_residual: instead, convolutions over time and frequency, as over an image (see `Patches`); a
    position is then a projection of their output for all bands.
    """

    mels: int
    stem: tuple[Convolution, ...] = ()
    stem_norm: Literal["none", "batch"] = "none"
    stem_residual: bool = False

    @property
    def frames_per_position(self) -> int:
        """The number of frames in a position."""
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
    """Audio samples through convolutions, each followed by a GELU, whose normalised output is projected (Baevski et al.
    2020, section 2).

    norm_at: "first" normalises each channel of the first convolution over time (Wu and He 2018); "each" normalises the
    output of every convolution over its channels.
    """

    convolutions: tuple[Convolution, ...]
    norm_at: Literal["first", "each"] = "first"
    bias: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
        require(len(self.convolutions) > 0, self, "convolutions=() was given; at least one makes samples positions")


@dataclass(frozen=True)
class Trajectory:
    """The trajectory of an agent, each step as three positions: its return-to-go, its state and its action, with
    `state_dim` and `action_dim` numbers (Chen et al. 2021).

    max_episode_steps: the number of steps that an episode may have; a learned vector for the time of a step is added to
    its positions.
    return_conditioned: whether returns are read; without them each step is two positions, and the model clones
    behaviour.
    """

    state_dim: int
    action_dim: int
    max_episode_steps: int
    return_conditioned: bool = True

    @property
    def positions_per_step(self) -> int:
        """The number of positions in a step."""
        return 3 if self.return_conditioned else 2

    def __post_init__(self) -> None:
        require_positive(self, "state_dim", "action_dim", "max_episode_steps")


Input: TypeAlias = Tokens | Patches | Frames | Waveform | Trajectory


@dataclass(frozen=True)
class Learned:
    """A learned vector for each position up to `length`, added to the input.

    For images: the prefix vectors and a square of patches; images of other sizes use interpolated positions.
    """

    length: int

    def __post_init__(self) -> None:
        require_positive(self, "length")


@dataclass(frozen=True)
class Sinusoidal:
    """Fixed sinusoids of geometrically growing wavelength, added to the input (Vaswani et al. 2017, section 3.5).

    layout: "paired", sine and cosine of a wavelength are adjacent as in the paper; "halves", all sines before all
    cosines;
    "tensor2tensor", halves whose longest wavelength is exactly 10000 * 2 pi, as in its authors' code. start: the number
    of the first position.
    """

    layout: Literal["paired", "halves", "tensor2tensor"] = "paired"
    start: int = 0

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.start >= 0, self, f"start={self.start} was given; it must be at least 0")


@dataclass(frozen=True)
class Convolutional:
    """The neighbourhood of each position, convolved over `kernel_size` neighbours in `groups` groups, followed by a
    GELU and
    added to the input (Baevski et al. 2020, section 2).
    """

    kernel_size: int
    groups: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "kernel_size", "groups")
