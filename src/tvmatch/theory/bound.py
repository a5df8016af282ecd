"""The bound on the Wasserstein-2 distance (DESIGN section 1), both sides evaluated on the same points.

    W2^2( (x + f(., t, 0))_# p_t, p_0 )  <=  2 t int_0^t exp(2 int_0^s L(r) dr) ( E|d1(s)|^2 + E|d2(s)|^2 ) ds

d1 = df/ds - u_theta(x^_s, s) along the learned map x^_s = x_t + f(x_t, t, s); d2 = u_theta(x_s, s) - u(x_s, s) along
the true flow; L(s) a Lipschitz constant of u_theta(., s).

Why: the gap delta_s = x^_s - x_s is zero at s = t and has d delta/ds = d1 + [u_theta(x^_s) - u_theta(x_s)] + d2, so
that Gronwall gives |delta_0| <= int_0^t exp(int_0^s L) (|d1| + |d2|) ds, and Cauchy-Schwarz the rest. The argument
holds for any distribution at time t, the empirical one of finitely many points too: evaluated on one set of points both
sides have no sampling error against each other. The proof bounds E|delta_0|^2, which is at least W2^2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.theory.gaussian import Gaussian
from tvmatch.theory.lipschitz import velocity_lipschitz
from tvmatch.theory.mixture import GaussianMixture
from tvmatch.theory.wasserstein import w2_samples


class Bound(NamedTuple):
    """Both sides and what the right one is made of; [K] at the times `s` from 0 up to t."""

    w2_squared: float  # the left side: between the jumps and the true flow's images of the same points
    coupled: float  # E|delta_0|^2, point by point: between the left side and the right
    right: float
    s: Tensor
    terminal: Tensor  # E|d1(s)|^2
    velocity: Tensor  # E|d2(s)|^2
    lipschitz: Tensor  # L(s)

    @property
    def holds(self) -> bool:
        return self.w2_squared <= self.right and self.coupled <= self.right

    @property
    def looseness(self) -> float:
        """The right side over the left."""
        return self.right / self.w2_squared if self.w2_squared > 0 else float("inf")


def evaluate_bound(
    flow: FlowMap,
    data: Gaussian | GaussianMixture,
    x_t: Tensor,
    t: float = 1.0,
    w: float = 1.0,
    steps: int = 32,
    iterations: int = 10,
    segment: int = 3,
    generator: torch.Generator | None = None,
) -> Bound:
    """Both sides for points x_t [N, D] of time t (noise at t = 1) and an unconditional flow map of the same dtype.

    Integrals by the trapezoidal rule on `steps` intervals. L(s) is the largest Jacobian norm of u_theta(., s) at
    `segment` points on every line from x_s to x^_s (both ends among them): where the proof needs it, but sampled, so
    an estimate from below.

    Raises `ValueError` for points of another dtype than the weights, none at all, and where the right side is no number
    (data without a velocity at s = 0).
    """
    if not 0 < t <= 1:
        raise ValueError(f"the start time t must lie in (0, 1], got {t}.")
    if steps < 1 or segment < 2:
        raise ValueError(f"steps must be at least 1 and segment at least 2, got {steps} and {segment}.")
    weight = next(flow.parameters())
    if x_t.dtype != weight.dtype or not len(x_t):
        raise ValueError(f"points [N, D] of the weights' {weight.dtype} are needed, got {x_t.dtype} {list(x_t.shape)}.")
    count, like = len(x_t), {"dtype": x_t.dtype, "device": x_t.device}
    label, scale = torch.full((count,), -1, device=x_t.device), torch.full((count,), w, **like)
    start, grid = torch.full((count,), t, **like), torch.linspace(0, t, steps + 1, **like)
    terminal, velocity, lipschitz = (torch.empty_like(grid) for _ in range(3))
    true, time = x_t, t
    for k in reversed(range(steps + 1)):
        s = grid[k].repeat(count)
        true, time = _true_flow(data, true, time, float(grid[k])), float(grid[k])
        with torch.no_grad():
            learned, slope = flow.terminal_velocity(x_t, start, s, label, scale)
            terminal[k] = _square(slope - flow.velocity(learned, s, label, scale))
            velocity[k] = _square(flow.velocity(true, s, label, scale) - data.velocity(true, s))
        line = torch.cat([torch.lerp(true, learned, part) for part in torch.linspace(0, 1, segment).tolist()])
        whole = (s.repeat(segment), label.repeat(segment), scale.repeat(segment))
        lipschitz[k] = velocity_lipschitz(flow, line, *whole, iterations, generator).max()
    growth = torch.cat([lipschitz.new_zeros(1), torch.cumulative_trapezoid(lipschitz, grid)])
    right = 2 * t * torch.trapezoid(torch.exp(2 * growth) * (terminal + velocity), grid)
    if bool(right.isnan()):
        bad = grid[(terminal + velocity).isnan()].tolist()
        raise ValueError(f"the right side of the bound is no number: at s = {bad} velocities are none.")
    return Bound(
        w2_samples(learned, true) ** 2,
        float(_square(learned - true)),
        float(right),
        grid,
        terminal,
        velocity,
        lipschitz,
    )


def _square(error: Tensor) -> Tensor:
    """E|error|^2, the sum over elements, the mean over points."""
    return error.square().flatten(1).sum(1).mean()


def _true_flow(data: Gaussian | GaussianMixture, x: Tensor, t: float, s: float) -> Tensor:
    if isinstance(data, GaussianMixture):
        return data.flow(x, t, s)
    return data.flow(x, x.new_full((len(x),), t), x.new_full((len(x),), s))
