"""A family of flow maps of Gaussian data that holds the exact one, for tests of what an objective leads to."""

import torch
from torch import Tensor, nn

from tvmatch.networks.base import Network, Tangents

MEAN, DEVIATION = 0.4, 0.6
BEGINNING = (0.3, -0.4, 0.3, 0.3, -0.2)  # parameters far from the exact map


class GaussianFamily(Network):
    """The exact network of `tvmatch.theory.GaussianFlow`, in each of `dimensions` alike, plus
    p . (1, t - s, x, x (t - s), cos 2x). Its derivative is written out: by forward mode a call takes ten times as long.
    """

    carries_tangents = True

    def __init__(self, dimensions: int) -> None:
        super().__init__(0, (dimensions,))
        self.p = nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor, label: Tensor, w: Tensor, tangents: Tangents | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        square, p = DEVIATION**2, self.p
        t, s, gap = t[:, None], s[:, None], (t - s)[:, None]
        root_t, root_s = ((square * (1 - time).square() + time.square()).sqrt() for time in (t, s))
        above, below = (t + s) * (1 + square) - 2 * square, root_t * (root_t + root_s)
        rate, centred = above / below, x - (1 - t) * MEAN
        value = rate * centred - MEAN + p[0] + p[1] * gap + (p[2] + p[3] * gap) * x + p[4] * (2 * x).cos()
        if tangents is None:
            return value / w[:, None]
        zero = torch.zeros_like(t)
        dt, ds = (zero if each is None else each[:, None] for each in (tangents.t, tangents.s))
        dx = torch.zeros_like(x) if tangents.x is None else tangents.x
        d_root_t, d_root_s = (
            (time - square * (1 - time)) / root * direction
            for time, root, direction in ((t, root_t, dt), (s, root_s, ds))
        )
        d_below = d_root_t * (2 * root_t + root_s) + root_t * d_root_s
        d_rate = ((1 + square) * (dt + ds) - rate * d_below) / below
        slope = d_rate * centred + rate * (dx + dt * MEAN) + p[1] * (dt - ds)
        slope = slope + (p[2] + p[3] * gap) * dx + p[3] * x * (dt - ds) - 2 * p[4] * (2 * x).sin() * dx
        return value / w[:, None], slope / w[:, None]


def gaussian_data(count: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Samples [count, dimensions] of the data, float64; each dimension goes evenly through the quantiles."""
    place = torch.stack([torch.randperm(count, generator=generator) for _ in range(dimensions)], 1)
    inside = torch.rand(count, dimensions, generator=generator, dtype=torch.float64)
    return MEAN + DEVIATION * torch.special.ndtri((place + inside) / count)
