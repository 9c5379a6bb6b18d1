"""Positions: sinusoids added to the input, rotations of queries and keys, or a bias of the scores by distance."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkv import spec


def compute_sinusoids(
    positions: Int[Tensor, " length"], d_model: int, layout: str = "paired"
) -> Float[Tensor, "length d_model"]:
    """Compute sines and cosines of wavelengths from 2 pi to 10000 * 2 pi in the layout of `spec.Sinusoidal`.

    Vaswani et al. 2017, section 3.5.
    """
    half = d_model // 2
    steps = half - 1 if layout == "tensor2tensor" else half
    rates = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10000.0) / steps))
    angles = positions[:, None].float() * rates
    if layout == "paired":
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def compute_rotations(
    positions: Int[Tensor, " length"], d_key: int, config: spec.Rotary
) -> tuple[Float[Tensor, "length turned"], Float[Tensor, "length turned"]]:
    """Compute the factors of `apply_rotary`: for each pair of dimensions the cosine, twice, and the sine, negative for
    the
    first dimension and positive for the second (Su et al. 2021, eq. 15).
    """
    turned = int(d_key * config.fraction)
    rates = 1.0 / config.base ** (torch.arange(0, turned, 2, device=positions.device).float() / turned)
    growth = 1.0
    if config.scaling is not None:
        rates, growth = scale_frequencies(rates, config.base, config.scaling, positions[-1])
    angles = positions[:, None].float() * rates
    cosines, sines = angles.cos() * growth, angles.sin() * growth
    return torch.cat([cosines, cosines], dim=-1), torch.cat([-sines, sines], dim=-1)


def scale_frequencies(
    frequencies: Float[Tensor, " half"], base: float, scaling: spec.Scaling, last_position: Int[Tensor, ""]
) -> tuple[Float[Tensor, " half"], float]:
    """Scale frequencies for a text that ends at `last_position`; also return the factor of queries and keys."""
    match scaling:
        case spec.LinearScaling(factor):
            return frequencies / factor, 1.0
        case spec.Llama3Scaling(factor, low, high, learned):
            turns = learned * frequencies / (2 * math.pi)
            kept = ((turns - low) / (high - low)).clamp(0, 1)
            return frequencies * (kept + (1 - kept) / factor), 1.0
        case spec.YarnScaling(factor, learned, fast, slow, attention, whole):
            half = len(frequencies)

            def dimension(turns: float) -> float:
                """Return the pair of dimensions that turns `turns` times over the learned length."""
                return half * math.log(learned / (turns * 2 * math.pi)) / math.log(base)

            first, last = dimension(fast), dimension(slow)
            if whole:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, 2 * half - 1)
            places = torch.arange(half, device=frequencies.device).float()
            kept = 1 - ((places - first) / max(last - first, 0.001)).clamp(0, 1)
            return frequencies * (kept + (1 - kept) / factor), attention
        case spec.LongRopeScaling(short, long, learned, attention):
            # selected by a tensor, so that an exported graph selects as well
            near, far = torch.tensor(short, device=frequencies.device), torch.tensor(long, device=frequencies.device)
            return frequencies / torch.where(last_position < learned, near, far), attention


def apply_rotary(
    vectors: Float[Tensor, "batch heads length d_key"],
    cosines: Float[Tensor, "length turned"],
    sines: Float[Tensor, "length turned"],
) -> Float[Tensor, "batch heads length d_key"]:
    """Rotate dimension i against dimension i + turned / 2, for the first `turned` dimensions; the rest is unchanged."""
    width = cosines.shape[-1]
    cosines, sines = cosines.to(vectors.dtype), sines.to(vectors.dtype)
    first, rest = vectors[..., :width], vectors[..., width:]
    # rolls each half of whole rows into the other's place; on a CPU half the time of concatenating pieces
    turned = first * cosines + torch.roll(first, width // 2, dims=-1) * sines
    return turned if width == vectors.shape[-1] else torch.cat([turned, rest], dim=-1)


def compute_distances(queries: int, keys: int, past: int, device: torch.device) -> Int[Tensor, "queries keys"]:
    """Compute how far each key is ahead of each query; negative for keys before it."""
    query_positions = torch.arange(past, past + queries, device=device)
    return torch.arange(keys, device=device) - query_positions[:, None]


class RelativeBias(nn.Module):
    """A learned bias for each head and bucket of distances (Raffel et al. 2020, section 2.1).

    Half of the buckets contain one distance each, the other half grow geometrically up to max_distance. A bidirectional
    stack uses half of the buckets for each direction.
    """

    def __init__(self, config: spec.RelativeBias, heads: int, bidirectional: bool) -> None:
        super().__init__()
        self.config, self.bidirectional = config, bidirectional
        self.bias = nn.Parameter(torch.zeros(config.buckets, heads))

    def forward(self, distances: Int[Tensor, "queries keys"]) -> Float[Tensor, "1 heads queries keys"]:
        return self.bias[self._bucket(distances)].permute(2, 0, 1)[None]

    def _bucket(self, distances: Tensor) -> Tensor:
        buckets = self.config.buckets
        offset = torch.zeros_like(distances)
        if self.bidirectional:
            buckets //= 2
            offset = (distances > 0) * buckets
            distance = distances.abs()
        else:
            distance = (-distances).clamp(min=0)
        exact = buckets // 2
        growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.config.max_distance / exact)
        far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
        return offset + torch.where(distance < exact, distance, far)


def compute_alibi_bias(
    distances: Int[Tensor, "queries keys"], heads: int, factor: float = 1.0
) -> Float[Tensor, "1 heads queries keys"]:
    """Compute the bias -slope * distance * factor with slopes 2^(-8/heads), 2^(-16/heads), ... (Press et al. 2022,
    section 3).

    If the number of heads is not a power of two: the slopes of the next lower power, then every second one of the next
    higher power, as in its authors' code.
    """

    def slopes(count: int) -> list[float]:
        return [2 ** (-8 * (head + 1) / count) for head in range(count)]

    power = 2 ** math.floor(math.log2(heads))
    slope = torch.tensor(slopes(power) + slopes(2 * power)[::2][: heads - power], device=distances.device)
    return -factor * slope[None, :, None, None] * distances.abs()
