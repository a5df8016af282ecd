"""Modular MeanFlow (arXiv 2508.17426): how much gradient flows through the derivative is a dial.

    loss = 1/w^2 | A(x_t, t, s) + (t - s) SG_l[dA/dt] - v |^2       dA/dt: one JVP along (v, 1, 0)
    SG_l[z] = l z + (1 - l) sg[z]

l rises linearly from 0 (MeanFlow's gradient) to `largest` over the share `warmup` of the training. The 1/w^2 is this
library's.
"""

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import GuidanceScheme
from tvmatch.interpolant import per_sample
from tvmatch.networks.base import Tangents
from tvmatch.objectives.few_step import Draws, FewStepObjective, weighted_square
from tvmatch.times import JumpScheme


class ModularMeanFlow(FewStepObjective):
    """`warmup` in (0, 1], `largest` in [0, 1]. With l > 0 the minimum is not the flow map: the conditional v inside the
    JVP adds a variance that the network can lower (docs/methods.md)."""

    has_tangents = True

    def __init__(
        self,
        flow: FlowMap,
        jumps: JumpScheme | None = None,
        guidance: GuidanceScheme | None = None,
        label_dropout: float = 0.1,
        equal: float | None = None,
        warmup: float = 0.5,
        largest: float = 1.0,
    ) -> None:
        super().__init__(flow, jumps, guidance, label_dropout, equal)
        if not 0 < warmup <= 1 or not 0 <= largest <= 1:
            raise ValueError(f"warmup must lie in (0, 1] and largest in [0, 1], got {warmup} and {largest}.")
        self.warmup, self.largest = warmup, largest

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, _, label, w = draws
        direction = Tangents(x=v, t=torch.ones_like(t))
        average, slope = self.flow.average_velocity_derivative(x_t, t, s, label, w, direction)
        dial = (self.progress / self.warmup).clamp(max=1.0).to(t.dtype) * self.largest
        slope = torch.lerp(slope.detach(), slope, dial)
        return weighted_square(average + per_sample(t - s, v) * slope - v, w)
