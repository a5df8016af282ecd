"""What the methods beside TVM share: one draw of (x_t, v, t, s) a sample, a share of them with s = t, a loss of each.

In the notation here t >= s, t = 0 is data, and A(x, t, s) = w F(x, t, s) is the average velocity of the jump, which the
papers write u(z_t, r, t) with r = s: x_s = x_t - (t - s) A(x_t, t, s). At s = t every loss below is flow matching.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance, GuidanceScheme, drop_labels, guided_target
from tvmatch.interpolant import conditional_velocity, interpolate
from tvmatch.objectives.base import Objective, Part, SampleFigures, StepLoss, mean_square
from tvmatch.times import Independent, JumpScheme, LogitNormal, TimeScheme


class Draws(NamedTuple):
    """What one step has drawn for its samples."""

    x_t: Tensor  # [B, ...]
    v: Tensor  # e - x_0, or with guidance w v + (1 - w) u(x_t, t, null, 1); [B, ...], without gradient
    t: Tensor  # [B]
    s: Tensor  # [B], s <= t
    share: Tensor  # [B], uniform in (0, 1): where a method splits an interval
    label: Tensor  # [B]
    w: Tensor  # [B]


def weighted_square(error: Tensor, w: Tensor) -> Tensor:
    """|error|^2 / w^2 of each sample, [B]: as in TVM, so that guided samples weigh like others."""
    return mean_square(error) / w.square()


def adaptive_square(error: Tensor, power: float = 1.0, offset: float = 1e-3) -> Tensor:
    """|e|^2 sg[1 / (|e|^2 + offset)^power] of each sample, [B]; |e|^2 sums over elements (arXiv 2505.13447)."""
    square = error.square().flatten(1).sum(1)
    return square * (square.detach() + offset).pow(-power)


def as_data(x: Tensor) -> Tensor:
    """x with zeros for what is not finite: where a point that the network made goes back into it, an overflow must
    reach the loss, where the trainer sees it, and not the check of the data."""
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


class FewStepObjective(Objective):
    """Draws as the papers do and averages `losses`, which subclasses define.

    jumps     how (t, s) are drawn; None: two logit-normal (-0.4, 1) times in order, as for MeanFlow
    equal     share of the samples whose s is set to t
    times     how t is drawn for those (None: it stays as it is)

    `progress` is the share of the training that is done. It is 1 until `advance` is called: without a loop that calls
    it, a curriculum is at its end.
    """

    has_target = False  # "sg" means the network's own output, without gradient, unless a subclass says otherwise
    default_equal = 0.5

    def __init__(
        self,
        flow: FlowMap,
        jumps: JumpScheme | None = None,
        guidance: GuidanceScheme | None = None,
        label_dropout: float = 0.1,
        equal: float | None = None,
        times: TimeScheme | None = None,
    ) -> None:
        super().__init__(flow)
        self.jumps = jumps or Independent(LogitNormal())
        self.guidance = guidance or FixedGuidance()
        self.label_dropout = label_dropout
        self.equal = self.default_equal if equal is None else equal
        if not 0 <= self.equal <= 1:
            raise ValueError(f"the share of samples with s = t must lie in [0, 1], got {equal}.")
        self.times = times
        # a tensor, for a step that was recorded as a CUDA graph would keep a number for ever
        self.register_buffer("progress", torch.ones((), device=next(flow.parameters()).device), persistent=False)

    @property
    def teacher(self) -> FlowMap:
        """Whose outputs are the targets: the EMA target, or the network itself (without gradient)."""
        return self.flow if self.target is None else self.target

    def advance(self, progress: float) -> None:
        self.progress.fill_(progress)

    def losses(self, draws: Draws) -> Tensor:
        """The loss of each sample, [B]."""
        raise NotImplementedError

    def draws(self, x0: Tensor, label: Tensor, part: Part) -> Draws:
        """Everything random of one step, for the samples of `part`."""
        g, batch = self.generator, part.whole
        x0, label, w = self.conditions(x0, label, part)
        noise = torch.randn((batch, *x0.shape[1:]), generator=g, device=x0.device, dtype=x0.dtype)
        t, s = self.jumps(batch, g)
        same = torch.rand(batch, generator=g, device=g.device) < self.equal
        if self.times is not None:
            t = torch.where(same, self.times(batch, g), t)
        s = torch.where(same, t, s)
        share = torch.rand(batch, generator=g, device=g.device)
        noise, w = part.cut(noise), w.to(x0.dtype)
        t, s, share = (part.cut(value.to(x0.dtype)) for value in (t, s, share))
        x_t, v = interpolate(x0, noise, t), conditional_velocity(x0, noise)
        if not self.guidance.always_one:
            v = self.guided(x_t, v, t, label, w)
        return Draws(x_t, v, t, s, share, label, w)

    def conditions(self, x0: Tensor, label: Tensor, part: Part) -> tuple[Tensor, Tensor, Tensor]:
        """The data of `part`, and the classes (some dropped) and guidance scales that go with it."""
        w = self.guidance(part.whole, self.generator)
        label, w = drop_labels(part.spread(label), w, self.label_dropout, self.generator)
        return x0, part.cut(label), part.cut(w)

    @torch.no_grad()
    def guided(self, x_t: Tensor, v: Tensor, t: Tensor, label: Tensor, w: Tensor) -> Tensor:
        """w v + (1 - w) u(x_t, t, null, 1)."""
        return guided_target(v, self.teacher.unconditional_velocity(x_t, t), w)

    def forward(self, x0: Tensor, label: Tensor, part: Part | None = None) -> StepLoss:
        draws = self.draws(x0, label, part or Part(0, len(x0), len(x0)))
        losses = self.losses(draws)
        boundary = torch.where(draws.s < draws.t, torch.zeros_like(losses), losses).detach().mean()
        loss = losses.mean()
        return StepLoss(
            loss,
            {"jumps": loss.detach() - boundary, "boundary": boundary},
            (SampleFigures({"loss": losses.detach()}, draws.t, draws.s),),
        )
