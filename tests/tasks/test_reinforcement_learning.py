"""The task act from episodes to a model that is asked for a return: data, windows, train, resume, play, look."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv import config, tasks, view
from qkv.cli import main
from qkv.data import IGNORE_INDEX
from qkv.data.trajectories.environments import KeyToDoor, collect_episodes, make_environment, play_episode
from qkv.data.trajectories.episodes import (
    Episode,
    FloatArray,
    Rollouts,
    SpaceSpec,
    Trajectories,
    TrajectoryBuffer,
    concatenate,
    read_minari,
    read_npz,
)
from qkv.data.trajectories.windows import StepWindows, TrajectoryNormalizer, predicted_actions
from qkv.decoding.config import RolloutConfig
from qkv.decoding.rollout import RolloutContext, rollout
from qkv.errors import CheckpointError, ConfigError, DataError
from qkv.models import build
from qkv.tasks.reinforcement_learning.config import DecisionTransformer
from qkv.tasks.reinforcement_learning.training import ActionLoss, load_data
from qkv.training.reporters import NullReporter

SIZES = SpaceSpec(3, 2)
MODEL = {"d_model": 16, "heads": 2, "layers": 2, "d_ff": 16}
KEY_TO_DOOR = {"kind": "rollouts", "environment": "key-to-door", "episodes": 40, "policy": "random"}


def build_recipe(*changes: str, **training: Any) -> tasks.DecisionTransformerConfig:
    tree = {
        "task": "decision-transformer",
        "data": {"train": [KEY_TO_DOOR], "context": 33, "batch_steps": 264, "held_out": 0.1, "valid_episodes": 3},
        "model": MODEL,
        "training": {
            "max_steps": 4,
            "label_smoothing": 0.0,
            "validation": {"every": 2},
            "schedule": {"kind": "inverse_square_root", "warmup_steps": 2},
            **training,
        },
    }
    return config.from_dict(tasks.DecisionTransformerConfig, config.apply_overrides(tree, changes))


def make_trajectories(lengths: list[int], sizes: SpaceSpec = SIZES) -> Trajectories:
    """Episodes of such lengths, of random numbers."""
    random, steps = np.random.default_rng(0), sum(lengths)
    actions: Any = random.integers(sizes.action_dim, size=steps)
    if not sizes.discrete:
        actions = random.uniform(sizes.low, sizes.high, size=(steps, sizes.action_dim)).astype(np.float32)
    states = random.standard_normal((steps, sizes.state_dim)).astype(np.float32)
    return Trajectories(sizes, states, actions, random.random(steps).astype(np.float32), np.cumsum(lengths))


def test_returns_to_go_are_what_is_still_to_come() -> None:
    data = make_trajectories([3, 1, 5])
    found = data.compute_returns_to_go()
    for start, end in zip(data.starts, data.ends, strict=True):
        for step in range(start, end):
            assert found[step] == pytest.approx(data.rewards[step:end].sum(), abs=1e-6)
    np.testing.assert_allclose(data.returns, found[data.starts], rtol=1e-6)
    assert data.select([0, 2]).lengths.tolist() == [3, 5]
    np.testing.assert_array_equal(concatenate([data, data]).returns, np.tile(data.returns, 2))
    with pytest.raises(DataError, match="differ"):
        concatenate([data, make_trajectories([2], SpaceSpec(4, 2))])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_of_windows_holds_each_step(lengths: list[int], context: int, epoch: int) -> None:
    data = make_trajectories(lengths)
    shown = TrajectoryNormalizer.fit(data)
    windows = StepWindows(data, shown, context, seed=3)
    batch = windows.collate(range(epoch * windows.count, (epoch + 1) * windows.count))
    assert batch.source is not None
    real = batch.labels != IGNORE_INDEX
    assert real.sum(dim=1).max() <= context and real.any(dim=1).all()
    assert (real.int().diff(dim=1) <= 0).all()  # padding stands at the end
    every = torch.from_numpy(shown.encode_steps(data))
    seen = {tuple(step.tolist()) for step in batch.source[real]}
    assert seen == {tuple(step.tolist()) for step in every}
    assert real.sum() - len(every) <= sum(length > context for length in lengths)
    chosen = batch.source[..., -2:].argmax(dim=-1)
    assert (chosen == batch.labels)[real].all()


@given(st.integers(2, 40), st.sampled_from([0.1, 0.5, 2.0]), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_episodes_of_a_high_return_are_drawn_more_often(episodes: int, temperature: float, epoch: int) -> None:
    data = make_trajectories([3] * episodes)
    windows = StepWindows(data, TrajectoryNormalizer.fit(data), 3, seed=3, temperature=temperature)
    assert windows.count == episodes
    source = windows.collate(range(epoch * episodes, (epoch + 1) * episodes)).source
    assert source is not None
    firsts = windows._inputs[torch.from_numpy(data.starts)]
    drawn = (source[:, :1] == firsts).all(dim=-1).sum(dim=0).numpy()  # each episode's first step is its own
    assert drawn.sum() == episodes
    low, high = data.returns.min(), data.returns.max()
    weights = np.exp((data.returns.astype(float) - low) / ((high - low) or 1) / temperature)
    assert np.abs(drawn - episodes * weights / weights.sum()).max() < 1 + 1e-6


@given(st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_windows_that_begin_late_are_the_ends_of_whole_ones(context: int, epoch: int) -> None:
    data = make_trajectories([1, 5, 12, 30] * 12)
    shown = TrajectoryNormalizer.fit(data)
    whole, late, half = (
        StepWindows(data, shown, context, seed=3, random_start_fraction=share) for share in (0.0, 1.0, 0.5)
    )
    numbers = np.arange(epoch * whole.count, (epoch + 1) * whole.count)
    (starts, ends), (later, same), (mixed, _) = (one._spans(numbers) for one in (whole, late, half))
    np.testing.assert_array_equal(ends, same)
    assert (starts <= later).all() and (later < ends).all()
    if context > 5:
        assert 0.25 < ((later - starts) / (ends - starts))[ends - starts > 4].mean() < 0.6  # about half of it
        assert 0 < (mixed > starts).sum() < (later > starts).sum()
    assert len({one.fingerprint for one in (whole, late, half)}) == 3


def test_states_and_actions_become_numbers_and_come_back() -> None:
    sizes = SpaceSpec(3, 2, (-2.0, 0.0), (2.0, 10.0))
    data = make_trajectories([5, 7], sizes)
    shown = TrajectoryNormalizer.fit(data, [2, 0])
    steps = shown.encode_steps(data)
    assert steps.shape == (12, 2 + 2 + 2) and steps[5, 0] == 0 and steps[4, 0] == 4
    np.testing.assert_allclose(steps[:, 2:4].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(steps[:, 2:4].std(axis=0), 1, atol=1e-3)
    np.testing.assert_allclose(shown.decode_action(torch.from_numpy(steps[:, 4:])), data.actions, rtol=1e-5, atol=1e-5)
    assert shown.decode_action(torch.tensor([-9.0, 9.0])).tolist() == [-2.0, 10.0]
    marks = Trajectories(sizes, np.eye(3, dtype=np.float32), data.actions[:3], data.rewards[:3], np.array([3]))
    np.testing.assert_array_equal(TrajectoryNormalizer.fit(marks).normalize_states(marks.states), marks.states)
    assert TrajectoryNormalizer.fit(marks).is_binary and not shown.is_binary
    for wrong in ([], [3], [-1]):
        with pytest.raises(ConfigError, match="0 to 2"):
            TrajectoryNormalizer.fit(data, wrong)


def test_padding_and_the_future_change_no_loss() -> None:
    data = make_trajectories([3, 9])
    shown = TrajectoryNormalizer.fit(data)
    torch.manual_seed(0)
    model = build(DecisionTransformer(16, 2, 2, 16).spec(3, 2, 10, bounded=False)).eval()
    windows, losses = StepWindows(data, shown, 9), ActionLoss(shown, 0.0)
    together, apart = windows.collate([0, 1]), [windows.collate([number]) for number in (0, 1)]
    whole = losses(model, together)[0]
    torch.testing.assert_close(whole, sum(losses(model, one)[0] for one in apart))
    assert together.target_tokens == 12
    assert together.source is not None
    before = predicted_actions(model(together.source), 2)
    together.source[1, 5, -2:] = 7.0  # an action is not seen where it is chosen, but afterwards
    after = predicted_actions(model(together.source), 2)
    assert torch.equal(before[1, :6], after[1, :6]) and not torch.equal(before[1, 6:], after[1, 6:])


@torch.no_grad()
def test_actions_of_numbers_are_learned_by_their_squared_error() -> None:
    data = make_trajectories([4, 6], SpaceSpec(3, 2, (-1.0, -1.0), (1.0, 1.0)))
    shown = TrajectoryNormalizer.fit(data)
    model = build(DecisionTransformer(16, 2, 1, 16).spec(3, 2, 10, bounded=True)).eval()
    batch = StepWindows(data, shown, 8).collate([0, 1])
    answers = predicted_actions(model(batch.source), 2)
    assert batch.source is not None and answers.abs().max() <= 1
    expected = sum(
        float(((answers[row, :length] - batch.source[row, :length, -2:]) ** 2).sum() / 2)
        for row, length in enumerate((4, 6))
    )
    assert float(ActionLoss(shown, 0.0)(model, batch)[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("returns", [True, False])
@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_steps_that_are_kept_answer_as_those_in_sight(returns: bool, context: int, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = build(DecisionTransformer(16, 2, 2, 16, return_conditioned=returns).spec(3, 2, 20, bounded=False)).eval()
    whole = torch.randn(4, steps, 1 + 1 + 3 + 2)
    whole[..., 0] = torch.arange(steps)
    eyes = RolloutContext(model, context)
    for step in range(steps):
        if step and step == steps // 2:  # some episodes end
            rows = torch.arange(4)[seed % 3 :]
            eyes.select_rows(rows)
            whole = whole[rows]
        unknown = whole[:, step].clone()
        unknown[:, -2:] = 0
        answered = eyes.predict_action(unknown)
        seen = whole[:, max(0, step + 1 - context) : step + 1]
        torch.testing.assert_close(answered, predicted_actions(model(seen), 2)[:, -1], rtol=1e-4, atol=1e-5)
        eyes.set_action(whole[:, step, -2:])


def test_a_clone_reads_no_returns() -> None:
    model = build(DecisionTransformer(16, 2, 2, 16, return_conditioned=False).spec(3, 2, 20, bounded=False)).eval()
    steps = torch.randn(2, 5, 7)
    steps[..., 0] = torch.arange(5)
    other = steps.clone()
    other[..., 1] += 3
    assert torch.equal(model(steps), model(other))
    assert not any(name.startswith("encoder.embedding.returns") for name, _ in model.named_parameters())
    assert model(steps).shape == (2, 5, 1 + 3 + 2)


def test_the_door_opens_only_with_the_key() -> None:
    world = KeyToDoor()

    def towards(state: FloatArray, seek: bool) -> int:
        """A step towards the thing in the room, or along the row."""
        row, column, key, *at_key, door, down, right = state.tolist()
        if not seek or not (key or door):
            return 2
        down, right = at_key if key else (down, right)
        if row != down:
            return 0 if down < row else 1
        return 2 if right < column else 3

    for seed in range(20):
        done = play_episode(world, lambda state: towards(state, True), seed)
        assert done.rewards.sum() == 1 and done.rewards[-1] == 1 and len(done.rewards) < world.max_steps
        keyless = play_episode(world, lambda state: towards(state, bool(state[5])), seed)
        assert keyless.rewards.sum() == 0 and len(keyless.rewards) == world.max_steps
    again = play_episode(world, lambda state: towards(state, True), 3)
    np.testing.assert_array_equal(again.states, play_episode(world, lambda state: towards(state, True), 3).states)
    with pytest.raises(DataError, match="0 to 3"):
        world.step(4)


def test_random_moves_seldom_succeed() -> None:
    data = collect_episodes(Rollouts("key-to-door", 1500, "random", seed=2))
    assert 0.015 < data.returns.mean() < 0.05  # 3.1% in the long run
    assert set(data.returns.tolist()) == {0.0, 1.0}
    np.testing.assert_array_equal(data.states, collect_episodes(Rollouts("key-to-door", 1500, "random", seed=2)).states)


def test_arrays_of_trajectories_are_read(tmp_path: Path) -> None:
    data = make_trajectories([3, 4, 2])
    data.save(tmp_path / "some.npz")
    read = read_npz(tmp_path / "some.npz").to_trajectories()
    for name in ("states", "actions", "rewards", "ends"):
        np.testing.assert_array_equal(getattr(read, name), getattr(data, name))
    numbered: dict[str, Any] = {
        "observations": np.array([0, 2, 1]),
        "actions": np.array([1, 0, 3]),
        "rewards": np.ones(3),
    }
    np.savez(tmp_path / "numbered.npz", **numbered, timeouts=np.array([False, True, False]))
    read = read_npz(tmp_path / "numbered.npz").to_trajectories()
    assert read.space == SpaceSpec(3, 4) and read.ends.tolist() == [2, 3]
    assert read.states.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    with pytest.raises(DataError, match="below 2"):
        read_npz(tmp_path / "numbered.npz").to_trajectories(SpaceSpec(3, 2))
    with pytest.raises(DataError, match="below 2"):
        read_npz(tmp_path / "numbered.npz").to_trajectories(SpaceSpec(2, 4))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"observations": np.ones((3, 2)), "actions": np.ones(3)}, "expected observations, actions, rewards"),
        ({"observations": np.ones((3, 2)), "actions": np.ones(3), "rewards": np.ones(3)}, "terminals or timeouts"),
        (
            {"observations": np.ones((3, 2)), "actions": np.ones(2), "rewards": np.ones(3), "terminals": np.ones(3)},
            "observations 3, actions 2",
        ),
        (
            {
                "observations": np.full((3, 2), np.nan),
                "actions": np.ones(3),
                "rewards": np.ones(3),
                "terminals": np.ones(3),
            },
            "3 of 3 episodes cannot be used .episode 0 has states that are no finite",
        ),
        (
            {
                "observations": np.array(list("abc")),
                "actions": np.ones(3),
                "rewards": np.ones(3),
                "terminals": np.ones(3),
            },
            "expected numbers",
        ),
        (
            {"observations": np.array([{}] * 3), "actions": np.ones(3), "rewards": np.ones(3), "terminals": np.ones(3)},
            "plain arrays",
        ),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(DataError, match=said):
        read_npz(tmp_path / "wrong.npz")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_npz(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(DataError, match="is not a complete .npz"):
        read_npz(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", observations=np.array([{}, 1], dtype=object))
    with pytest.raises(DataError, match="plain arrays"):
        read_npz(tmp_path / "objects.npz")


def test_a_few_broken_episodes_are_left_out_and_told() -> None:
    good = Episode(np.ones((2, 3)), np.array([0, 1]), np.ones(2))
    broken = Episode(np.ones((2, 3)), np.array([0, 1]), np.ones(5))
    found = TrajectoryBuffer.from_episodes("mine", [good] * 99 + [broken])
    assert len(found.to_trajectories()) == 99
    assert found.notes == ["mine: left out 1 episodes: episode 99 has 2 states, 2 actions and 5 rewards"]
    with pytest.raises(DataError, match="2 of 100 episodes cannot be used"):
        TrajectoryBuffer.from_episodes("mine", [good] * 98 + [broken] * 2)
    other = Episode(np.ones((2, 4)), np.array([0, 1]), np.ones(2))
    with pytest.raises(DataError, match="differ in the shape"):
        TrajectoryBuffer.from_episodes("mine", [good, other]).to_trajectories()
    with pytest.raises(DataError, match="has 3 numbers; the environment's has 5"):
        TrajectoryBuffer.from_episodes("mine", [good]).to_trajectories(SpaceSpec(5, 2))


def test_minari_is_read(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data" / "main_data.hdf5", "w") as file:
        for number in (0, 2, 10, 1):
            group = file.create_group(f"episode_{number}")
            group["observations/b"] = np.full((4, 1), number)
            group["observations/a"] = np.arange(8).reshape(4, 2)
            group["actions"] = np.array([0, 1, 2])
            group["rewards"] = np.full(3, float(number))
            group["terminations"] = np.array([False, False, True])
    data = read_minari(tmp_path).to_trajectories()
    assert data.space == SpaceSpec(3, 3) and data.returns.tolist() == [0, 3, 6, 30]
    assert data.states[:3].tolist() == [[0, 1, 0], [2, 3, 0], [4, 5, 0]]
    with pytest.raises(DataError, match=r"no main_data\.hdf5"):
        read_minari(tmp_path / "data" / "none")
    (tmp_path / "text.hdf5").write_text("no arrays")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        read_minari(tmp_path / "text.hdf5")


def test_an_agent_learns_resumes_plays_and_shows(tmp_path: Path) -> None:
    whole = tasks.train(build_recipe(), folder=tmp_path / "whole", reporter=NullReporter())
    tasks.train(build_recipe(max_steps=2), folder=tmp_path / "parts", reporter=NullReporter())
    parts = tasks.train(build_recipe(), folder=tmp_path / "parts", resume=True, reporter=NullReporter())
    for one, other in zip(whole.model.module.parameters(), parts.model.module.parameters(), strict=True):
        assert torch.equal(one, other)
    assert set(whole.result.metrics) == {"loss", "accuracy", "return"}
    agent = tasks.load(tmp_path / "whole")
    assert isinstance(agent, tasks.DecisionTransformerAgent) and isinstance(whole.model, tasks.DecisionTransformerAgent)
    assert agent.normalizer == whole.model.normalizer and agent.rollout.context_length == 33
    answers: Any = agent.predict_ranked(["1", "", "0.5"])
    [[first], [nothing], [second]] = answers
    assert nothing.text == "" and first.text.startswith("achieved ") and first.target_return == 1 and second.seed == 2
    assert len(first.states) == len(first.actions) == len(first.rewards)
    assert [[first]] == list(agent.predict_ranked(["1"]))
    with pytest.raises(DataError, match="a number such as 500"):
        list(agent.predict_ranked(["much"]))
    looked = agent.look("1@5")
    assert looked.source_tokens[0] == "1: return 1" and len(looked.source_tokens) == 15
    assert looked["encoder.1.self_attention"].keys == 15
    assert looked.source_tokens[-1] == f"5: action {first.actions[4]}"
    assert isinstance(looked.input, tasks.TrajectoryInput) and looked.input.first_step == 0
    held = looked.input.values
    assert {kind: len(one) for kind, one in held.items()} == {"return": 5, "state": 5, "action": 5}
    assert held["action"][:, 0].tolist() == first.actions[:5] and held["state"].tolist() == first.states[:5]
    later = replace(agent, rollout=RolloutConfig(context_length=4)).look("1@9").input
    assert isinstance(later, tasks.TrajectoryInput) and later.first_step == 5 and len(later.values["action"]) == 4
    axis = view.build_run(agent, "1@5").source
    assert axis is not None and axis.kind == "trajectory" and list(axis.values) == ["return", "state", "action"]
    for wrong in ("1@0", "1@99", "1@x"):
        with pytest.raises(DataError, match="the episode has steps 1 to"):
            agent.look(wrong)


def test_what_is_seen_is_what_was_computed(tmp_path: Path) -> None:
    """The lens looks at the very answers by which the episode was played."""
    agent = tasks.train(build_recipe(), folder=tmp_path, reporter=NullReporter()).model
    assert isinstance(agent, tasks.DecisionTransformerAgent)
    ran: Any = agent.predict_ranked(["1"])
    [[played]] = ran
    looked = agent.look("1@9")
    assert looked.source is not None
    answers = predicted_actions(agent.module(looked.source), 4)[0]
    assert answers.argmax(dim=-1).tolist() == played.actions[:9]


def test_what_is_drawn_hangs_on_the_seed_alone() -> None:
    data = collect_episodes(Rollouts("key-to-door", 20, "random"))
    shown = TrajectoryNormalizer.fit(data)
    torch.manual_seed(1)
    model = build(DecisionTransformer(16, 2, 1, 16).spec(8, 4, 33, bounded=False)).eval()
    drawing = RolloutConfig(33, "sample")
    together = list(rollout(model, shown, KeyToDoor, [(1.0, seed) for seed in range(4)], drawing))
    [alone] = rollout(model, shown, KeyToDoor, [(1.0, 2)], drawing)
    np.testing.assert_array_equal(alone.episode.actions, together[2].episode.actions)
    assert len(set(alone.episode.actions.tolist())) > 1


def test_recipes_that_cannot_be(tmp_path: Path) -> None:
    for change, said in (
        ("data.train=[]", "at least one source"),
        ("data.context=0", "at least 1 step"),
        ("data.batch_steps=10", "at least context"),
        ("data.held_out=1", "above 0 and below 1"),
        ("model.heads=3", "not a multiple"),
    ):
        with pytest.raises(ConfigError, match=said):
            build_recipe(change)
    for change in ("training.validation.metric=bleu", "training.validation.metric=accuracy"):
        with pytest.raises(ConfigError, match="training.validation"):
            tasks.train(build_recipe(change), folder=tmp_path / "never", reporter=NullReporter())


def test_a_model_without_a_world_is_judged_by_episodes(tmp_path: Path) -> None:
    collect_episodes(Rollouts("key-to-door", 30, "random")).save(tmp_path / "some.npz")
    origin = f"data.train=[{{kind: npz, path: {tmp_path / 'some.npz'}}}]"
    learned = tasks.train(build_recipe(origin), folder=tmp_path / "run", reporter=NullReporter())
    assert set(learned.result.metrics) == {"loss", "accuracy"}
    with pytest.raises(DataError, match="data.environment=NAME"):
        list(tasks.load(tmp_path / "run").predict_ranked(["1"]))
    assert load_data(build_recipe(origin, "data.environment=key-to-door")).train.space == KeyToDoor.space


def test_a_card_of_another_model_is_refused(tmp_path: Path) -> None:
    tasks.train(build_recipe(), folder=tmp_path, reporter=NullReporter())
    card = json.loads((tmp_path / "card.json").read_text())
    card["normalizer"]["space"]["action_dim"] = 3
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="take both files from the same run"):
        tasks.load(tmp_path)


def test_commands(tmp_path: Path) -> None:
    run = CliRunner()
    path = tmp_path / "recipe.yaml"
    path.write_text(config.dump_yaml(config.to_dict(build_recipe())))
    model = str(tmp_path / "run")
    assert run.invoke(main, ["train", str(path), "--folder", model]).exit_code == 0
    lines = run.invoke(main, ["run", model, "1", "0"]).output.splitlines()
    assert len(lines) == 2 and lines[0].startswith("achieved ")
    [[answer]] = [json.loads(line) for line in run.invoke(main, ["run", model, "1", "--json"]).output.splitlines()]
    assert answer["target_return"] == 1 and len(answer["states"]) == len(answer["actions"])
    wrong = run.invoke(main, ["run", model, "1", "lots"])
    assert wrong.exit_code == 2 and "line 2" in wrong.output and wrong.output.startswith("achieved")
    assert run.invoke(main, ["run", model, "1", "--n-best", "2"]).exit_code == 2
    found = run.invoke(
        main, ["evaluate", model, "0", "1", "--option", "episodes=3", "--plot-returns", str(tmp_path / "plot.svg")]
    )
    assert found.exit_code == 0 and "3 episodes of key-to-door each, seeds 10000 to 10002" in found.output
    assert (tmp_path / "plot.svg").read_text().count("<circle") == 2
    for wrong_options in (["--option", "split=test"], ["many"], ["--beam", "2"]):
        assert run.invoke(main, ["evaluate", model, *wrong_options]).exit_code == 2
    page = tmp_path / "page.html"
    assert run.invoke(main, ["look", model, "1@3", "--html", str(page)]).exit_code == 0
    assert page.stat().st_size > 10_000
    assert run.invoke(main, ["describe", model]).exit_code == 0


def test_gymnasium_is_acted_in(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    for name, sizes in (
        ("CartPole-v1", SpaceSpec(4, 2)),
        ("FrozenLake-v1", SpaceSpec(16, 4)),
        ("Acrobot-v1", SpaceSpec(6, 3)),
    ):
        world = make_environment(name)
        assert world.space == sizes
        state = world.reset(1)
        assert state.shape == (sizes.state_dim,) and state.dtype == np.float32
        np.testing.assert_array_equal(state, world.reset(1))
    assert make_environment("CartPole-v1").max_steps == 500
    for name, said in (("CartPol-v1", "did you mean CartPole-v1"), ("os:CartPole-v1", "without a module")):
        with pytest.raises(DataError, match=said):
            make_environment(name)
    lake = Rollouts("FrozenLake-v1", 1500, "mixed", seed=2)
    data = collect_episodes(lake)  # what was learned before is put to use: random moves reach the goal 1.5% of the time
    assert data.returns[:100].mean() < 0.1 < data.returns[500:].mean()
    np.testing.assert_array_equal(data.actions, collect_episodes(lake).actions)
    data = collect_episodes(Rollouts("Pendulum-v1", 2, "mixed"))
    assert data.space == SpaceSpec(3, 1, (-2.0,), (2.0,)) and data.lengths.tolist() == [200, 200]
    assert np.abs(data.actions).max() <= 2
    pendulum = "data.train=[{kind: rollouts, environment: Pendulum-v1, episodes: 3}]"
    learned = tasks.train(
        build_recipe(pendulum, "data.context=5", "data.valid_episodes=1"), folder=tmp_path, reporter=NullReporter()
    )
    assert set(learned.result.metrics) == {"loss", "return"}


def test_a_state_of_zeros_is_told_as_such() -> None:
    from qkv.tasks.reinforcement_learning import model as agent

    told = [agent._format_flags(np.array(state)) for state in ([0.0] * 6, [0.0, 1.0, 1.0], [0.5, 0.0])]
    assert told == ["0 0 0 0 ...", "1,2", "0.5 0"]
    assert agent._format_numbers(np.array([0.0, 1.0])) == "0 1"  # measured, and by chance what marks could be
