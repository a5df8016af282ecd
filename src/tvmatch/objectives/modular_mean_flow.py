"""Modular MeanFlow (arXiv 2508.17426): how much gradient flows through the derivative is a dial.

    loss = 1/w^2 | A(x_t, t, s) + (t - s) SG_l[dA/dt] - v |^2       dA/dt: one JVP along (v, 1, 0)
    SG_l[z] = l z + (1 - l) sg[z]

l rises linearly from 0 (MeanFlow's gradient) to `largest` over the share `warmup` of the training; the paper's
curriculum ends with the whole gradient, l = 1. The 1/w^2 is this library's.

With u = E[v | x_t] and the Jacobian J = I - (t - s) dA/dx of the jump from x_t to x_s, the loss is on average over v

    E |A + (t - s) dA/dt - v|^2 = |A + (t - s) dA/dt along (u, 1, 0) - u|^2 + E |J (v - u)|^2

of which the second term has no part in the flow map: with l > 0 it draws the jump towards a constant.
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
    """`warmup` in (0, 1], `largest` in [0, 1]. With l > 0 the minimum is not the flow map (see above and
    docs/methods.md)."""

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

    def direction(self, draws: Draws) -> Tensor:
        """Along which x moves in dA/dt: the paper's conditional v."""
        return draws.v

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, _, label, w = draws
        direction = Tangents(x=self.direction(draws), t=torch.ones_like(t))
        average, slope = self.flow.average_velocity_derivative(x_t, t, s, label, w, direction)
        dial = (self.progress / self.warmup).clamp(max=1.0).to(t.dtype) * self.largest
        slope = torch.lerp(slope.detach(), slope, dial)
        return weighted_square(average + per_sample(t - s, v) * slope - v, w)
