"""The recipe of a Decision Transformer: its data and the shape of its model.

This module needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qkv import spec
from qkv.data.trajectories.episodes import Rollouts, TrajectorySource
from qkv.decoding.config import RolloutConfig
from qkv.errors import ConfigError, SpecError
from qkv.training.config import TrainingConfig


@dataclass(frozen=True)
class TrajectoryData:
    """The episodes to train on, and the environment to act in.

    environment: where the agent acts; by default that of the first generated episodes. Without any, it is validated on
    held-out episodes only. context: the number of steps in the model's context. batch_steps: the number of steps in a
    batch.
    temperature: the lower, the more often episodes with a high return are drawn (see
    `qkv.data.trajectories.windows.StepWindows`); by default all alike. random_start_fraction: the fraction of windows
    that
    begin at a random one of their steps. held_out: the fraction of episodes that is never trained on. observed_dims:
    the
    dimensions of a state that the model receives, by default all. target_returns: the returns to aim for, by default
    the
    highest in the data. valid_episodes: how many episodes to play for each of these at a validation.
    """

    train: tuple[TrajectorySource, ...]
    environment: str | None = None
    context: int = 20
    batch_steps: int = 1280
    temperature: float | None = None
    random_start_fraction: float = 0.0
    held_out: float = 0.05
    observed_dims: tuple[int, ...] | None = None
    target_returns: tuple[float, ...] = ()
    valid_episodes: int = 20

    def __post_init__(self) -> None:
        problems = []
        if not self.train:
            problems.append("train=[]: expected at least one source of episodes to train on")
        if not 0 < self.held_out < 1:
            problems.append(f"held_out={self.held_out}: expected a share above 0 and below 1")
        if self.context < 1:
            problems.append(f"context={self.context}: expected at least 1 step")
        if self.batch_steps < self.context:
            problems.append(f"batch_steps={self.batch_steps}: expected at least context={self.context}")
        if self.temperature is not None and self.temperature <= 0:
            problems.append(f"temperature={self.temperature}: expected a number above 0, or null for all alike")
        if not 0 <= self.random_start_fraction <= 1:
            problems.append(f"late={self.random_start_fraction}: expected a share from 0 to 1")
        if self.valid_episodes < 1:
            problems.append(f"valid_episodes={self.valid_episodes}: expected at least 1")
        if problems:
            raise ConfigError(problems)

    @property
    def environment_name(self) -> str | None:
        """The environment to act in."""
        played = (origin.environment for origin in self.train if isinstance(origin, Rollouts))
        return self.environment or next(played, None)


@dataclass(frozen=True)
class DecisionTransformer:
    """The Decision Transformer (Chen et al. 2021): interleaved returns, states and actions in causal blocks.

    return_conditioned: whether it reads the return-to-go; without it, it clones the behaviour in the data.
    """

    d_model: int = 64
    heads: int = 1
    layers: int = 3
    d_ff: int = 256
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "relu"
    return_conditioned: bool = True

    def __post_init__(self) -> None:
        self.spec(1, 2, 1, bounded=False)  # a contradictory shape is refused together with the recipe

    def spec(self, state_dim: int, action_dim: int, max_steps: int, bounded: bool) -> spec.Transformer:
        """Build the spec of this shape for the sizes of states and actions and the maximum length of episodes."""
        if self.d_model % self.heads:
            raise SpecError(f"d_model={self.d_model} is not a multiple of heads={self.heads}")
        block = spec.Block(
            spec.Attention(self.heads, self.d_model // self.heads, causal=True),
            spec.FeedForward(self.d_ff, self.activation),
        )
        reads = spec.Trajectory(state_dim, action_dim, max_steps, self.return_conditioned)
        stack = spec.Stack(self.d_model, (block,) * self.layers, reads, embed_norm=spec.Norm(), final_norm=spec.Norm())
        return spec.Transformer(stack, None, spec.Actions(bounded))


@dataclass(frozen=True)
class DecisionTransformerConfig:
    """The recipe of an agent; it gives the same bytes each time, as described at `qkv.tasks.Recipe`."""

    task: Literal["decision-transformer"]
    data: TrajectoryData
    training: TrainingConfig
    model: DecisionTransformer = DecisionTransformer()
    rollout: RolloutConfig = RolloutConfig()


OWN_DATA = "one .npz file of episodes, or one Minari data set"
"""The files that `find_source` accepts."""


def find_source(files: Sequence[Path]) -> dict[str, Any] | None:
    """Return the data source that a user's files are, as a recipe writes it; None if they are none."""
    return {"kind": "minari" if files[0].is_dir() else "npz", "path": str(files[0])} if len(files) == 1 else None
