"""MeanFlow (arXiv 2505.13447).

Differentiating (t - s) A(x_t, t, s) = int_s^t u(x_r, r) dr along the path gives the identity A = u - (t - s) dA/dt with
dA/dt = u dA/dx + partial_t A. The loss takes v for u:

    target = v - (t - s) dA/dt            dA/dt: one JVP along (v, 1, 0) for (x, t, s)
    e      = A(x_t, t, s) - sg[target]
    loss   = sg[1 / (|e|^2 + c)^p] |e|^2

Guidance, with effective scale w: v becomes omega v + kappa u(x_t, t, c, w) + (1 - omega - kappa) u(x_t, t, null, 1),
omega = (1 - kappa) w.
"""

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import GuidanceScheme, guided_target
from tvmatch.interpolant import per_sample
from tvmatch.networks.base import Tangents
from tvmatch.objectives.few_step import Draws, FewStepObjective, adaptive_square
from tvmatch.times import JumpScheme


class MeanFlow(FewStepObjective):
    """A quarter of the samples are jumps (s < t), the others flow matching; `power` p and `offset` c of the adaptive
    weight (p = 0: none); `mixing` kappa in [0, 1) puts the network's own guided velocity into the target."""

    has_tangents = True
    default_equal = 0.75

    def __init__(
        self,
        flow: FlowMap,
        jumps: JumpScheme | None = None,
        guidance: GuidanceScheme | None = None,
        label_dropout: float = 0.1,
        equal: float | None = None,
        power: float = 1.0,
        offset: float = 1e-3,
        mixing: float = 0.0,
    ) -> None:
        super().__init__(flow, jumps, guidance, label_dropout, equal)
        if not 0 <= mixing < 1:
            raise ValueError(f"mixing (kappa) must lie in [0, 1), got {mixing}.")
        if mixing and self.guidance.always_one:
            raise ValueError(f"mixing (kappa) {mixing} is a part of guidance, and w is always 1 here; give a guidance.")
        self.power, self.offset, self.mixing = power, offset, mixing

    @torch.no_grad()
    def guided(self, x_t: Tensor, v: Tensor, t: Tensor, label: Tensor, w: Tensor) -> Tensor:
        guided = guided_target(v, self.flow.unconditional_velocity(x_t, t), w)
        if self.mixing == 0:
            return guided
        # with omega = (1 - kappa) w the equation above is (1 - kappa) [w v + (1 - w) u_null] + kappa u_c
        return torch.lerp(guided, self.flow.velocity(x_t, t, label, w), self.mixing)

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, _, label, w = draws
        with torch.no_grad():
            direction = Tangents(x=v, t=torch.ones_like(t))
            slope = self.flow.average_velocity_derivative(x_t, t, s, label, w, direction)[1]
            target = v - per_sample(t - s, v) * slope
        return adaptive_square(self.flow.average_velocity(x_t, t, s, label, w) - target, self.power, self.offset)
