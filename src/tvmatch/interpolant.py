"""The straight path from data to noise: t = 0 is data, t = 1 is noise (DESIGN section 1)."""

from torch import Tensor


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ..., 1], to multiply `like` [B, ...]."""
    return value.reshape(-1, *[1] * (like.dim() - 1))


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t e, for data x0 and noise e [B, ...] and times t [B] in [0, 1]."""
    t = per_sample(t, x0)
    return (1 - t) * x0 + t * noise


def conditional_velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """v = dx_t/dt = e - x_0."""
    return noise - x0
