"""The task act: a model learns from episodes which actions lead to which returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qkv.data import IGNORE, Batch
from qkv.data.environments import behave, make
from qkv.data.packing import WindowSampler
from qkv.data.steps import Shown, StepWindows, foretold
from qkv.data.trajectories import Npz, Played, Sizes, Trajectories, TrajectoryOrigin, joined, read_minari, read_npz
from qkv.errors import ConfigError, DataError
from qkv.models import SequenceModel, build
from qkv.tasks.actor import ActRecipe
from qkv.tasks.agent import Agent, measure
from qkv.tasks.lesson import Lesson
from qkv.training import Validated
from qkv.training.loss import with_plain

_BATCH = 64


@dataclass(frozen=True)
class Episodes:
    """Episodes to learn from and to check on; what there is to know about them."""

    train: Trajectories
    valid: Trajectories
    notes: tuple[str, ...] = ()


def gather(recipe: ActRecipe) -> Episodes:
    """Play or read a recipe's episodes and hold some out.

    Raises DataError for what cannot be read or does not fit the environment; MissingExtraError without gymnasium or
    h5py, where they are needed.
    """
    data = recipe.data
    sizes = None if data.stage is None else make(data.stage).sizes
    parts, notes = [], []
    for origin in data.train:
        found, said = _read(origin, sizes)
        parts.append(found)
        notes += said
    every = joined(parts)
    if len(every) < 2:
        raise DataError("there is one episode alone; expected at least 2, one of them to check on")
    order = np.argsort(np.random.PCG64([recipe.training.seed, 7]).random_raw(len(every)), kind="stable")
    held = min(max(1, round(data.held_out * len(every))), len(every) - 1)
    train, valid = every.only(np.sort(order[held:])), every.only(np.sort(order[:held]))
    notes.append(_about(train, held))
    return Episodes(train, valid, tuple(notes))


def _read(origin: TrajectoryOrigin, sizes: Sizes | None) -> tuple[Trajectories, list[str]]:
    if isinstance(origin, Played):
        return behave(origin), []
    found = read_npz(origin.path) if isinstance(origin, Npz) else read_minari(origin.path)
    return found.together(sizes), found.notes


def _about(train: Trajectories, held: int) -> str:
    returns = train.returns
    low, middle, high = np.percentile(returns, (10, 50, 90))
    top = float((returns >= returns.max()).mean())
    return (
        f"{len(train):,} episodes of {len(train.rewards):,} steps to learn from, {held:,} to check on; returns: mean "
        f"{returns.mean():.4g}, tenth {low:g}, median {middle:g}, nine tenths {high:g}, highest {returns.max():g} "
        f"({top:.1%} of them)"
    )


def lesson(recipe: ActRecipe, episodes: Episodes, place: Path, tokens: Path, resume: bool) -> Lesson:
    """The windows of steps, the model before its first step, and what judges it."""
    data, seed = recipe.data, recipe.training.seed
    shown = Shown.of(episodes.train, data.shown)
    windows = StepWindows(episodes.train, shown, data.context, seed, data.temperature, data.late)
    longest = max(int(part.lengths.max()) for part in (episodes.train, episodes.valid))
    if data.stage is not None:
        longest = max(longest, make(data.stage).longest)
    torch.manual_seed(seed)
    model = build(recipe.model.spec(shown.state, shown.sizes.action, longest, bounded=not shown.sizes.choices))
    agent = Agent(model, shown, data.stage, replace(recipe.acting, context=data.context))
    steps = min(data.context, int(episodes.train.lengths.max()))
    sampler = WindowSampler(windows, max(1, data.batch_steps // steps), seed)
    losses = Losses(shown, recipe.training.label_smoothing)
    judge = Judge(agent, episodes.valid, losses, recipe)
    return Lesson(agent, sampler, windows.batch, judge, [], losses)


class Losses:
    """The loss of the actions: cross entropy of choices, half of the squared error of numbers (Chen et al. 2021)."""

    def __init__(self, shown: Shown, smoothing: float) -> None:
        self.choices, self.action, self.smoothing = shown.sizes.choices, shown.sizes.action, smoothing

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        answers = foretold(model(batch.source), self.action)
        if self.choices:
            return with_plain(answers, batch.labels, self.smoothing)
        assert batch.source is not None
        real = batch.labels != IGNORE
        error = functional.mse_loss(answers[real], batch.source[..., -self.action :][real], reduction="sum") / 2
        return error, error.detach()


class Judge:
    """Validates: the loss on held-out episodes, how many choices are as they were, and the returns it achieves."""

    def __init__(self, agent: Agent, valid: Trajectories, losses: Losses, recipe: ActRecipe) -> None:
        self.agent, self.losses, self.data = agent, losses, recipe.data
        self.windows = StepWindows(valid, agent.shown, recipe.data.context)
        self.asked = recipe.data.asked or (agent.shown.best,)
        names = {"loss": "lower"}
        if agent.shown.sizes.choices:
            names["accuracy"] = "higher"
        if agent.environment is not None:
            names["return"] = "higher"
        given = recipe.training.validation
        if given.metric not in names:
            raise ConfigError(
                [f"training.validation.metric: given {given.metric!r}, expected one of {', '.join(names)}"]
            )
        if given.better != names[given.metric]:
            raise ConfigError(
                [f"training.validation.better: given {given.better!r}; {given.metric} is better {names[given.metric]}"]
            )

    def __call__(self, model: SequenceModel) -> Validated:
        metrics, samples = self._foretell(model), []
        if self.agent.environment is not None:
            playing = measure(replace(self.agent, model=model), self.asked, self.data.valid_episodes, seed=0)
            metrics["return"] = playing.achieved[-1].mean
            samples = [f"asked for {one.asked:g}: {one.mean:g} +- {one.error:.3g}" for one in playing.achieved]
        return Validated(metrics, samples)

    @torch.no_grad()
    def _foretell(self, model: SequenceModel) -> dict[str, float]:
        device = next(model.parameters()).device
        total = right = count = 0.0
        for start in range(0, self.windows.count, _BATCH):
            batch = self.windows.batch(range(start, min(start + _BATCH, self.windows.count))).to(device)
            total += float(self.losses(model, batch)[1])
            count += batch.target_tokens
            if self.losses.choices:
                answers = foretold(model(batch.source), self.losses.action)
                right += int((answers.argmax(dim=-1) == batch.labels).sum())
        return {"loss": total / count, **({"accuracy": 100 * right / count} if self.losses.choices else {})}
