"""Exponential moving averages of weights: one target for the loss, several for evaluation."""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from tvmatch.flow_map import FlowMap


@torch.no_grad()
def move_towards(average: nn.Module, source: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * source, for every parameter at once; decay 0 copies."""
    torch._foreach_lerp_(list(average.parameters()), list(source.parameters()), 1 - decay)


class EvaluationEma:
    """Copies of a flow map whose weights follow it slowly, one for each decay.

    Early on the decay is smaller, min(decay, (1 + step) / (10 + step)), so that the average forgets the
    initial weights.
    """

    def __init__(self, flow: FlowMap, decays: Iterable[float]) -> None:
        self.flows = {decay: copy.deepcopy(flow).requires_grad_(False).eval() for decay in decays}

    def update(self, flow: FlowMap, step: int) -> None:
        """Move every average after training step `step` (counted from 0)."""
        for decay, average in self.flows.items():
            move_towards(average, flow, min(decay, (1 + step) / (10 + step)))
