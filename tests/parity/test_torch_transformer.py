"""The layers agree with independent implementations that are given the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkv import spec
from qkv.layers import Attention, AttentionInputs, Block
from qkv.mask import Mask
from qkv.positions import (
    RelativeBias,
    apply_rotary,
    compute_alibi_bias,
    compute_distances,
    compute_rotations,
    compute_sinusoids,
)

D_MODEL, HEADS, D_FF = 24, 3, 20


def assert_close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def build_block(norm_at: Any, activation: Any, *, causal: bool, cross: bool) -> Block:
    attention = spec.Attention(HEADS, D_MODEL // HEADS)
    own = spec.Attention(HEADS, D_MODEL // HEADS, causal=causal)
    choice = spec.Block(own, spec.FeedForward(D_FF, activation), attention if cross else None, norm_at=norm_at)
    return Block(choice, D_MODEL, D_MODEL if cross else None)


@torch.no_grad()
def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    for place, linear in enumerate((ours.query, ours.key, ours.value)):
        rows = slice(place * D_MODEL, (place + 1) * D_MODEL)
        theirs.in_proj_weight[rows] = linear.weight
        theirs.in_proj_bias[rows] = linear.bias
    theirs.out_proj.weight.copy_(ours.output.weight)
    theirs.out_proj.bias.copy_(ours.output.bias)


@torch.no_grad()
def copy_norms(ours: Block, theirs: nn.Module, residuals: list[Any]) -> None:
    for number, residual in enumerate(residuals, 1):
        used = residual.last if isinstance(residual.last, nn.LayerNorm) else residual.before
        nn.init.normal_(used.weight)
        nn.init.normal_(used.bias)
        getattr(theirs, f"norm{number}").load_state_dict(used.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.up_proj.state_dict())  # type: ignore[union-attr]
    theirs.linear2.load_state_dict(ours.feed_forward.down_proj.state_dict())  # type: ignore[union-attr]


@pytest.mark.parametrize("norm_at", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_encoder_block_is_that_of_torch(norm_at: str, activation: str) -> None:
    torch.manual_seed(0)
    ours = build_block(norm_at, activation, causal=False, cross=False).eval()
    theirs = nn.TransformerEncoderLayer(
        D_MODEL, HEADS, D_FF, 0.0, activation, batch_first=True, norm_first=norm_at == "pre"
    ).eval()
    copy_attention(ours.self_attention, theirs.self_attn)
    copy_norms(ours, theirs, [ours.self_attention_residual, ours.feed_forward_residual])
    hidden = torch.randn(2, 5, D_MODEL)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = ours(hidden, AttentionInputs(Mask(key_mask=real)))
    expected = theirs(hidden, src_key_padding_mask=~real)
    assert_close(found[real], expected[real])


@pytest.mark.parametrize("norm_at", ["pre", "post"])
def test_a_decoder_block_is_that_of_torch(norm_at: str) -> None:
    torch.manual_seed(0)
    ours = build_block(norm_at, "relu", causal=True, cross=True).eval()
    theirs = nn.TransformerDecoderLayer(D_MODEL, HEADS, D_FF, 0.0, batch_first=True, norm_first=norm_at == "pre").eval()
    copy_attention(ours.self_attention, theirs.self_attn)
    assert ours.cross_attention is not None
    copy_attention(ours.cross_attention, theirs.multihead_attn)
    residuals = [ours.self_attention_residual, ours.cross_attention_residual, ours.feed_forward_residual]
    copy_norms(ours, theirs, residuals)
    hidden, memory = torch.randn(2, 4, D_MODEL), torch.randn(2, 6, D_MODEL)
    real = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    found = ours(hidden, AttentionInputs(Mask(causal=True)), memory, AttentionInputs(Mask(key_mask=real)))
    future = nn.Transformer.generate_square_subsequent_mask(4)
    hidden_keys = torch.zeros(2, 6).masked_fill(~real, -torch.inf)
    assert_close(
        found, theirs(hidden, memory, tgt_mask=future, memory_key_padding_mask=hidden_keys, tgt_is_causal=True)
    )


def test_rotary_positions_are_those_of_llama() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = pytest.importorskip("transformers").LlamaConfig(hidden_size=32, num_attention_heads=4, head_dim=8)
    vectors, places = torch.randn(2, 4, 7, 8), torch.arange(3, 10)
    cosines, sines = llama.LlamaRotaryEmbedding(config)(vectors, places[None])
    expected, _ = llama.apply_rotary_pos_emb(vectors, vectors, cosines, sines)
    assert_close(apply_rotary(vectors, *compute_rotations(places, 8, spec.Rotary())), expected)


@pytest.mark.parametrize("both_ways", [True, False])
def test_relative_buckets_are_those_of_t5(both_ways: bool) -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    table = RelativeBias(spec.RelativeBias(32, 128), 4, both_ways)
    nn.init.normal_(table.bias)
    ahead = compute_distances(150, 400, 250, torch.device("cpu"))
    buckets = t5.T5Attention._relative_position_bucket(ahead, both_ways, 32, 128)
    assert torch.equal(table(ahead)[0].permute(1, 2, 0), table.bias[buckets])


@pytest.mark.parametrize("heads", [1, 2, 8, 12])
def test_alibi_slopes_are_those_of_bloom(heads: int) -> None:
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    expected = bloom.build_alibi_tensor(torch.ones(1, 6), heads, torch.float32).view(heads, 6)
    ours = compute_alibi_bias(compute_distances(1, 6, 5, torch.device("cpu")), heads)[0, :, 0]
    assert_close(ours - ours[:, :1], expected - expected[:, :1])  # a constant for each row changes no weight


def test_sinusoids_by_hand() -> None:
    waves = compute_sinusoids(torch.tensor([0, 3]), 4)
    assert_close(waves[0], torch.tensor([0.0, 1.0, 0.0, 1.0]))
    angle = torch.tensor([3.0, 3.0 / 100])
    assert_close(waves[1], torch.stack([angle.sin(), angle.cos()], dim=1).flatten())
