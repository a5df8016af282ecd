"""Improved MeanFlow (arXiv 2512.02012): MeanFlow as a regression on v.

    V    = A(x_t, t, s) + (t - s) sg[dA/dt]       dA/dt: one JVP along (u, 1, 0), u = sg[A(x_t, t, t)]
    loss = 1/w^2 | V - v |^2

The tangent is the network's own velocity in place of the conditional one, so that the compound V is a function of x_t
alone and the variance of v enters only where it does in flow matching. The boundary condition gives u without an
auxiliary head. The 1/w^2 is this library's.
"""

import torch
from torch import Tensor

from tvmatch.interpolant import per_sample
from tvmatch.networks.base import Tangents
from tvmatch.objectives.few_step import Draws, FewStepObjective, weighted_square


class ImprovedMeanFlow(FewStepObjective):
    """Half of the samples are jumps by default; no options of its own."""

    has_tangents = True

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, _, label, w = draws
        with torch.no_grad():
            velocity = self.flow.velocity(x_t, t, label, w)
            direction = Tangents(x=velocity, t=torch.ones_like(t))
            slope = self.flow.average_velocity_derivative(x_t, t, s, label, w, direction)[1]
        compound = self.flow.average_velocity(x_t, t, s, label, w) + per_sample(t - s, v) * slope
        return weighted_square(compound - v, w)
