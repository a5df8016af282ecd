"""Alpha-Flow (arXiv 2510.20771): from trajectory flow matching (alpha = 1) towards MeanFlow (alpha -> 0).

    m      = alpha s + (1 - alpha) t
    x_m    = x_t - (t - m) v
    target = alpha v + (1 - alpha) A(x_m, m, s)
    loss   = 1/alpha 1/w^2 | A(x_t, t, s) - sg[target] |^2          where s < t
             1/w^2 | A(x_t, t, t) - v |^2                           where s = t

The second line has the gradient of the first at s = t, where m = t and both A are one number; taken from two calls,
which may round differently, their difference would be divided by alpha. Where s < t it is: at alpha = 0.005 and in
bfloat16 that error is of the size of what is learned (docs/methods.md).
alpha falls along a sigmoid of the training's progress p, alpha = sigmoid(-25 ((p - begin) / (end - begin) - 1/2)), from
1 to `smallest`. The paper sets alpha to 0 below 0.005 and goes on with MeanFlow's JVP; here alpha stays at `smallest`,
a finite difference in its place, and no derivative is needed. The 1/w^2 is this library's.
"""

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import GuidanceScheme
from tvmatch.interpolant import per_sample
from tvmatch.objectives.few_step import Draws, FewStepObjective, as_data, weighted_square
from tvmatch.times import JumpScheme

STEEPNESS = 25.0


class AlphaFlow(FewStepObjective):
    """alpha falls between the shares `begin` and `end` of the training."""

    default_equal = 0.5

    def __init__(
        self,
        flow: FlowMap,
        jumps: JumpScheme | None = None,
        guidance: GuidanceScheme | None = None,
        label_dropout: float = 0.1,
        equal: float | None = None,
        begin: float = 0.0,
        end: float = 0.8,
        smallest: float = 0.005,
    ) -> None:
        super().__init__(flow, jumps, guidance, label_dropout, equal)
        if not 0 <= begin < end or not 0 < smallest <= 1:
            raise ValueError(f"alpha needs 0 <= begin < end and 0 < smallest <= 1, got {begin}, {end} and {smallest}.")
        self.begin, self.end, self.smallest = begin, end, smallest

    def alpha(self) -> Tensor:
        """The consistency step ratio at the training's progress; a scalar."""
        place = (self.progress - self.begin) / (self.end - self.begin) - 0.5
        return torch.sigmoid(-STEEPNESS * place).clamp(min=self.smallest)

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, _, label, w = draws
        alpha = self.alpha().to(t.dtype)
        with torch.no_grad():
            middle = torch.maximum(torch.lerp(t, s, alpha), s)
            x_m = x_t - per_sample(t - middle, x_t) * v
            target = torch.lerp(self.flow.average_velocity(as_data(x_m), middle, s, label, w), v, alpha)
            target = torch.where(per_sample(s < t, v), target, v)
        losses = weighted_square(self.flow.average_velocity(x_t, t, s, label, w) - target, w)
        return torch.where(s < t, losses / alpha, losses)
