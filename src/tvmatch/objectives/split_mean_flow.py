"""SplitMeanFlow (arXiv 2507.16884): interval splitting, no derivative.

An integral over [s, t] is the sum of those over [s, m] and [m, t]; with m = (1 - l) t + l s, l uniform in (0, 1):

    x_m    = x_t - (t - m) A(x_t, t, m)
    target = (1 - l) A(x_m, m, s) + l A(x_t, t, m)
    loss   = 1/w^2 | A(x_t, t, s) - sg[target] |^2

The identity also holds for A = 0; samples with s = t have v as their target and tie A to the data. The 1/w^2 is this
library's.
"""

import torch
from torch import Tensor

from tvmatch.interpolant import per_sample
from tvmatch.objectives.few_step import Draws, FewStepObjective, as_data, weighted_square


class SplitMeanFlow(FewStepObjective):
    """Half of the samples are jumps by default; no options of its own."""

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, share, label, w = draws
        middle = torch.maximum(torch.lerp(t, s, share), s)
        with torch.no_grad():
            first = self.flow.average_velocity(x_t, t, middle, label, w)
            x_m = x_t - per_sample(t - middle, x_t) * first
            second = self.flow.average_velocity(as_data(x_m), middle, s, label, w)
            target = torch.lerp(second, first, per_sample(share, x_t))
            target = torch.where(per_sample(s < t, v), target, v)
        return weighted_square(self.flow.average_velocity(x_t, t, s, label, w) - target, w)
