"""Trajectories of an agent: returns, states and actions, step by step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import DataError
from qkv.inputs.base import InputEmbedding


class TrajectoryEmbedding(InputEmbedding):
    """An embedding of trajectories: each step becomes three positions (two without returns) that share the vector of
    its
    time (Chen et al. 2021, section 3).
    """

    def __init__(self, config: spec.Stack, input_config: spec.Trajectory) -> None:
        super().__init__(config, config.d_model)
        self.input_config = input_config
        self.times = nn.Embedding(input_config.max_episode_steps, config.d_model)
        self.returns = nn.Linear(1, config.d_model) if input_config.return_conditioned else None
        self.states = nn.Linear(input_config.state_dim, config.d_model)
        self.actions = nn.Linear(input_config.action_dim, config.d_model)

    def forward(self, inputs: Tensor, past: int = 0, mask: Tensor | None = None) -> Tensor:
        """Embed steps (batch, steps, 2 + state + action) float -> (batch, 3 * steps, d_model), or 2 * steps.

        The numbers of a step are its time, counted from 0 in its episode, its return-to-go, its state and its action
        (arbitrary if it is yet to be chosen); mask (batch, steps) bool. Raises DataError for another shape, or for a
        time
        beyond the learned ones.
        """
        shape, width = tuple(inputs.shape), 2 + self.input_config.state_dim + self.input_config.action_dim
        if len(shape) != 3 or shape[2] != width or not shape[1]:
            raise DataError(
                f"steps of shape {shape} were given; expected (batch, steps, {width}), of which each step has its "
                f"time, its return, {self.input_config.state_dim} numbers of its state and "
                f"{self.input_config.action_dim} of its action"
            )
        times = inputs[..., 0].long()
        exported = torch.compiler.is_exporting()  # a graph cannot inspect numbers and raise an error
        if not exported and (int(times.min()) < 0 or int(times.max()) >= self.times.num_embeddings):
            raise DataError(
                f"times from {int(times.min())} to {int(times.max())} were given; this model knows "
                f"0 to {self.times.num_embeddings - 1}: count them from the beginning of the episode"
            )
        returns, states, actions = torch.split(
            self.to_parameter_dtype(inputs[..., 1:]),
            [1, self.input_config.state_dim, self.input_config.action_dim],
            dim=-1,
        )
        embedded = [self.states(states), self.actions(actions)]
        if self.returns is not None:
            embedded.insert(0, self.returns(returns))
        hidden = (torch.stack(embedded, dim=2) + self.times(times).unsqueeze(2)).flatten(1, 2)
        result: Tensor = self.dropout(self.norm(self.add_positions(hidden, past, self.position_mask(mask))))
        return result

    def position_mask(self, mask: Tensor | None) -> Tensor | None:
        """Map (batch, steps) bool -> (batch, 3 * steps), or 2 * steps."""
        return None if mask is None else mask.repeat_interleave(self.input_config.positions_per_step, dim=1)
