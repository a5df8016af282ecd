"""Exponential moving averages of weights: one target for the loss, several for evaluation."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tvmatch.flow_map import FlowMap


@torch.no_grad()
def move_towards(averages: Sequence[tuple[nn.Module, float]], source: nn.Module, skip: Tensor | None = None) -> None:
    """average <- decay * average + (1 - decay) * source, for every parameter of every (average, decay), fused; decay 0
    copies. Under FSDP each rank moves the shards that it holds.

    With `skip`, a float32 number on the device of the weights, nothing moves where it is 1: the host need not know.
    """
    weights = local_parameters(source)
    if skip is None:
        moving = [value for average, _ in averages for value in local_parameters(average)]
        shares = [1 - decay for _, decay in averages for _ in weights]
        torch._foreach_lerp_(moving, weights * len(averages), shares)
        return
    # An average is a step of gradient descent, x <- x - (d - 1) (source - x): source is the gradient, -1 the weight
    # decay, d - 1 the learning rate. PyTorch's fused step is one kernel for all weights and looks at `found_inf` on the
    # device. Its rounding leaves some 1e-7 of a large x at decay 0, which a second step takes away: then it is a copy.
    for average, decay in averages:
        for _ in range(2 if decay == 0 else 1):
            torch._fused_sgd_(
                local_parameters(average),
                weights,
                [],
                weight_decay=-1.0,
                momentum=0.0,
                lr=decay - 1,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                found_inf=skip,
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
