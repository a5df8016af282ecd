"""Mixtures of round Gaussians: velocity and score in closed form, flow map to any accuracy."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor


def flow_along(
    velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: float, s: float, tolerance: float = 1e-8
) -> Tensor:
    """x_t -> x_s along `velocity(x, t)` for points [B, D], in either direction, by DOP853 with its relative and
    absolute `tolerance` per step; in float64, whatever the dtype of x.

    `ValueError` for times outside [0, 1], points that are not finite, and a tolerance that is not positive: the solver
    would go on for ever.
    """
    if not (0 <= t <= 1 and 0 <= s <= 1):
        raise ValueError(f"times must lie in [0, 1], got {t} and {s}.")
    if not 0 < tolerance < float("inf"):
        raise ValueError(f"the tolerance must be positive and finite, got {tolerance}.")
    if not bool(x.isfinite().all()):
        raise ValueError("points must be finite, but they hold NaN or infinity.")
    if t == s or not len(x):
        return x.clone()
    shape = x.shape

    def slope(time: float, flat: np.ndarray) -> np.ndarray:
        points = torch.from_numpy(flat).reshape(shape)
        return velocity(points, torch.full((shape[0],), time, dtype=torch.float64)).flatten().numpy()

    start = x.detach().double().flatten().numpy()
    solution = solve_ivp(slope, (t, s), start, method="DOP853", rtol=tolerance, atol=tolerance)
    if not solution.success:
        raise RuntimeError(f"the flow from t = {t} to s = {s} was not solved: {solution.message}")
    return torch.from_numpy(solution.y[:, -1].copy()).reshape(shape).to(x.dtype)


class GaussianMixture:
    """Data sum_k p_k N(m_k, a_k^2 I). Given x_t, component k has the posterior weight

        q_k(x) = p_k N(x; (1-t) m_k, c_k I) / sum_j ...        c_k = (1-t)^2 a_k^2 + t^2,

    and velocity and score are averages of those of the components:

        u(x, t) = sum_k q_k [ -m_k + (t - (1-t) a_k^2) / c_k (x - (1-t) m_k) ]
        score   = -sum_k q_k (x - (1-t) m_k) / c_k

    weights [K] (positive; normalised here), means [K, D], deviations [K] (positive).
    """

    def __init__(self, weights: Tensor, means: Tensor, deviations: Tensor) -> None:
        count = weights.numel()
        if (
            weights.dim() != 1
            or not count
            or means.dim() != 2
            or len(means) != count
            or deviations.shape != (count,)
            or weights.shape != (count,)
        ):
            raise ValueError(
                f"weights [K], means [K, D] and deviations [K] are needed, got {list(weights.shape)}, "
                f"{list(means.shape)} and {list(deviations.shape)}."
            )
        if not all(bool(values.isfinite().all()) for values in (weights, means, deviations)):
            raise ValueError("weights, means and deviations must be finite, but they hold NaN or infinity.")
        if not bool((weights > 0).all()) or not bool((deviations > 0).all()):
            raise ValueError("weights and deviations of a mixture must be positive.")
        self.weights = weights / weights.sum()
        self.means, self.deviations = means, deviations

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`count` points [count, D]."""
        index = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        normal = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[index] + self.deviations[index, None] * normal

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) for points [B, D] and times [B]."""
        return self._joint(x, t)[0].logsumexp(1)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p_t at x, [B, D]."""
        joint, offset, variance = self._joint(x, t)
        return -(joint.softmax(1)[..., None] * offset / variance[..., None]).sum(1)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """u(x, t) = E[e - x_0 | x_t = x], [B, D]."""
        joint, offset, variance = self._joint(x, t)
        time = t[:, None]
        rate = (time - (1 - time) * self.deviations.square()) / variance
        return (joint.softmax(1)[..., None] * (rate[..., None] * offset - self.means)).sum(1)

    def flow(self, x: Tensor, t: float, s: float, tolerance: float = 1e-8) -> Tensor:
        """x_t -> x_s along the velocity for points [B, D], in either direction, by DOP853 with its relative and
        absolute `tolerance` per step."""
        return flow_along(self.velocity, x, t, s, tolerance)

    def _joint(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log(p_k N(x; ...)) [B, K], x - (1-t) m_k [B, K, D] and c_k [B, K]."""
        time = t[:, None]
        offset = x[:, None] - (1 - time)[..., None] * self.means
        variance = (1 - time).square() * self.deviations.square() + time.square()
        dimension = self.means.shape[1]
        log_normal = -0.5 * (offset.square().sum(2) / variance + dimension * torch.log(2 * torch.pi * variance))
        return self.weights.log() + log_normal, offset, variance
