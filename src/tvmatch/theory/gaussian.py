"""Gaussian data: velocity, flow map and irreducible variance in closed form."""

import torch
from torch import Tensor

from tvmatch.interpolant import per_sample


class Gaussian:
    """Data N(m, S). On the straight path x_t = (1-t) x_0 + t e the marginal is N((1-t) m, C_t) with

        C_t = (1-t)^2 S + t^2 I,

    and, because every C_t has the eigenvectors of S, the flow of the velocity u = E[e - x_0 | x_t] is linear:

        u(x, t)      = -m + (t I - (1-t) S) C_t^-1 (x - (1-t) m)
        x_t -> x_s   = (1-s) m + C_s^(1/2) C_t^(-1/2) (x_t - (1-t) m)

    mean [D], covariance [D, D] symmetric and not negative; a singular one is allowed, and then t = 0 has no velocity
    outside the support. Everything is computed in the dtype of `mean` (float64 is meant).
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        if mean.dim() != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"mean must be [D] and covariance [D, D], got {list(mean.shape)} and {list(covariance.shape)}."
            )
        if not mean.is_floating_point() or mean.dtype != covariance.dtype:
            raise ValueError(f"mean and covariance are of one real type, got {mean.dtype} and {covariance.dtype}.")
        if not (bool(mean.isfinite().all()) and bool(covariance.isfinite().all())):
            raise ValueError("mean and covariance must be finite, but they hold NaN or infinity.")
        if not torch.allclose(covariance, covariance.T):
            raise ValueError("the covariance must be symmetric.")
        self.mean, self.covariance = mean, covariance
        self.variances, self.axes = torch.linalg.eigh(covariance)  # S = axes diag(variances) axes^T
        if float(self.variances.min()) < -1e-10 * float(self.variances.abs().max()):
            raise ValueError(f"the covariance has a negative eigenvalue, {float(self.variances.min()):.3g}.")
        self.variances = self.variances.clamp(min=0.0)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`count` points [count, D]."""
        normal = torch.randn(count, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return self.mean + (normal * self.variances.sqrt()) @ self.axes.T

    def spectrum(self, t: Tensor) -> Tensor:
        """Eigenvalues of C_t, [B, D] for times [B]."""
        t = t[:, None]
        return (1 - t).square() * self.variances + t.square()

    def marginal(self, t: float) -> "Gaussian":
        """The distribution of x_t."""
        eye = torch.eye(len(self.mean), dtype=self.mean.dtype)
        return Gaussian((1 - t) * self.mean, (1 - t) ** 2 * self.covariance + t**2 * eye)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """u(x, t) for points [B, D] and times [B]."""
        time = t[:, None]
        rate = (time - (1 - time) * self.variances) / self.spectrum(t)
        return -self.mean + self._along_axes(x - per_sample(1 - t, x) * self.mean, rate)

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_t -> x_s along the velocity, for points [B, D] and times [B], in either direction."""
        ratio = (self.spectrum(s) / self.spectrum(t)).sqrt()
        return per_sample(1 - s, x) * self.mean + self._along_axes(x - per_sample(1 - t, x) * self.mean, ratio)

    def irreducible(self, t: Tensor) -> Tensor:
        """E|v - u(x_t, t)|^2, the sum over the dimensions, [B]: what flow matching cannot go below.

        Along an axis of variance l it is 1 + l - (t - (1-t) l)^2 / c_t.
        """
        time = t[:, None]
        covariance = time - (1 - time) * self.variances  # of v and x_t
        return (1 + self.variances - covariance.square() / self.spectrum(t)).sum(1)

    def _along_axes(self, x: Tensor, factor: Tensor) -> Tensor:
        return ((x @ self.axes) * factor) @ self.axes.T
