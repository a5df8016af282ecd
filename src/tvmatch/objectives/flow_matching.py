"""Flow matching with guidance as an input (arXiv 2210.02747; the guided target: arXiv 2502.12154).

loss = 1/w^2 | u(x_r, r, c, w) - sg[ w v + (1 - w) u'(x_r, r, null, 1) ] |^2
"""

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance, GuidanceScheme, drop_labels, guided_target
from tvmatch.interpolant import conditional_velocity, interpolate
from tvmatch.objectives.base import Objective, Part, SampleFigures, StepLoss, mean_square
from tvmatch.times import LogitNormal, TimeScheme


class FlowMatching(Objective):
    """The plain baseline: only the boundary term, sampled by many Euler steps (`tvmatch.sampling.euler`)."""

    def __init__(
        self,
        flow: FlowMap,
        times: TimeScheme | None = None,
        guidance: GuidanceScheme | None = None,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__(flow)
        self.times = times or LogitNormal()
        self.guidance = guidance or FixedGuidance()
        self.label_dropout = label_dropout

    @staticmethod
    def terms(
        flow: FlowMap,
        target_flow: FlowMap,
        *,
        x0: Tensor,
        noise: Tensor,
        r: Tensor,
        label: Tensor,
        w: Tensor,
        guided: bool = True,
    ) -> Tensor:
        """The loss of each sample [B], for given draws; see `TerminalVelocityMatching.terms` for shapes."""
        x_r, target = interpolate(x0, noise, r), conditional_velocity(x0, noise)
        if guided:
            with torch.no_grad():
                target = guided_target(target, target_flow.unconditional_velocity(x_r, r), w)
        return mean_square(flow.velocity(x_r, r, label, w) - target) / w.square()

    def forward(self, x0: Tensor, label: Tensor, part: Part | None = None) -> StepLoss:
        part = part or Part(0, len(x0), len(x0))
        g, batch = self.generator, part.whole
        label, w = drop_labels(part.spread(label), self.guidance(batch, g), self.label_dropout, g)
        noise = torch.randn((batch, *x0.shape[1:]), generator=g, device=x0.device, dtype=x0.dtype)
        r = part.cut(self.times(batch, g).to(x0.dtype))
        losses = self.terms(
            self.flow,
            self.target,
            x0=x0,
            noise=part.cut(noise),
            r=r,
            label=part.cut(label),
            w=part.cut(w.to(x0.dtype)),
            guided=not self.guidance.always_one,
        )
        loss = losses.mean()
        return StepLoss(loss, {"boundary": loss.detach()}, (SampleFigures({"boundary": losses.detach()}, r),))
