"""Terminal Velocity Matching (arXiv 2511.19797, equations as in DESIGN section 1).

    terminal = 1/w^2 | df/ds(x_t, t, s, c, w) - sg[ u'(x_t + f, s, c, w) ] |^2
    boundary = 1/w^2 | u(x_r, r, c, w) - sg[ w v + (1 - w) u'(x_r, r, null, 1) ] |^2
    loss     = terminal + boundary

u' is the velocity of the EMA target, sg stops the gradient, and the gradient flows through the JVP in df/ds.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance, GuidanceScheme, drop_labels, guided_target
from tvmatch.interpolant import conditional_velocity, interpolate
from tvmatch.objectives.base import Objective, Part, SampleFigures, StepLoss, mean_square, root_mean_square
from tvmatch.times import JumpScheme, LogitNormal, TimeScheme, TruncatedGap

SAME_TIME = 1e-6  # t - s below this is a jump of length zero: nothing to match


class Terms(NamedTuple):
    """The two parts of the loss of each sample, and for the instruments, detached, two norms. The boundary's [B], all
    others [B / terminal_every]: of the samples that jump."""

    terminal: Tensor
    boundary: Tensor
    output_rms: Tensor  # root mean square of F(x_t, t, s)
    slope_rms: Tensor  # root mean square of (t - s) dF/ds there: how far the jump is from a straight line


class TerminalVelocityMatching(Objective):
    """The paper's objective.

    `weighted` divides each sample's loss by w^2 (equation above); `detach_jvp` stops the gradient through dF/ds, an
    ablation that the paper shows to fail; `boundary_at_end` takes r = s, the end of the jump, instead of a time r of
    its own (ablation). Whether the network's output is multiplied by w is the flow map's choice
    (`FlowMap(scaled=...)`).

    `terminal_every` = n matches the terminal term on every n-th sample of a batch only, the boundary term on all (1, as
    in the paper: both on all). The loss has the same expectation, with more variance in its first term, which takes 7
    of a step's 11 passes of arithmetic: MeanFlow (arXiv 2505.13447) gives most samples to flow matching likewise. A
    batch, and each part of it on ranks and micro-steps, must be a multiple of n.
    """

    has_tangents = True

    def __init__(
        self,
        flow: FlowMap,
        jumps: JumpScheme | None = None,
        times: TimeScheme | None = None,
        guidance: GuidanceScheme | None = None,
        label_dropout: float = 0.1,
        weighted: bool = True,
        detach_jvp: bool = False,
        boundary_at_end: bool = False,
        terminal_every: int = 1,
    ) -> None:
        if terminal_every < 1:
            raise ValueError(f"terminal_every must be at least 1 (every sample), got {terminal_every}.")
        if terminal_every > 1 and boundary_at_end:
            raise ValueError(
                f"boundary_at_end takes r = s, and with terminal_every={terminal_every} most samples have no s; "
                "leave one of the two out."
            )
        super().__init__(flow)
        self.jumps = jumps or TruncatedGap()
        self.times = times or LogitNormal()
        self.guidance = guidance or FixedGuidance()
        self.label_dropout = label_dropout
        self.weighted, self.detach_jvp, self.boundary_at_end = weighted, detach_jvp, boundary_at_end
        self.terminal_every = terminal_every

    @staticmethod
    def terms(
        flow: FlowMap,
        target_flow: FlowMap,
        *,
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        s: Tensor,
        r: Tensor,
        label: Tensor,
        w: Tensor,
        weighted: bool = True,
        detach_jvp: bool = False,
        guided: bool = True,
    ) -> Terms:
        """Both losses for given draws: data and noise [B, ...]; r, w, label [B]; t, s [B / n], those of every n-th
        sample, which alone jump (n = 1: all).

        Three network calls: the jump with its derivative, the boundary velocity, and one of the target for both of
        its uses. `guided=False` says that every w is 1: the guided target is then v itself, and the target's
        unconditional half is left out.
        """
        every = len(x0) // len(t)
        jumping, jumping_w = label[::every], w[::every]
        x_t, x_r = interpolate(x0[::every], noise[::every], t), interpolate(x0, noise, r)
        jump = flow.jump_with_velocity(x_t, t, s, jumping, jumping_w, detach_jvp=detach_jvp)
        # a network that overflows must reach the loss, where the trainer sees it, and not the check of the data: the
        # same numbers are in df/ds, so the loss is not finite either
        x_s = jump.x_s.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        boundary_target = conditional_velocity(x0, noise)
        with torch.no_grad():
            if guided:
                target = target_flow.velocity(
                    torch.cat([x_s, x_r]),
                    torch.cat([s, r]),
                    torch.cat([jumping, torch.full_like(label, -1)]),
                    torch.cat([jumping_w, torch.ones_like(w)]),
                )
                terminal_target, unconditional = target.split([len(t), len(r)])
                boundary_target = guided_target(boundary_target, unconditional, w)
            else:
                terminal_target = target_flow.velocity(x_s, s, jumping, jumping_w)
        terminal = mean_square(jump.df_ds - terminal_target)
        terminal = torch.where(t - s > SAME_TIME, terminal, torch.zeros_like(terminal))
        boundary = mean_square(flow.velocity(x_r, r, label, w) - boundary_target)
        weight = w.square().reciprocal() if weighted else torch.ones_like(w)
        return Terms(
            weight[::every] * terminal,
            weight * boundary,
            output_rms=root_mean_square(jump.output),
            slope_rms=(t - s) * root_mean_square(jump.slope),
        )

    def forward(self, x0: Tensor, label: Tensor, part: Part | None = None) -> StepLoss:
        part = part or Part(0, len(x0), len(x0))
        if part.first % self.terminal_every or part.count % self.terminal_every:
            raise ValueError(
                f"terminal_every={self.terminal_every} does not divide {part.count} of a batch of {part.whole} samples "
                "for one process and micro-step; choose a batch size that it divides."
            )
        g, batch = self.generator, part.whole
        label, w = drop_labels(part.spread(label), self.guidance(batch, g), self.label_dropout, g)
        noise = torch.randn((batch, *x0.shape[1:]), generator=g, device=x0.device, dtype=x0.dtype)
        t, s = (part.cut(time.to(x0.dtype))[:: self.terminal_every] for time in self.jumps(batch, g))
        r = s if self.boundary_at_end else part.cut(self.times(batch, g).to(x0.dtype))
        terms = self.terms(
            self.flow,
            self.target,
            x0=x0,
            noise=part.cut(noise),
            t=t,
            s=s,
            r=r,
            label=part.cut(label),
            w=part.cut(w.to(x0.dtype)),
            weighted=self.weighted,
            detach_jvp=self.detach_jvp,
            guided=not self.guidance.always_one,
        )
        terminal, boundary = terms.terminal.mean(), terms.boundary.mean()
        jumps = {"terminal": terms.terminal.detach(), "output_rms": terms.output_rms, "slope_rms": terms.slope_rms}
        return StepLoss(
            terminal + boundary,
            {"terminal": terminal.detach(), "boundary": boundary.detach()},
            (SampleFigures(jumps, t, s), SampleFigures({"boundary": terms.boundary.detach()}, r)),
        )
