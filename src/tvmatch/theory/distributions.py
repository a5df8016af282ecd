"""Points in the plane to learn: eight Gaussians, two moons, a checkerboard. All have about unit deviation."""

import math
from typing import Protocol

import torch
from torch import Tensor

from tvmatch.theory.mixture import GaussianMixture


class Samples(Protocol):
    """Anything that gives points [count, D]."""

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor: ...


class Distribution(Samples, Protocol):
    """A distribution whose velocity and flow are known; `Gaussian` and `GaussianMixture` are of this kind."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor: ...


def eight_gaussians(radius: float = 1.4, deviation: float = 0.1) -> GaussianMixture:
    """Eight equal Gaussians on a circle."""
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    return GaussianMixture(torch.ones(8).double(), means, torch.full((8,), deviation, dtype=torch.float64))


class TwoMoons:
    """Two interleaved half circles with Gaussian noise, centred and scaled."""

    def __init__(self, noise: float = 0.05) -> None:
        if not 0 <= noise < math.inf:
            raise ValueError(f"the noise must be at least 0 and finite, got {noise}.")
        self.noise = noise

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        angle = math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        lower = torch.rand(count, generator=generator) < 0.5
        x = torch.where(lower, 1 - angle.cos(), angle.cos())
        y = torch.where(lower, 0.5 - angle.sin(), angle.sin())
        points = torch.stack([x - 0.5, y - 0.25], dim=1)
        return 1.4 * (points + self.noise * torch.randn(count, 2, generator=generator, dtype=torch.float64))


class Checkerboard:
    """Uniform on the eight dark squares of a 4 x 4 board of side 4 / 1.15."""

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        column = torch.randint(4, (count,), generator=generator)
        row = 2 * torch.randint(2, (count,), generator=generator) + column % 2
        corner = torch.stack([column, row], dim=1).double()
        return (corner + torch.rand(count, 2, generator=generator, dtype=torch.float64) - 2) / 1.15
