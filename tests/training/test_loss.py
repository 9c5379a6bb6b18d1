"""The loss equals torch's own, in value and gradient."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from qkv.training.loss import IGNORE_INDEX, cross_entropy, smoothed_and_plain_cross_entropy


@given(st.sampled_from([0.0, 0.1, 0.5]), st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**31))
def test_loss_and_gradient_are_those_of_torch(smoothing: float, rows: int, vocab: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(vocab, (2, rows), generator=generator)
    labels[torch.rand(2, rows, generator=generator) < 0.3] = IGNORE_INDEX
    found = []
    for loss in (
        lambda logits: cross_entropy(logits, labels, smoothing),
        lambda logits: functional.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=smoothing,
        ),
    ):
        logits = torch.randn(2, rows, vocab, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        (value := loss(logits)).mul(0.7).backward()
        found.append((value.detach(), logits.grad))
    torch.testing.assert_close(found[0], found[1])
    logits = torch.randn(2, rows, vocab, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    loss, plain = smoothed_and_plain_cross_entropy(logits, labels, smoothing)
    assert torch.equal(loss, found[0][0]) and not plain.requires_grad
    torch.testing.assert_close(plain, cross_entropy(logits, labels).detach())
