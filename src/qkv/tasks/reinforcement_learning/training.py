"""Training of Decision Transformers, which learn from episodes which actions lead to which returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qkv.data import IGNORE_INDEX, Batch
from qkv.data.text.packing import WindowSampler
from qkv.data.trajectories.environments import collect_episodes, make_environment
from qkv.data.trajectories.episodes import (
    Npz,
    Rollouts,
    SpaceSpec,
    Trajectories,
    TrajectorySource,
    concatenate,
    read_minari,
    read_npz,
)
from qkv.data.trajectories.windows import StepWindows, TrajectoryNormalizer, predicted_actions
from qkv.errors import DataError
from qkv.models import SequenceModel, build
from qkv.tasks.reinforcement_learning.config import DecisionTransformerConfig
from qkv.tasks.reinforcement_learning.model import DecisionTransformerAgent, evaluate_agent
from qkv.tasks.training_setup import TrainingSetup
from qkv.tasks.validation import Validator
from qkv.training import ValidationResult
from qkv.training.loss import smoothed_and_plain_cross_entropy

_BATCH_SIZE = 64


@dataclass(frozen=True)
class TrajectorySplits:
    """Episodes for training and validation; `notes` are for the user."""

    train: Trajectories
    valid: Trajectories
    notes: tuple[str, ...] = ()


def load_data(recipe: DecisionTransformerConfig) -> TrajectorySplits:
    """Generate or read a recipe's episodes and hold some out.

    Raises DataError for episodes that cannot be read or do not fit the environment, and MissingExtraError without
    gymnasium
    or h5py, if they are needed.
    """
    data = recipe.data
    sizes = None if data.environment_name is None else make_environment(data.environment_name).space
    parts, notes = [], []
    for origin in data.train:
        found, source_notes = _read_source(origin, sizes)
        parts.append(found)
        notes += source_notes
    every = concatenate(parts)
    if len(every) < 2:
        raise DataError("there is only one episode; expected at least 2, one of them to validate on")
    order = np.argsort(np.random.PCG64([recipe.training.seed, 7]).random_raw(len(every)), kind="stable")
    held = min(max(1, round(data.held_out * len(every))), len(every) - 1)
    train, valid = every.select(np.sort(order[held:])), every.select(np.sort(order[:held]))
    notes.append(_describe(train, held))
    return TrajectorySplits(train, valid, tuple(notes))


def _read_source(source: TrajectorySource, space: SpaceSpec | None) -> tuple[Trajectories, list[str]]:
    if isinstance(source, Rollouts):
        return collect_episodes(source), []
    found = read_npz(source.path) if isinstance(source, Npz) else read_minari(source.path)
    return found.to_trajectories(space), found.notes


def _describe(train: Trajectories, n_held_out: int) -> str:
    returns = train.returns
    low, middle, high = np.percentile(returns, (10, 50, 90))
    top = float((returns >= returns.max()).mean())
    return (
        f"{len(train):,} episodes of {len(train.rewards):,} steps to train on, {n_held_out:,} to validate on; "
        f"returns: mean "
        f"{returns.mean():.4g}, tenth {low:g}, median {middle:g}, nine tenths {high:g}, highest {returns.max():g} "
        f"({top:.1%} of them)"
    )


def build_training_setup(
    recipe: DecisionTransformerConfig, splits: TrajectorySplits, run_folder: Path, cache_folder: Path, resume: bool
) -> TrainingSetup:
    """Build the windows of steps, the initial model and its validator."""
    data, seed = recipe.data, recipe.training.seed
    shown = TrajectoryNormalizer.fit(splits.train, data.observed_dims)
    windows = StepWindows(splits.train, shown, data.context, seed, data.temperature, data.random_start_fraction)
    longest = max(int(part.lengths.max()) for part in (splits.train, splits.valid))
    if data.environment_name is not None:
        longest = max(longest, make_environment(data.environment_name).max_steps)
    torch.manual_seed(seed)
    model = build(recipe.model.spec(shown.state_dim, shown.space.action_dim, longest, bounded=not shown.space.discrete))
    agent = DecisionTransformerAgent(
        model, shown, data.environment_name, replace(recipe.rollout, context_length=data.context)
    )
    steps = min(data.context, int(splits.train.lengths.max()))
    sampler = WindowSampler(windows, max(1, data.batch_steps // steps), seed)
    losses = ActionLoss(shown, recipe.training.label_smoothing)
    validator, modes = _build_validator(agent, splits.valid, losses, recipe)
    return TrainingSetup(agent, sampler, windows.collate, validator, modes, compute_loss=losses)


class ActionLoss:
    """The loss of actions: cross-entropy of choices, half of the squared error of numbers (Chen et al. 2021)."""

    def __init__(self, normalizer: TrajectoryNormalizer, label_smoothing: float) -> None:
        self.discrete, self.action_dim, self.label_smoothing = (
            normalizer.space.discrete,
            normalizer.space.action_dim,
            label_smoothing,
        )

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        answers = predicted_actions(model(batch.source), self.action_dim)
        if self.discrete:
            return smoothed_and_plain_cross_entropy(answers, batch.labels, self.label_smoothing)
        assert batch.source is not None
        real = batch.labels != IGNORE_INDEX
        error = functional.mse_loss(answers[real], batch.source[..., -self.action_dim :][real], reduction="sum") / 2
        return error, error.detach()


def _build_validator(
    agent: DecisionTransformerAgent, valid: Trajectories, losses: ActionLoss, recipe: DecisionTransformerConfig
) -> tuple[Validator, dict[str, Literal["min", "max"]]]:
    """Return the validator of held-out episodes, which also plays in the environment if there is one, and its modes."""
    windows = StepWindows(valid, agent.normalizer, recipe.data.context)
    target_returns = recipe.data.target_returns or (agent.normalizer.max_return,)
    modes: dict[str, Literal["min", "max"]] = {"loss": "min"}
    if losses.discrete:
        modes["accuracy"] = "max"
    if agent.environment is not None:
        modes["return"] = "max"

    def load_batches() -> Iterator[Batch]:
        for start in range(0, windows.count, _BATCH_SIZE):
            yield windows.collate(range(start, min(start + _BATCH_SIZE, windows.count)))

    def compute_loss(model: SequenceModel, batch: Batch) -> tuple[float, int, tuple[int, int]]:
        right = 0
        if losses.discrete:
            answers = predicted_actions(model(batch.source), losses.action_dim)
            right = int((answers.argmax(dim=-1) == batch.labels).sum())
        return float(losses(model, batch)[1]), batch.target_tokens, (right, batch.target_tokens)

    def score(model: SequenceModel, predictions: list[tuple[int, int]]) -> ValidationResult:
        metrics, samples = {}, []
        if losses.discrete:
            metrics["accuracy"] = 100 * sum(right for right, _ in predictions) / sum(count for _, count in predictions)
        if agent.environment is not None:
            changed = replace(agent, module=model)
            statistics = evaluate_agent(changed, target_returns, recipe.data.valid_episodes, seed=0).statistics
            metrics["return"] = statistics[-1].mean
            samples = [
                f"asked for {one.target_return:g}: {one.mean:g} +- {one.confidence_95:.3g}" for one in statistics
            ]
        return ValidationResult(metrics, samples)

    return Validator(load_batches, compute_loss, score), modes
