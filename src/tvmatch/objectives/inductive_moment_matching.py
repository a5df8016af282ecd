"""Inductive moment matching, IMM (arXiv 2503.07565): distributions at s are matched by samples, not points by points.

Groups of M samples share (t, s). A little nearer to the data, at r, the map is taken to be right already:

    y_t = x_t - (t - s) A(x_t, t, s)
    y_r = sg[x_r - (r - s) A(x_r, r, s)]            x_r = x_t - (t - r) v: the same data and noise
    k(y, y') = exp(-max(|y - y'|, eps) / ((t - s) D))                  Laplace kernel, D elements
    loss = weight(t) / M^2 sum_jk [ k(y_t^j, y_t^k) + k(y_r^j, y_r^k) - 2 k(y_t^j, y_r^k) ]

    r = max(s, tau / (1 + tau)), tau = t / (1 - t) - (T / (1 - T)) / 2^12           0 <= t <= T = 0.994
    weight(t) = sigma(b - lambda) / (t ((1 - t)^2 + t^2)), lambda = 2 ln((1 - t) / t), b = 4

Only samples of one class are compared, and samples without a class with each other: a batch is sorted by its classes
before it is cut into groups, and where two classes meet in a group, each part of it is a smaller group of its own. With
M = 1 this is a consistency loss of finite step.

Towards t = 1 the r of the paper is all but t: 2e-5 below it at t = 0.98. What is learned, y_t - y_r, is then far below
what 16-bit blocks resolve. So r is also at most t - `smallest_step` (t - s); the induction holds for every r below t.

The paper's data and noise have one deviation, sigma_d, and its kernel is exp(-|y - y'| / ((t - s) sigma_d D)): in units
of sigma_d the kernel above. Here the noise has deviation 1, whatever the data's is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import GuidanceScheme, drop_labels
from tvmatch.interpolant import per_sample
from tvmatch.networks.layers import coarsest_rounding
from tvmatch.objectives.base import Part
from tvmatch.objectives.few_step import Draws, FewStepObjective, as_data
from tvmatch.times import JumpScheme

GROUP = 4  # M
LATEST = 0.994  # T: beyond it t / (1 - t) leaves all bounds
BIAS = 4.0  # b
SMALLEST = 1e-8  # eps; distances below it have no gradient
RESOLVED = 4  # least (t - r) / (t - s) in units of rounding: the direction of y_t - y_r is then kept (docs/methods.md)


@dataclass(frozen=True)
class UniformJumps:
    """The paper's: t uniform in (0, T), s uniform in (0, t)."""

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t, share = torch.rand(2, batch, generator=generator, device=generator.device)
        t = (t * LATEST).clamp(min=1e-4)
        return t, share * t


@dataclass(frozen=True)
class GroupedJumps:
    """`size` samples in a row share a jump of a scheme."""

    scheme: JumpScheme
    size: int

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t, s = self.scheme(-(-batch // self.size), generator)
        return t.repeat_interleave(self.size)[:batch], s.repeat_interleave(self.size)[:batch]


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


def earlier_time(t: Tensor, s: Tensor, halvings: int, smallest_step: float = 0.0) -> Tensor:
    """r(t, s): a 2^halvings-th part of the largest ratio t / (1 - t) below that of t, at least `smallest_step` of the
    jump below t, but not below s."""
    ratio = (t / (1 - t).clamp(min=1 - LATEST) - LATEST / (1 - LATEST) / 2**halvings).clamp(min=0)
    return torch.maximum(torch.minimum(ratio / (1 + ratio), t - smallest_step * (t - s)), s).minimum(t)


def time_weight(t: Tensor) -> Tensor:
    """w(t) of the paper with a = 1: 1/2 sigma(b - lambda) (-dlambda/dt) (1 - t) / ((1 - t)^2 + t^2)."""
    tau = t / (1 - t).clamp(min=1 - LATEST)
    return torch.sigmoid(BIAS + 2 * tau.log()) / (t * ((1 - t).square() + t.square()))


def laplace_kernel(y: Tensor, z: Tensor, gap: Tensor) -> Tensor:
    """[G, M, D] and [G, M, D] -> [G, M, M]; gap [G] is t - s."""
    square = (y[:, :, None] - z[:, None]).square().sum(3)
    return torch.exp(-square.clamp(min=SMALLEST**2).sqrt() / (gap[:, None, None] * y.shape[2]))


class InductiveMomentMatching(FewStepObjective):
    """`group` is M, `halvings` the 12 above, `smallest_step` the least share of the jump that lies between t and r
    (None: four units of rounding of the network's coarsest layers, 1/32 with bfloat16 blocks, 5e-7 with float32).

    A batch, and each part of it on ranks and micro-steps, must be a multiple of M (`ValueError`). Groups are formed
    within a part: with classes, how a batch is shared decides which samples meet.

    No sample has s = t: u(x, t), which guidance asks for, is the limit of short jumps, which are drawn.
    """

    default_equal = 0.0

    def __init__(
        self,
        flow: FlowMap,
        jumps: JumpScheme | None = None,
        guidance: GuidanceScheme | None = None,
        label_dropout: float = 0.1,
        group: int = GROUP,
        halvings: int = 12,
        smallest_step: float | None = None,
    ) -> None:
        if group < 1:
            raise ValueError(f"groups of inductive moment matching have at least 1 sample, got {group}.")
        if smallest_step is not None and not 0 <= smallest_step <= 1:
            raise ValueError(f"smallest_step is a share of the jump in [0, 1], got {smallest_step}.")
        super().__init__(flow, GroupedJumps(jumps or UniformJumps(), group), guidance, label_dropout)
        self.group, self.halvings, self._smallest_step = group, halvings, smallest_step
        self.guidance = GroupedGuidance(self.guidance, group)

    @property
    def smallest_step(self) -> float:
        """The least (t - r) / (t - s); it follows the dtype in which the network computes now."""
        rounding = RESOLVED * coarsest_rounding(self.flow)
        return rounding if self._smallest_step is None else self._smallest_step

    def notice(self) -> str | None:
        least = self.smallest_step
        if self._smallest_step is not None or least < 1e-3:
            return None
        return (
            f"inductive-moment-matching: r is at least {least:.3g} (t - s) below t, farther than in its paper where t "
            "is near 1, because these blocks round to 16 bits (docs/methods.md)"
        )

    def draws(self, x0: Tensor, label: Tensor, part: Part) -> Draws:
        if part.first % self.group or part.count % self.group:
            raise ValueError(
                f"inductive moment matching compares groups of {self.group} samples, which {part.count} of a batch of "
                f"{part.whole} cut apart; choose batch size, processes and --accumulate so that each part is a "
                f"multiple of {self.group}."
            )
        return super().draws(x0, label, part)

    def conditions(self, x0: Tensor, label: Tensor, part: Part) -> tuple[Tensor, Tensor, Tensor]:
        """In the order of the classes that are left: groups are of one class, or of none. Samples whose class was
        dropped meet as they come: the map of no class does not carry the samples of a class to samples of it."""
        w = self.guidance(part.whole, self.generator)
        label = part.cut(drop_labels(part.spread(label), w, self.label_dropout, self.generator)[0])
        order = label.argsort(stable=True)
        label = label[order]
        return x0[order], label, torch.where(label < 0, 1.0, part.cut(w))

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, _, label, w = draws
        r = earlier_time(t, s, self.halvings, self.smallest_step)
        with torch.no_grad():
            x_r = x_t - per_sample(t - r, v) * v
            y_r = x_r - per_sample(r - s, v) * self.flow.average_velocity(as_data(x_r), r, s, label, w)
        y_t = x_t - per_sample(t - s, v) * self.flow.average_velocity(x_t, t, s, label, w)
        grouped = (len(x_t) // self.group, self.group, -1)
        y_t, y_r, classes = y_t.view(grouped), y_r.view(grouped), label.view(grouped[:2])
        gap = (t - s).view(grouped[:2])[:, 0].clamp(min=SMALLEST)
        kernels = laplace_kernel(y_t, y_t, gap) + laplace_kernel(y_r, y_r, gap) - 2 * laplace_kernel(y_t, y_r, gap)
        same = (classes[:, :, None] == classes[:, None]).to(kernels.dtype)
        return time_weight(t) * ((kernels * same).sum(2) / same.sum(2)).flatten()
