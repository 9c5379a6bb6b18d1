"""Published agents: a tiny random model of transformers, read by us, predicts the same and is written back.

What is checked of the Decision Transformer: every tensor placed; the predicted actions, states and returns, padded
and not; the weights of each attention; the file written back loads there and predicts the same; the commands say the
action after recorded steps. It has no cache and generates no text.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from qkv import lens, pretrained, spec, tasks
from qkv.cli import main
from qkv.errors import CheckpointError, DataError, SpecError
from qkv.models import build
from tests.published import Case, WriteModel, assert_close, load_model, make_writer

SIZES = {
    "state_dim": 5, "act_dim": 3, "max_ep_len": 40, "hidden_size": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
    "vocab_size": 2, "eos_token_id": 1,
}  # fmt: skip
AGENTS = [
    Case("Decision", "DecisionTransformerConfig", "DecisionTransformerModel", SIZES),
    Case(
        "Decision-free",
        "DecisionTransformerConfig",
        "DecisionTransformerModel",
        {**SIZES, "action_tanh": False, "n_inner": 40, "scale_attn_by_inverse_layer_idx": True},
    ),
]
each_agent = pytest.mark.parametrize("case", AGENTS, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WriteModel:
    return make_writer(tmp_path_factory)


def make_trajectory(rows: int = 2, steps: int = 6) -> Tensor:
    """Steps of time, return, state and action; the second row begins late in its episode."""
    numbers = torch.randn(rows, steps, 1 + 5 + 3, generator=torch.Generator().manual_seed(3))
    times = torch.arange(steps)[None, :, None] + torch.arange(rows)[:, None, None] * 20
    return torch.cat((times.float(), numbers), dim=2)


def run_theirs(model: object, steps: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return, state and action of transformers' model, in our order."""
    found = model(  # type: ignore[operator]
        states=steps[..., 2:7],
        actions=steps[..., 7:],
        returns_to_go=steps[..., 1:2],
        timesteps=steps[..., 0].long(),
        attention_mask=None if mask is None else mask.long(),
    )
    return torch.cat((found.return_preds, found.state_preds, found.action_preds), dim=2)


@each_agent
@torch.no_grad()
def test_an_agent_predicts_the_same(case: Case, written: WriteModel) -> None:
    theirs, folder = written(case)
    ours = pretrained.load(folder).model
    steps = make_trajectory()
    assert_close(ours(source=steps), run_theirs(theirs, steps))
    mask = torch.tensor([[False, False, True, True, True, True], [True] * 6])  # agents are padded at the beginning
    assert_close(ours(source=steps, source_mask=mask)[mask], run_theirs(theirs, steps, mask)[mask])


@each_agent
@torch.no_grad()
def test_an_agent_attends_the_same(case: Case, written: WriteModel) -> None:
    theirs, folder = written(case)
    steps = make_trajectory()
    trace = lens.look(pretrained.load(folder).model, steps)
    expected = theirs(
        states=steps[..., 2:7], actions=steps[..., 7:], returns_to_go=steps[..., 1:2],
        timesteps=steps[..., 0].long(), output_attentions=True,
    ).attentions  # fmt: skip
    assert len(expected) == len(trace) == 3
    for number, weights in enumerate(expected):
        assert_close(trace[f"encoder.{number}.self_attention"].compute_weights(), weights)


@each_agent
@torch.no_grad()
def test_an_agent_is_written_back(case: Case, written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(case)
    pretrained.save(pretrained.load(folder), tmp_path)
    steps = make_trajectory()
    assert_close(run_theirs(load_model(theirs, tmp_path), steps), run_theirs(theirs, steps))


@torch.no_grad()
def test_an_agent_does_not_see_the_action_it_chooses(written: WriteModel) -> None:
    ours = pretrained.load(written(AGENTS[0])[1]).model
    steps = make_trajectory()
    other = steps.clone()
    other[:, -1, 7:] = 0
    one, two = ours(source=steps), ours(source=other)
    assert torch.equal(one[..., 6:], two[..., 6:])
    assert not torch.equal(one[:, -1, :6], two[:, -1, :6])


@each_agent
@torch.no_grad()
def test_it_says_the_action_of_recorded_steps(case: Case, written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(case)
    steps = make_trajectory(rows=1, steps=30)[0]
    rewards = steps[:, 1].numpy()
    over = numpy.isin(numpy.arange(30), (3, 29))
    states, actions = steps[:, 2:7].numpy(), steps[:, 7:].tanh().numpy()
    numpy.savez(tmp_path / "some.npz", observations=states, actions=actions, rewards=rewards, terminals=over)
    for name, asked, first, last in (("#1", "2.5", 10, 30), ("", "", 0, 4), ("#1@3", "2.5", 4, 7)):
        begin, end = (4, 30) if "#1" in name else (0, 4)
        own = rewards[begin:end]
        left = (float(asked) if asked else own.sum()) - own.cumsum() + own
        given = torch.cat(
            [
                torch.arange(end - begin, dtype=torch.float32)[:, None],
                torch.from_numpy(left)[:, None].float(),
                steps[begin:end, 2:7],
                steps[begin:end, 7:].tanh(),
            ],
            dim=1,
        )[None, first - begin : last - begin]
        line = f"{tmp_path / 'some.npz'}{name}" + (f"\t{asked}" if asked else "")
        done = CliRunner().invoke(main, ["run", str(folder), line])
        assert done.exit_code == 0, (done.output, done.exception)
        assert_close(torch.tensor([float(one) for one in done.stdout.split()]), run_theirs(theirs, given)[0, -1, 6:])
        looked = tasks.load(folder).look(line)
        assert looked.answer.text == done.stdout.strip() and len(looked.source_tokens) == 3 * (last - first)
    page = tmp_path / "look.html"
    done = CliRunner().invoke(main, ["look", str(folder), str(tmp_path / "some.npz"), "--html", str(page)])
    assert done.exit_code == 0 and page.is_file()
    assert main(["convert", str(folder), str(tmp_path / "own"), "--to", "qkv"], standalone_mode=False) is None
    again = CliRunner().invoke(main, ["run", str(tmp_path / "own"), str(tmp_path / "some.npz")])
    assert again.stdout == CliRunner().invoke(main, ["run", str(folder), str(tmp_path / "some.npz")]).stdout
    for line, told in (
        ("some.npz", "does not exist"),
        (f"{tmp_path / 'some.npz'}#2", "has episodes 0 to 1"),
        (f"{tmp_path / 'some.npz'}@5", "has steps 1 to 4"),
        ("500", "has no environment"),
        ("much", "a number such as 500"),
    ):
        done = CliRunner().invoke(main, ["run", str(folder), line])
        assert done.exit_code == 2 and told in done.stderr, done.output


def test_a_wrong_table_is_noticed(written: WriteModel, tmp_path: Path) -> None:
    folder = written(AGENTS[0])[1]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    whole = load_file(folder / "model.safetensors")
    for change, named in (
        ({"encoder.wpe.weight": None}, "encoder.embedding.norm.bias"),
        ({"embed_state.weight": None}, "encoder.embedding.states.weight"),
        ({"embed_state.weight": whole["embed_state.weight"][:, 1:]}, "embed_state.weight"),
        ({"embed_other.weight": whole["embed_state.weight"].clone()}, "embed_other.weight"),
    ):
        tensors = {name: tensor.contiguous() for name, tensor in {**whole, **change}.items() if tensor is not None}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=named):
            pretrained.load(tmp_path)


def test_steps_that_do_not_fit_are_refused(written: WriteModel) -> None:
    ours = pretrained.load(written(AGENTS[0])[1]).model
    with pytest.raises(DataError, match=r"expected \(batch, steps, 10\)"):
        ours(source=make_trajectory()[..., :-1])
    late = make_trajectory()
    late[..., 0] += 20
    with pytest.raises(DataError, match="this model knows 0 to 39"):
        ours(source=late)


def test_an_agent_is_built_fresh_and_its_spec_is_checked(written: WriteModel) -> None:
    shape = pretrained.load_spec(written(AGENTS[0])[1])
    assert spec.from_json(spec.to_json(shape)) == shape
    assert build(shape)(source=make_trajectory()).isfinite().all()
    assert isinstance(shape, spec.Transformer) and shape.encoder is not None
    block = spec.Block(spec.Attention(4, 8), spec.FeedForward(8))
    with pytest.raises(SpecError, match="Trajectory"):
        spec.Transformer(spec.Stack(32, (block,), shape.encoder.input), None, spec.Actions())
