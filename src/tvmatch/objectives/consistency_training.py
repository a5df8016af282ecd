"""Continuous consistency training, sCT (arXiv 2410.11081), on the straight path.

The consistency function f(x_t, t) = x_t - t A(x_t, t, 0) jumps to the data; along the path it should not change:

    df/dt = v - A - t dA/dt                       dA/dt: one JVP along (v, 1, 0)
    g     = v - A - r t dA/dt                     tangent warm-up: r rises from 0 to 1
    g    <- g / (rms(g) + c)                      tangent normalisation, c = 0.1
    loss  = e^phi(t) | F_theta - F_sg - g |^2 - phi(t)          adaptive weight, phi learned

The paper's TrigFlow has the same path up to a scale of x, tan(t_trig) = t / (1 - t), and weights df/dt by
1 / tan(t_trig), which cancels the factor sin of its network; 1/t cancels ours. Its times, for data of deviation 1/2,
are ln(sigma_d tan t_trig) ~ N(-1, 1.4^2). For data of deviation d they are logit-normal (-1 + ln 2d, 1.4) here: -0.3 at
d = 1, and -1 for pixels in [-1, 1], of deviation 1/2. Norms are root mean squares, so that c means the same at every
size. Everything is in units of F = A / w, as everywhere in this library.
"""

import math

import torch
from torch import Tensor, nn

from tvmatch.flow_map import FlowMap
from tvmatch.guidance import GuidanceScheme
from tvmatch.interpolant import per_sample
from tvmatch.networks.base import Tangents
from tvmatch.objectives.base import mean_square, root_mean_square
from tvmatch.objectives.few_step import Draws, FewStepObjective
from tvmatch.times import LogitNormal, ToData


class TimeWeight(nn.Module):
    """phi(t) [B], a cosine series on [0, 1] with learned coefficients, zero at first. At its best e^phi is the inverse
    of the mean error at time t, so that every time weighs alike."""

    def __init__(self, terms: int = 8, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(terms, device=device, dtype=dtype))

    def forward(self, t: Tensor) -> Tensor:
        order = torch.arange(len(self.coefficients), device=t.device, dtype=t.dtype)
        return torch.cos(math.pi * t[:, None] * order) @ self.coefficients


class ConsistencyTraining(FewStepObjective):
    """Learns jumps to s = 0 only; samples of several calls put fresh noise in (`tvmatch.sampling.consistency`).

    `warmup` is the share of the training in which r rises, `offset` the c above, `data_deviation` the d. Guidance asks
    for u(x, t, t), which jumps to s = 0 do not teach: where it is used, a quarter of the samples (`equal`) are flow
    matching.
    """

    has_tangents = True

    def __init__(
        self,
        flow: FlowMap,
        guidance: GuidanceScheme | None = None,
        label_dropout: float = 0.1,
        equal: float | None = None,
        warmup: float = 0.1,
        offset: float = 0.1,
        data_deviation: float = 1.0,
    ) -> None:
        guided = guidance is not None and not guidance.always_one
        equal = (0.25 if guided else 0.0) if equal is None else equal
        if guided and equal == 0:
            raise ValueError("consistency training with guidance needs samples with s = t (equal above 0).")
        if not 0 < data_deviation < math.inf:
            raise ValueError(f"the data's deviation must be positive and finite, got {data_deviation}.")
        times = LogitNormal(-1.0 + math.log(2 * data_deviation), 1.4)
        super().__init__(flow, ToData(times), guidance, label_dropout, equal)
        if not 0 < warmup <= 1 or not offset > 0:
            raise ValueError(f"warmup must lie in (0, 1] and offset above 0, got {warmup} and {offset}.")
        self.warmup, self.offset = warmup, offset
        first = next(flow.parameters())
        self.time_weight = TimeWeight(device=first.device, dtype=first.dtype)

    def losses(self, draws: Draws) -> Tensor:
        x_t, v, t, s, _, label, w = draws
        scale = per_sample(w, v)
        with torch.no_grad():
            direction = Tangents(x=v, t=torch.ones_like(t))
            average, slope = self.flow.average_velocity_derivative(x_t, t, s, label, w, direction)
            rise = (self.progress / self.warmup).clamp(max=1.0).to(t.dtype)
            g = (v - average - rise * per_sample(t - s, v) * slope) / scale
            norm = root_mean_square(g) + self.offset
            g = g / per_sample(torch.where(s < t, norm, torch.ones_like(norm)), g)
        error = (self.flow.average_velocity(x_t, t, s, label, w) - average) / scale - g
        phi = torch.where(s < t, self.time_weight(t), torch.zeros_like(t))
        return phi.exp() * mean_square(error) - phi
