"""How the times of a training step are drawn: jumps (t, s) with t >= s, and single times r (DESIGN section 1).

Each scheme is a frozen dataclass that is called with a batch size and a generator and returns times [B] in [0, 1].
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class TimeScheme(Protocol):
    """Draws single times."""

    def __call__(self, batch: int, generator: torch.Generator) -> Tensor: ...


class JumpScheme(Protocol):
    """Draws the two ends (t, s) of jumps, t >= s."""

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...


def _normal(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randn(batch, generator=generator, device=generator.device)


def _uniform(batch: int, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, generator=generator, device=generator.device)


@dataclass(frozen=True)
class Uniform:
    """Times uniform in [0, 1]."""

    def __call__(self, batch: int, generator: torch.Generator) -> Tensor:
        return _uniform(batch, generator)


@dataclass(frozen=True)
class LogitNormal:
    """Times sigmoid(N(mean, deviation^2)); a negative mean prefers times near the data."""

    mean: float = -0.4
    deviation: float = 1.0

    def __call__(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.sigmoid(self.mean + self.deviation * _normal(batch, generator))


@dataclass(frozen=True)
class Independent:
    """Two independent draws of one scheme, put in order: t the later, s the earlier."""

    scheme: TimeScheme

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        first, second = self.scheme(batch, generator), self.scheme(batch, generator)
        return torch.maximum(first, second), torch.minimum(first, second)


@dataclass(frozen=True)
class ToData:
    """Jumps to the data, s = 0, from times of a scheme."""

    scheme: TimeScheme

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t = self.scheme(batch, generator)
        return t, torch.zeros_like(t)


@dataclass(frozen=True)
class TruncatedGap:
    """The paper's scheme: a gap g = sigmoid(N(gap_mean, gap_deviation^2)), then an end time s that is logit-normal
    (s_mean, s_deviation) truncated to [0, 1 - g], and t = s + g.

    The truncation is exact: s = sigmoid(m + d Phi^-1(u Phi((logit(1 - g) - m) / d))) with u uniform in (0, 1).
    """

    gap_mean: float = -0.8
    gap_deviation: float = 1.0
    s_mean: float = -0.4
    s_deviation: float = 1.0

    def __call__(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # float64: near the ends of the normal distribution float32 loses the quantile altogether
        gap_logit = self.gap_mean + self.gap_deviation * _normal(batch, generator).double()
        gap = torch.sigmoid(gap_logit)
        mass = torch.special.log_ndtr((-gap_logit - self.s_mean) / self.s_deviation).exp()  # logit(1 - g) = -logit(g)
        quantile = torch.special.ndtri(_uniform(batch, generator).double().clamp(1e-12, 1.0) * mass)
        s = torch.sigmoid(self.s_mean + self.s_deviation * quantile)
        s = torch.minimum(s, 1 - gap)
        return (s + gap).clamp(max=1.0).float(), s.float()


def uniform_grid(steps: int) -> list[float]:
    """`steps` + 1 times from 1 down to 0 at equal distances: the sampling grid of the paper."""
    if steps < 1:
        raise ValueError(f"sampling needs at least 1 step (network call), got {steps}.")
    return [1 - k / steps for k in range(steps)] + [0.0]


def _finite(time: Any) -> bool:
    try:
        return math.isfinite(time)
    except TypeError:  # no number
        return False


def check_grid(times: list[float]) -> list[float]:
    """Return `times` if they run strictly down from 1 to 0; raise `ValueError` if not."""
    if len(times) < 2 or not all(map(_finite, times)):
        raise ValueError(f"a time grid needs at least two finite times, from 1 to 0; got {times}.")
    if times[0] != 1 or times[-1] != 0 or any(a <= b for a, b in itertools.pairwise(times)):
        raise ValueError(f"a time grid runs strictly down from 1 (noise) to 0 (data); got {times}.")
    return times
