"""Where agents act: the environments of gymnasium (extra `act`), and key-to-door, which needs nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qkv.data.trajectories import Episode, Gathered, Numbers, Played, Sizes, Trajectories, one_hot
from qkv.errors import DataError, MissingExtraError

Action = int | npt.NDArray[np.float32]


class Environment(Protocol):
    """A world that is acted in, step by step.

    longest: how many steps an episode has at most. numbered: whether a state is one number, given as a mark of 1.
    """

    sizes: Sizes
    longest: int
    numbered: bool

    def reset(self, seed: int) -> Numbers:
        """Begin an episode, the same for the same seed; return its first state (state,)."""

    def step(self, action: Action) -> tuple[Numbers, float, bool]:
        """Act; return the state after it, what it brought, and whether the episode is over."""


def make(name: str) -> Environment:
    """Open an environment by its name, such as CartPole-v1 or key-to-door.

    Raises DataError if there is none of this name, or its states or actions are no plain numbers; MissingExtraError
    without gymnasium.
    """
    return KeyToDoor() if name == "key-to-door" else Gymnasium(name)


class KeyToDoor:
    """Three rooms one after the other: one with a key, an empty one, and one with a door (Mesnard et al. 2021).

    The door brings a reward of 1, but only to an agent that took the key in the first room, which nothing in the last
    room tells (Chen et al. 2021, section 5.3). Each room has 5 x 5 cells and is left after 11 steps; the agent begins
    in its middle, key and door lie in a cell by the wall, and what is stepped on is taken. The paper tells no sizes:
    these were chosen so that random moves succeed as often as there, 3.1% of the time.

    A state is eight numbers: row and column of the agent, whether there is a key, its row and column, and the same of a
    door; rows and columns go from -1 to 1.
    """

    SIDE, TIME, ROOMS = 5, 11, 3
    MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
    """Up, down, left, right."""

    sizes = Sizes(8, len(MOVES))
    longest = ROOMS * TIME
    numbered = False

    def __init__(self) -> None:
        self._agent: tuple[int, int] = (0, 0)
        self._thing: tuple[int, int] | None = None

    def reset(self, seed: int) -> Numbers:
        """Begin in the first room, the same for the same seed."""
        self._random = Random(seed)
        self._room, self._has_key = -1, False
        self._enter()
        return self._state()

    def step(self, action: Action) -> tuple[Numbers, float, bool]:
        """Move by one cell, or stay before a wall; DataError for a move that there is not."""
        if not 0 <= int(action) < len(self.MOVES):
            raise DataError(f"action={action} was given; expected 0 to {len(self.MOVES) - 1}")
        (row, column), (down, right), last = self._agent, self.MOVES[int(action)], self.SIDE - 1
        self._agent = min(max(row + down, 0), last), min(max(column + right, 0), last)
        self._left -= 1
        reached = self._agent == self._thing
        if reached and self._room == 0:
            self._has_key, self._thing = True, None
        if reached and self._room == 2 and self._has_key:
            return self._state(), 1.0, True
        if not self._left:
            if self._room == 2:
                return self._state(), 0.0, True
            self._enter()
        return self._state(), 0.0, False

    def _enter(self) -> None:
        """Go to the next room."""
        self._room, self._left = self._room + 1, self.TIME
        self._agent = (self.SIDE // 2, self.SIDE // 2)
        self._thing = None if self._room == 1 else self._by_the_wall()

    def _by_the_wall(self) -> tuple[int, int]:
        last = self.SIDE - 1
        along, side = divmod(int(self._random.random() * 4 * last), 4)
        return ((0, along), (along, last), (last, last - along), (last - along, 0))[side]

    def _state(self) -> Numbers:
        middle = self.SIDE // 2
        thing = (0.0, 0.0, 0.0) if self._thing is None else (1.0, *(place / middle - 1 for place in self._thing))
        seen = (*thing, 0.0, 0.0, 0.0) if self._room == 0 else (0.0, 0.0, 0.0, *thing)
        return np.array([*(place / middle - 1 for place in self._agent), *seen], dtype=np.float32)


class Gymnasium:
    """An environment of gymnasium whose states are numbers or one number, and whose actions are choices or numbers."""

    def __init__(self, name: str) -> None:
        gymnasium = _gymnasium()
        if ":" in name:  # gymnasium would import a module of that name
            raise DataError(f"environment={name!r} was given; expected a name without a module, such as CartPole-v1")
        try:
            self._environment = gymnasium.make(name)
        except gymnasium.error.Error as error:
            near = difflib.get_close_matches(name, ["key-to-door", *gymnasium.registry], n=1, cutoff=0.4)
            advice = f"; did you mean {near[0]}?" if near else ""
            said = f"environment={name!r} cannot be opened ({error}); expected one of gymnasium's{advice}"
            raise DataError(said) from error
        self.sizes, self.numbered = _sizes(name, self._environment, gymnasium.spaces)
        limit = self._environment.spec.max_episode_steps if self._environment.spec else None
        self.longest = limit or 1000

    def reset(self, seed: int) -> Numbers:
        """Begin an episode, the same for the same seed."""
        return self._vector(self._environment.reset(seed=seed)[0])

    def step(self, action: Action) -> tuple[Numbers, float, bool]:
        """Act; an episode is over when it ended or its time is up."""
        state, reward, terminated, truncated, _ = self._environment.step(action)
        return self._vector(state), float(reward), bool(terminated or truncated)

    def _vector(self, state: Any) -> Numbers:
        if self.numbered:
            return one_hot(int(state), self.sizes.state)
        return np.asarray(state, dtype=np.float32).reshape(-1)


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtraError("acting in gymnasium's environments needs gymnasium: pip install 'qkv[act]'") from error
    return gymnasium


def _sizes(name: str, environment: Any, spaces: Any) -> tuple[Sizes, bool]:
    """The sizes of an environment, and whether its states are numbered."""
    seen, done = environment.observation_space, environment.action_space
    numbered = isinstance(seen, spaces.Discrete)
    if not numbered and not isinstance(seen, spaces.Box):
        raise DataError(f"{name}: its states are {seen}; expected a Box or a Discrete space")
    state = int(seen.n) if numbered else int(np.prod(seen.shape))
    if isinstance(done, spaces.Discrete):
        return Sizes(state, int(done.n)), numbered
    if not isinstance(done, spaces.Box) or len(done.shape) != 1 or not np.isfinite((done.low, done.high)).all():
        raise DataError(f"{name}: its actions are {done}; expected a Discrete space, or a row of bounded numbers")
    low, high = (tuple(side.astype(float).tolist()) for side in (done.low, done.high))
    return Sizes(state, len(low), low, high), numbered


def play(environment: Environment, policy: Callable[[Numbers], Action], seed: int) -> Episode:
    """Play one episode by a policy, which is given a state and returns an action."""
    states = [environment.reset(seed)]
    actions: list[Action] = []
    rewards: list[float] = []
    over = False
    while not over and len(actions) < environment.longest:
        action = policy(states[-1])
        state, reward, over = environment.step(action)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
    return Episode(np.stack(states[:-1]), np.asarray(actions), np.asarray(rewards, dtype=np.float32))


class Learner:
    """Learns from episodes what each choice is worth in each numbered state (Q-learning, Watkins and Dayan 1992)."""

    RATE, DISCOUNT = 0.1, 0.99

    def __init__(self, sizes: Sizes, random: np.random.Generator) -> None:
        self.worth = 1e-3 * random.standard_normal((sizes.action, sizes.state))

    def learn(self, episode: Episode) -> None:
        """Learn from its steps, the last one first, so that what an end brought is known at the beginning."""
        after = 0.0
        states = episode.states.argmax(axis=1)
        for state, action, reward in zip(states[::-1], episode.actions[::-1], episode.rewards[::-1], strict=True):
            self.worth[action, state] += self.RATE * (reward + self.DISCOUNT * after - self.worth[action, state])
            after = self.worth[:, state].max()


def behave(origin: Played) -> Trajectories:
    """Play the episodes of an origin.

    "mixed": an episode's policy is linear, its parameters drawn from the normal distribution: it takes the action with
    the highest product, or bounded numbers; and a share of its actions, drawn evenly between none and half, is random.
    Most of such policies are bad and a few are very good. Where states are numbered and actions are choices, hardly any
    would be good; there the parameters are what was learned from the episodes before, so that the first are bad.
    """
    environment, random = make(origin.environment), np.random.default_rng(origin.seed)
    sizes = environment.sizes
    learner = Learner(sizes, random) if environment.numbered and sizes.choices else None

    def drawn() -> Action:
        if sizes.choices:
            return int(random.random() * sizes.action)
        return random.uniform(sizes.low, sizes.high).astype(np.float32)

    def mixed() -> Callable[[Numbers], Action]:
        parameters = random.standard_normal((sizes.action, sizes.state)) if learner is None else learner.worth
        share = random.uniform(0, 0.5)

        def policy(state: Numbers) -> Action:
            if random.random() < share:
                return drawn()
            products = parameters @ state
            if sizes.choices:
                return int(products.argmax())
            low, high = np.asarray(sizes.low), np.asarray(sizes.high)
            action: Numbers = (low + (high - low) * (np.tanh(products) + 1) / 2).astype(np.float32)
            return action

        return policy

    def uniform(_: Numbers) -> Action:
        return drawn()

    def episodes() -> Iterator[Episode]:
        for _ in range(origin.episodes):
            policy = mixed() if origin.behaviour == "mixed" else uniform
            episode = play(environment, policy, int(random.integers(2**31)))
            if learner is not None:
                learner.learn(episode)
            yield episode

    return Gathered.of(origin.environment, episodes()).together(sizes)
