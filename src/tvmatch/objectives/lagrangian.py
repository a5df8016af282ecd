"""Lagrangian self-distillation of flow maps (arXiv 2505.18825; flow map matching: arXiv 2406.07507).

    x^_s = x_t + f(x_t, t, s)
    loss = 1/w^2 | df/ds(x_t, t, s) - sg[ u(x^_s, s) ] |^2          where s < t
           1/w^2 | u(x_t, t) - v |^2                                where s = t

The gradient flows through the JVP in df/ds. It is TVM's terminal condition with the network itself, not its average, as
the teacher. The 1/w^2 is this library's.
"""

import torch
from torch import Tensor

from tvmatch.interpolant import per_sample
from tvmatch.objectives.few_step import Draws, FewStepObjective, as_data, weighted_square


class LagrangianSelfDistillation(FewStepObjective):
    """Three quarters of the samples are flow matching by default; no options of its own."""

    has_tangents = True
    default_equal = 0.75

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, _, label, w = draws
        x_s, slope = self.flow.terminal_velocity(x_t, t, s, label, w)
        with torch.no_grad():
            # slope is made of the same numbers as x_s, so that the loss shows an overflow
            target = torch.where(per_sample(s < t, v), self.flow.velocity(as_data(x_s), s, label, w), v)
        return weighted_square(slope - target, w)  # at s = t the terminal velocity is u(x_t, t)
