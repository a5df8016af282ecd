"""Inductive moment matching, IMM (arXiv 2503.07565): distributions at s are matched by samples, not points by points.

Groups of M samples share (t, s). A little nearer to the data, at r, the map is taken to be right already:

    y_t = x_t - (t - s) A(x_t, t, s)
    y_r = sg[x_r - (r - s) A(x_r, r, s)]            x_r = x_t - (t - r) v: the same data and noise
    k(y, y') = exp(-max(|y - y'|, eps) / ((t - s) D))                  Laplace kernel, D elements
    loss = weight(t) / M^2 sum_jk [ k(y_t^j, y_t^k) + k(y_r^j, y_r^k) - 2 k(y_t^j, y_r^k) ]

    r = max(s, tau / (1 + tau)), tau = t / (1 - t) - (T / (1 - T)) / 2^12           0 <= t <= T = 0.994
    weight(t) = sigma(b - lambda) / (t ((1 - t)^2 + t^2)), lambda = 2 ln((1 - t) / t), b = 4

Pairs of different classes do not count (the kernel of the pair (y, class)): the paper's groups would match the classes
of a group together only. With M = 1 this is a consistency loss of finite step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import GuidanceScheme
from tvmatch.interpolant import per_sample
from tvmatch.objectives.base import Part
from tvmatch.objectives.few_step import Draws, FewStepObjective
from tvmatch.times import JumpScheme

LATEST = 0.994  # T: beyond it t / (1 - t) leaves all bounds
BIAS = 4.0  # b
SMALLEST = 1e-8  # eps; distances below it have no gradient


@dataclass(frozen=True)
class GroupedJumps:
    """`size` samples in a row share a jump: t uniform in (0, T), s uniform in (0, t)."""

    size: int

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t, share = torch.rand(2, -(-batch // self.size), generator=generator, device=generator.device)
        t = (t * LATEST).clamp(min=1e-4).repeat_interleave(self.size)[:batch]
        return t, share.repeat_interleave(self.size)[:batch] * t


@dataclass(frozen=True)
class GroupedGuidance:
    """`size` samples in a row share a guidance scale."""

    scheme: GuidanceScheme
    size: int

    @property
    def always_one(self) -> bool:
        return self.scheme.always_one

    def __call__(self, batch: int, generator: torch.Generator) -> Tensor:
        return self.scheme(-(-batch // self.size), generator).repeat_interleave(self.size)[:batch]


def earlier_time(t: Tensor, s: Tensor, halvings: int) -> Tensor:
    """r(t, s): a 2^halvings-th part of the largest ratio t / (1 - t) below that of t, but not below s."""
    ratio = (t / (1 - t).clamp(min=1 - LATEST) - LATEST / (1 - LATEST) / 2**halvings).clamp(min=0)
    return torch.maximum(ratio / (1 + ratio), s).minimum(t)


def time_weight(t: Tensor) -> Tensor:
    """w(t) of the paper with a = 1: 1/2 sigma(b - lambda) (-dlambda/dt) (1 - t) / ((1 - t)^2 + t^2)."""
    tau = t / (1 - t).clamp(min=1 - LATEST)
    return torch.sigmoid(BIAS + 2 * tau.log()) / (t * ((1 - t).square() + t.square()))


def laplace_kernel(y: Tensor, z: Tensor, gap: Tensor) -> Tensor:
    """[G, M, D] and [G, M, D] -> [G, M, M]; gap [G] is t - s."""
    square = (y[:, :, None] - z[:, None]).square().sum(3)
    return torch.exp(-square.clamp(min=SMALLEST**2).sqrt() / (gap[:, None, None] * y.shape[2]))


class InductiveMomentMatching(FewStepObjective):
    """`group` is M, `halvings` the 12 above. A batch, and each part of it on ranks and micro-steps, must be a multiple
    of M (`ValueError`).

    No sample has s = t: u(x, t), which guidance asks for, is the limit of short jumps, which are drawn.
    """

    default_equal = 0.0

    def __init__(
        self,
        flow: FlowMap,
        jumps: JumpScheme | None = None,
        guidance: GuidanceScheme | None = None,
        label_dropout: float = 0.1,
        group: int = 4,
        halvings: int = 12,
    ) -> None:
        if group < 1:
            raise ValueError(f"groups of inductive moment matching have at least 1 sample, got {group}.")
        super().__init__(flow, jumps or GroupedJumps(group), guidance, label_dropout)
        self.group, self.halvings = group, halvings
        self.guidance = GroupedGuidance(self.guidance, group)

    def draws(self, x0: Tensor, label: Tensor, part: Part) -> Draws:
        if part.first % self.group or part.count % self.group:
            raise ValueError(
                f"inductive moment matching compares groups of {self.group} samples, which {part.count} of a batch of "
                f"{part.whole} cut apart; choose batch size, processes and --accumulate so that each part is a "
                f"multiple of {self.group}."
            )
        return super().draws(x0, label, part)

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, _, label, w = draws
        r = earlier_time(t, s, self.halvings)
        with torch.no_grad():
            x_r = x_t - per_sample(t - r, v) * v
            y_r = x_r - per_sample(r - s, v) * self.flow.average_velocity(x_r, r, s, label, w)
        y_t = x_t - per_sample(t - s, v) * self.flow.average_velocity(x_t, t, s, label, w)
        grouped = (len(x_t) // self.group, self.group, -1)
        y_t, y_r, classes = y_t.view(grouped), y_r.view(grouped), label.view(grouped[:2])
        gap = (t - s).view(grouped[:2])[:, 0].clamp(min=SMALLEST)
        kernels = laplace_kernel(y_t, y_t, gap) + laplace_kernel(y_r, y_r, gap) - 2 * laplace_kernel(y_t, y_r, gap)
        same = classes[:, :, None] == classes[:, None]
        discrepancy = torch.where(same, kernels, torch.zeros_like(kernels)).mean(2).flatten()
        return time_weight(t) * discrepancy
