"""Exponential moving averages of weights: one target for the loss, several for evaluation."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tvmatch.flow_map import FlowMap
from tvmatch.kernels.averages import move_averages


@torch.no_grad()
def move_towards(averages: Sequence[tuple[nn.Module, float]], source: nn.Module, skip: Tensor | None = None) -> None:
    """average <- decay * average + (1 - decay) * source, for every parameter of every (average, decay), fused; decay 0
    copies. Under FSDP each rank moves the shards that it holds.

    With `skip`, a float32 number on the device of the weights, nothing moves where it is 1: the host need not know.
    """
    move_averages(
        local_parameters(source),
        [local_parameters(average) for average, _ in averages],
        [1 - decay for _, decay in averages],
        skip,
    )


def local_parameters(module: nn.Module) -> list[Tensor]:
    """The parameters as plain tensors: of a sharded one, this rank's part."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in module.parameters()]


class EvaluationEma:
    """Copies of a flow map whose weights follow it slowly, one for each decay.

    Early on the decay is smaller, min(decay, (1 + step) / (10 + step)), so that the average forgets the
    initial weights.
    """

    def __init__(self, flow: FlowMap, decays: Iterable[float]) -> None:
        self.flows = {decay: copy.deepcopy(flow).requires_grad_(False).eval() for decay in decays}

    def at(self, step: int) -> list[tuple[nn.Module, float]]:
        """Every average, and the decay with which it moves after training step `step` (counted from 0)."""
        return [(average, min(decay, (1 + step) / (10 + step))) for decay, average in self.flows.items()]
