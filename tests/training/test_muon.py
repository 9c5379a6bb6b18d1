"""Laws of Muon: what is orthogonal, which parameters it moves, and that it is torch's, in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qkv import spec
from qkv.errors import ConfigError
from qkv.models import build
from qkv.tasks.image_classification.config import ViT
from qkv.training import MuonConfig, OptimizerConfig, optim
from qkv.training.optim import Optimizers, orthogonalize
from tests.training_runs import Tiny


def iterate_singular_values(values: Tensor, iterations: int) -> Tensor:
    """What the iteration makes of singular values, which it moves each by itself."""
    values = values / values.square().sum().sqrt()
    for _ in range(iterations):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_singular_vectors_stay_and_singular_values_go_to_one(rows: int, columns: int, turns: int, seed: int) -> None:
    matrices = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    found = orthogonalize(matrices, turns)
    for matrix, one in zip(matrices, found, strict=True):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        wanted = left @ torch.diag(iterate_singular_values(values, turns)) @ right
        torch.testing.assert_close(one.double(), wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(orthogonalize(matrices.mT, turns), found.mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(orthogonalize(1000 * matrices, turns), found, rtol=1e-3, atol=1e-3)


def test_five_turns_make_a_matrix_nearly_orthogonal() -> None:
    matrix = torch.randn(1, 24, 60, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(matrix, 5))
    assert 0.65 < values.min() and values.max() < 1.2
    assert not orthogonalize(torch.zeros(1, 3, 3), 5).any()


def build_model() -> nn.Module:
    attention = spec.Attention(2, 4, causal=True, qk_norm=spec.Norm())
    block = spec.Block(attention, spec.FeedForward(12, gated=True))
    stack = spec.Stack(8, (block, block), spec.Tokens(7), spec.Learned(5), final_norm=spec.Norm())
    torch.manual_seed(0)
    return build(spec.Transformer(None, stack, spec.Vocabulary(tied=False)))


def test_it_moves_the_matrices_of_blocks_and_adam_all_else() -> None:
    made = build_model()
    adam, muon = Optimizers(made, OptimizerConfig(kind="adamw", weight_decay=0.1, muon=MuonConfig())).optimizers
    moved = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    named = {name for name, parameter in made.named_parameters() if id(parameter) in moved}
    parts = ("query", "key", "value", "output")
    wanted = {f"decoder.blocks.{block}.self_attention.{part}.weight" for block in (0, 1) for part in parts}
    assert named == wanted | {
        f"decoder.blocks.{block}.feed_forward.{part}.weight"
        for block in (0, 1)
        for part in ("up_proj", "gate", "down_proj")
    }
    rest = [id(parameter) for group in adam.param_groups for parameter in group["params"]]
    assert len(rest) == len(set(rest)) and set(rest) | moved == {id(parameter) for parameter in made.parameters()}
    with pytest.raises(ConfigError, match="optimizer.muon: given, but this model has no blocks"):
        Optimizers(Tiny(), OptimizerConfig(muon=MuonConfig()))


def test_it_moves_kernels_as_matrices_of_a_row_a_channel() -> None:
    kernel, matrix = (nn.Parameter(torch.ones(6, 4, 3, 3)), nn.Parameter(torch.ones(6, 36)))
    kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(1))
    matrix.grad = kernel.grad.flatten(1)
    for one in (kernel, matrix):
        mover = optim.Muon([one], MuonConfig())
        mover.param_groups[0]["lr"] = 0.02
        mover.step()
    assert not torch.equal(kernel, torch.ones_like(kernel)) and torch.equal(kernel.flatten(1), matrix)
    seen = build(ViT(4, (spec.Convolution(8, 3, 2),), 16, 2, 1, 32).spec(8, 8, 1, 2))
    moved = {
        id(p)
        for group in Optimizers(seen, OptimizerConfig(muon=MuonConfig())).optimizers[1].param_groups
        for p in group["params"]
    }
    assert id(seen.encoder.embedding.stem[0].weight) in moved and id(seen.encoder.embedding.patches.weight) not in moved


def test_it_steps_as_torchs_own_does_with_fewer_digits() -> None:
    ours, theirs = build_model(), build_model()
    options = OptimizerConfig(kind="adamw", learning_rate=0.5, muon=MuonConfig(0.02, momentum=0.9, weight_decay=0.1))
    optimizers = Optimizers(ours, options)
    moved = {id(p) for group in optimizers.optimizers[1].param_groups for p in group["params"]}
    pairs = [(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True) if id(a) in moved]
    peer = torch.optim.Muon([b for _, b in pairs], lr=0.01, momentum=0.9, weight_decay=0.1)
    begun = [b.detach().clone() for _, b in pairs]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for one, other in pairs:
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        optimizers.step(0.5)
        assert all(one.grad is None for one, _ in pairs)
        peer.step()  # type: ignore[no-untyped-call]
    for (one, other), before in zip(pairs, begun, strict=True):
        far = (one - before).norm()
        assert far > 0.02 and (one - other).norm() < 0.03 * far


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"ns_steps": 0}, "ns_steps"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, float], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"MuonConfig\.{field}=.*expected"):
        MuonConfig(**options)  # type: ignore[arg-type]
