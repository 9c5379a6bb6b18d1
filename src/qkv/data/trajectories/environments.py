"""Environments for agents: those of gymnasium (extra `act`), and key-to-door, which needs no package."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qkv.data.trajectories.episodes import (
    Episode,
    FloatArray,
    Rollouts,
    SpaceSpec,
    Trajectories,
    TrajectoryBuffer,
    one_hot,
)
from qkv.errors import DataError, MissingExtraError

Action = int | npt.NDArray[np.float32]


class Environment(Protocol):
    """The protocol of an environment.

    max_steps: the maximum number of steps in an episode. has_discrete_states: whether a state is one number, which is
    one-hot encoded.
    """

    space: SpaceSpec
    max_steps: int
    has_discrete_states: bool

    def reset(self, seed: int) -> FloatArray:
        """Start an episode, reproducibly for the seed; return its first state (state,)."""

    def step(self, action: Action) -> tuple[FloatArray, float, bool]:
        """Take an action; return the next state, the reward, and whether the episode is over."""


def make_environment(name: str) -> Environment:
    """Create an environment by its name, such as CartPole-v1 or key-to-door.

    Raises DataError for an unknown name, or states or actions that are not plain numbers, and MissingExtraError without
    gymnasium.
    """
    return KeyToDoor() if name == "key-to-door" else GymnasiumEnvironment(name)


class KeyToDoor:
    """Three consecutive rooms: one with a key, an empty one, and one with a door (Mesnard et al. 2021).

    The door brings a reward of 1, but only to an agent that took the key in the first room, which nothing in the last
    room reveals (Chen et al. 2021, section 5.3). Each room has 5 x 5 cells and is left after 11 steps; the agent starts
    in the middle, key and door are in cells at the wall, and the agent takes what it steps on. The paper states no
    sizes:
    these were chosen so that random moves succeed as often as there, 3.1% of the time.

    A state is eight numbers: row and column of the agent, whether there is a key, its row and column, and the same for
    a
    door; rows and columns range from -1 to 1.
    """

    ROOM_SIZE, STEPS_PER_ROOM, ROOMS = 5, 11, 3
    MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
    """Up, down, left, right."""

    space = SpaceSpec(8, len(MOVES))
    max_steps = ROOMS * STEPS_PER_ROOM
    has_discrete_states = False

    def __init__(self) -> None:
        self._agent: tuple[int, int] = (0, 0)
        self._object: tuple[int, int] | None = None

    def reset(self, seed: int) -> FloatArray:
        """Start in the first room, reproducibly for the seed."""
        self._random = Random(seed)
        self._room, self._has_key = -1, False
        self._enter_next_room()
        return self._observe()

    def step(self, action: Action) -> tuple[FloatArray, float, bool]:
        """Move by one cell, or stay in place at a wall. Raises DataError for an unknown move."""
        if not 0 <= int(action) < len(self.MOVES):
            raise DataError(f"action={action} was given; expected 0 to {len(self.MOVES) - 1}")
        (row, column), (down, right), last = self._agent, self.MOVES[int(action)], self.ROOM_SIZE - 1
        self._agent = min(max(row + down, 0), last), min(max(column + right, 0), last)
        self._steps_left -= 1
        reached = self._agent == self._object
        if reached and self._room == 0:
            self._has_key, self._object = True, None
        if reached and self._room == 2 and self._has_key:
            return self._observe(), 1.0, True
        if not self._steps_left:
            if self._room == 2:
                return self._observe(), 0.0, True
            self._enter_next_room()
        return self._observe(), 0.0, False

    def _enter_next_room(self) -> None:
        """Enter the next room."""
        self._room, self._steps_left = self._room + 1, self.STEPS_PER_ROOM
        self._agent = (self.ROOM_SIZE // 2, self.ROOM_SIZE // 2)
        self._object = None if self._room == 1 else self._draw_wall_cell()

    def _draw_wall_cell(self) -> tuple[int, int]:
        last = self.ROOM_SIZE - 1
        along, side = divmod(int(self._random.random() * 4 * last), 4)
        return ((0, along), (along, last), (last, last - along), (last - along, 0))[side]

    def _observe(self) -> FloatArray:
        middle = self.ROOM_SIZE // 2
        thing = (0.0, 0.0, 0.0) if self._object is None else (1.0, *(place / middle - 1 for place in self._object))
        observation = (*thing, 0.0, 0.0, 0.0) if self._room == 0 else (0.0, 0.0, 0.0, *thing)
        return np.array([*(place / middle - 1 for place in self._agent), *observation], dtype=np.float32)


class GymnasiumEnvironment:
    """An environment of gymnasium whose states are numbers or one number, and whose actions are choices or numbers."""

    def __init__(self, name: str) -> None:
        gymnasium = _import_gymnasium()
        if ":" in name:  # gymnasium would import a module of that name
            raise DataError(f"environment={name!r} was given; expected a name without a module, such as CartPole-v1")
        try:
            self._environment = gymnasium.make(name)
        except gymnasium.error.Error as error:
            near = difflib.get_close_matches(name, ["key-to-door", *gymnasium.registry], n=1, cutoff=0.4)
            advice = f"; did you mean {near[0]}?" if near else ""
            message = f"environment={name!r} cannot be opened ({error}); expected one of gymnasium's{advice}"
            raise DataError(message) from error
        self.space, self.has_discrete_states = _space_of(name, self._environment, gymnasium.spaces)
        limit = self._environment.spec.max_episode_steps if self._environment.spec else None
        self.max_steps = limit or 1000

    def reset(self, seed: int) -> FloatArray:
        """Start an episode, reproducibly for the seed."""
        return self._to_vector(self._environment.reset(seed=seed)[0])

    def step(self, action: Action) -> tuple[FloatArray, float, bool]:
        """Take an action; an episode is over when it has ended or its time limit is reached."""
        state, reward, terminated, truncated, _ = self._environment.step(action)
        return self._to_vector(state), float(reward), bool(terminated or truncated)

    def _to_vector(self, state: Any) -> FloatArray:
        if self.has_discrete_states:
            return one_hot(int(state), self.space.state_dim)
        return np.asarray(state, dtype=np.float32).reshape(-1)


def _import_gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtraError("acting in gymnasium's environments needs gymnasium: pip install 'qkv[act]'") from error
    return gymnasium


def _space_of(name: str, environment: Any, spaces: Any) -> tuple[SpaceSpec, bool]:
    """Return the sizes of an environment, and whether its states are discrete."""
    observations, done = environment.observation_space, environment.action_space
    numbered = isinstance(observations, spaces.Discrete)
    if not numbered and not isinstance(observations, spaces.Box):
        raise DataError(f"{name}: its states are {observations}; expected a Box or a Discrete space")
    state = int(observations.n) if numbered else int(np.prod(observations.shape))
    if isinstance(done, spaces.Discrete):
        return SpaceSpec(state, int(done.n)), numbered
    if not isinstance(done, spaces.Box) or len(done.shape) != 1 or not np.isfinite((done.low, done.high)).all():
        raise DataError(f"{name}: its actions are {done}; expected a Discrete space, or a row of bounded numbers")
    low, high = (tuple(side.astype(float).tolist()) for side in (done.low, done.high))
    return SpaceSpec(state, len(low), low, high), numbered


def play_episode(environment: Environment, policy: Callable[[FloatArray], Action], seed: int) -> Episode:
    """Play one episode with a policy, which maps a state to an action."""
    states = [environment.reset(seed)]
    actions: list[Action] = []
    rewards: list[float] = []
    over = False
    while not over and len(actions) < environment.max_steps:
        action = policy(states[-1])
        state, reward, over = environment.step(action)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
    return Episode(np.stack(states[:-1]), np.asarray(actions), np.asarray(rewards, dtype=np.float32))


class QLearner:
    """An agent that learns the value of each action in each discrete state (Q-learning, Watkins and Dayan 1992)."""

    LEARNING_RATE, DISCOUNT = 0.1, 0.99

    def __init__(self, space: SpaceSpec, random: np.random.Generator) -> None:
        self.q_values = 1e-3 * random.standard_normal((space.action_dim, space.state_dim))

    def update(self, episode: Episode) -> None:
        """Learn from the steps of an episode, the last one first, so that its final reward reaches the start."""
        after = 0.0
        states = episode.states.argmax(axis=1)
        for state, action, reward in zip(states[::-1], episode.actions[::-1], episode.rewards[::-1], strict=True):
            self.q_values[action, state] += self.LEARNING_RATE * (
                reward + self.DISCOUNT * after - self.q_values[action, state]
            )
            after = self.q_values[:, state].max()


def collect_episodes(source: Rollouts) -> Trajectories:
    """Play the episodes of a source.

    "mixed": an episode's policy is linear, with parameters from a normal distribution: it takes the action with the
    highest
    product, or bounded numbers; and a fraction of its actions, uniform between none and half, is random. Most of these
    policies are bad and a few are very good. Where states and actions are discrete, hardly any would be good; there the
    policy is one trained on the episodes before, so that the first ones are bad.
    """
    environment, random = make_environment(source.environment), np.random.default_rng(source.seed)
    sizes = environment.space
    learner = QLearner(sizes, random) if environment.has_discrete_states and sizes.discrete else None

    def draw_action() -> Action:
        if sizes.discrete:
            return int(random.random() * sizes.action_dim)
        return random.uniform(sizes.low, sizes.high).astype(np.float32)

    def draw_linear_policy() -> Callable[[FloatArray], Action]:
        parameters = (
            random.standard_normal((sizes.action_dim, sizes.state_dim)) if learner is None else learner.q_values
        )
        share = random.uniform(0, 0.5)

        def policy(state: FloatArray) -> Action:
            if random.random() < share:
                return draw_action()
            products = parameters @ state
            if sizes.discrete:
                return int(products.argmax())
            low, high = np.asarray(sizes.low), np.asarray(sizes.high)
            action: FloatArray = (low + (high - low) * (np.tanh(products) + 1) / 2).astype(np.float32)
            return action

        return policy

    def uniform(_: FloatArray) -> Action:
        return draw_action()

    def episodes() -> Iterator[Episode]:
        for _ in range(source.episodes):
            policy = draw_linear_policy() if source.policy == "mixed" else uniform
            episode = play_episode(environment, policy, int(random.integers(2**31)))
            if learner is not None:
                learner.update(episode)
            yield episode

    return TrajectoryBuffer.from_episodes(source.environment, episodes()).to_trajectories(sizes)
