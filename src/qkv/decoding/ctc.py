"""Labels that were given to every stretch of a sound, read as a text (Graves et al. 2006)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qkv.errors import DataError


def ctc_greedy_decode(logits: Tensor, blank: int, mask: Tensor | None = None) -> list[list[int]]:
    """Return the best label of each position, with repetitions merged and blanks removed: a list for each row.

    logits (batch, length, labels); mask (batch, length) bool, False for padding. Two equal labels with a blank
    between them are both kept.
    """
    best = logits.argmax(dim=-1)
    if mask is not None:
        best = best.masked_fill(~mask, blank)
    before = torch.cat((torch.full_like(best[:, :1], blank), best[:, :-1]), dim=1)
    kept = (best != before) & (best != blank)
    return [row[keep].tolist() for row, keep in zip(best, kept, strict=True)]


@torch.no_grad()
def ctc_log_probabilities(
    logits: Tensor, target_ids: Sequence[Sequence[int]], blank: int, mask: Tensor | None = None
) -> list[float]:
    """Return the log-probability of each row's text, summed over all alignments (Graves et al. 2006, section 4.1).

    logits and mask as for `ctc_greedy_decode`; -inf for a text that is too long for the positions.
    """
    lengths = torch.tensor([len(text) for text in target_ids])
    targets = torch.full((len(target_ids), max(1, int(lengths.max()))), blank + 1 if blank == 0 else 0)
    for row, text in enumerate(target_ids):
        targets[row, : len(text)] = torch.as_tensor(list(text), dtype=torch.int64)
    places = torch.full((len(target_ids),), logits.shape[1]) if mask is None else mask.sum(dim=1)
    losses = functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1), targets, places, lengths, blank, reduction="none"
    )
    return [-loss for loss in losses.tolist()]


@torch.no_grad()
def forced_align(logits: Tensor, target_ids: Sequence[int], blank: int) -> list[tuple[int, int]]:
    """Return the positions of each label of a text as (first, after the last), in the most probable alignment.

    logits: (positions, labels) of one recording. A label extends over the positions at which it, and not a blank, is on
    the Viterbi path of the lattice (Graves et al. 2006). Raises DataError for a text that is too long.
    """
    values = logits.float().log_softmax(-1)
    states = [blank, *(label for token in target_ids for label in (token, blank))]
    if (
        len(target_ids) + sum(one == other for one, other in zip(target_ids, target_ids[1:], strict=False))
        > len(values)
        or not target_ids
    ):
        raise DataError(
            f"{len(target_ids)} labels were to be found at {len(values)} positions; expected 1 or more, no more"
        )
    emissions = values[:, states]
    skips = torch.tensor(
        [number > 1 and one != blank and one != states[number - 2] for number, one in enumerate(states)]
    )
    best = torch.full((len(states),), float("-inf"))
    best[:2] = emissions[0, :2]
    came = []
    for row in emissions[1:]:
        one = torch.cat((best.new_full((1,), float("-inf")), best[:-1]))
        two = torch.cat((best.new_full((2,), float("-inf")), best[:-2])).masked_fill(~skips, float("-inf"))
        best, steps = torch.stack((best, one, two)).max(dim=0)
        best = best + row
        came.append(steps.tolist())
    state = len(states) - 1 if best[-1] >= best[-2] else len(states) - 2
    path = [state]
    for steps in reversed(came):
        state -= steps[state]
        path.append(state)
    path.reverse()
    return [
        (path.index(2 * number + 1), len(path) - path[::-1].index(2 * number + 1)) for number in range(len(target_ids))
    ]
