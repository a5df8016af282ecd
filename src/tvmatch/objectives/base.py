"""The one interface of training objectives."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tvmatch.flow_map import FlowMap


def mean_square(error: Tensor) -> Tensor:
    """[B, ...] -> [B]: the mean of the squared elements of each sample."""
    return error.square().flatten(1).mean(1)


class StepLoss(NamedTuple):
    """What a training step computes: the loss to descend, and its parts for the log (detached, scalar)."""

    loss: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """A flow map and a loss: `forward(x0, label)` makes every random draw and every network call of one step.

    One wrapped forward thus holds all of them, which data-parallel wrappers need. `target` is the slowly moving copy
    (EMA) of the flow map that objectives may compare with; the loop moves it after each step. Random draws come from
    `generator`, on the network's device, which the loop seeds anew for every step (resuming repeats them exactly).
    """

    has_target = True

    def __init__(self, flow: FlowMap) -> None:
        super().__init__()
        self.flow = flow
        self.target: FlowMap | None = copy.deepcopy(flow).requires_grad_(False) if self.has_target else None
        self.generator = torch.Generator(next(flow.parameters()).device)

    def seed(self, seed: int) -> None:
        """Restart the stream of random draws; a generator is made on the network's device if it has moved."""
        device = next(self.flow.parameters()).device
        if self.generator.device != device:
            self.generator = torch.Generator(device)
        self.generator.manual_seed(seed)

    def forward(self, x0: Tensor, label: Tensor) -> StepLoss:
        """Data x0 [B, ...] and classes [B] (-1: none) -> the step's loss."""
        raise NotImplementedError
