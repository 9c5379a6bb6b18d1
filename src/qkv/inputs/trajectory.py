"""What an agent went through: returns, states and actions, step by step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.reader import Reader


class TrajectoryReader(Reader):
    """Make each step three positions, that all carry the vector of its time (Chen et al. 2021, section 3); without
    returns, two."""

    def __init__(self, choice: spec.Stack, reads: spec.Trajectory) -> None:
        super().__init__(choice, choice.d_model)
        self.reads = reads
        self.times = nn.Embedding(reads.longest, choice.d_model)
        self.returns = nn.Linear(1, choice.d_model) if reads.returns else None
        self.states = nn.Linear(reads.state, choice.d_model)
        self.actions = nn.Linear(reads.action, choice.d_model)

    def forward(self, given: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """steps (batch, steps, 2 + state + action) float -> (batch, 3 * steps, d_model), or 2 * steps.

        A step's numbers are its time, counted from 0 in its episode, the return it is to reach, its state and its
        action (any, where that is yet to be chosen); mask (batch, steps) bool. Raises DataError for another shape, or
        a time outside what was learned.
        """
        shape, width = tuple(given.shape), 2 + self.reads.state + self.reads.action
        if len(shape) != 3 or shape[2] != width or not shape[1]:
            raise DataError(
                f"steps of shape {shape} were given; expected (batch, steps, {width}), of which each step has its "
                f"time, its return, {self.reads.state} numbers of its state and {self.reads.action} of its action"
            )
        times = given[..., 0].long()
        exported = torch.compiler.is_exporting()  # a graph cannot look at numbers and refuse
        if not exported and (int(times.min()) < 0 or int(times.max()) >= self.times.num_embeddings):
            raise DataError(
                f"times from {int(times.min())} to {int(times.max())} were given; this model knows "
                f"0 to {self.times.num_embeddings - 1}: count them from the beginning of the episode"
            )
        returns, states, actions = torch.split(
            self.measured(given[..., 1:]), [1, self.reads.state, self.reads.action], dim=-1
        )
        seen = [self.states(states), self.actions(actions)]
        if self.returns is not None:
            seen.insert(0, self.returns(returns))
        hidden = (torch.stack(seen, dim=2) + self.times(times).unsqueeze(2)).flatten(1, 2)
        result: Tensor = self.dropout(self.norm(self.placed(hidden, past, self.mask(mask))))
        return result

    def mask(self, given: Tensor | None) -> Tensor | None:
        """(batch, steps) bool -> (batch, 3 * steps), or 2 * steps."""
        return None if given is None else given.repeat_interleave(self.reads.each, dim=1)
