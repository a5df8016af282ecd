"""The Frechet distance of two sets of features, taken as Gaussians (the "FID" of whatever features are given)."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """The Gaussian of a set of features, in float64.

    mean        [D]
    covariance  [D, D], symmetric, with the divisor count - 1
    count       number of features it was made of, at least 2

    Raises `ValueError` for other shapes, NaN or infinity, and a covariance that is not symmetric.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    def __post_init__(self) -> None:
        mean, covariance = np.asarray(self.mean, np.float64), np.asarray(self.covariance, np.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"statistics have a mean [D] and a covariance [D, D], got {list(mean.shape)} and "
                f"{list(covariance.shape)}."
            )
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}.")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("feature statistics must be finite, but they hold NaN or infinity.")
        asymmetry = np.abs(covariance - covariance.T).max(initial=0)
        if asymmetry > 1e-6 * np.abs(covariance).max(initial=0):
            raise ValueError(f"a covariance must be symmetric, but two of its halves differ by {asymmetry:.3g}.")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @classmethod
    def from_features(cls, features: np.ndarray | Tensor) -> Self:
        """Statistics of features [N, D], N at least 2."""
        accumulator = FeatureAccumulator()
        accumulator.add(features)
        result = accumulator.statistics()
        return cls(result.mean, result.covariance, result.count)


class FeatureAccumulator:
    """Statistics of features that come in batches, without keeping them; on the device of the first batch, in float64.

    Each batch is centred before it is squared and merged as in Chan, Golub and LeVeque (1979): sums of raw squares
    lose every digit when the mean is large against the deviation.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.scatter: Tensor | None = None  # sum of (x - mean)(x - mean)^T

    def add(self, features: np.ndarray | Tensor) -> None:
        """Take in features [N, D], real and finite; every batch has the same D."""
        values = _as_float64(features)
        if self.mean is None:
            self.mean = values.new_zeros(values.shape[1])
            self.scatter = values.new_zeros((values.shape[1],) * 2)
        values = values.to(self.mean.device)
        if values.shape[1] != len(self.mean):
            raise ValueError(f"features had {len(self.mean)} dimensions so far, now {values.shape[1]}.")
        if not len(values):
            return
        mean = values.mean(0)
        centred = values - mean
        self.merge(len(values), mean, centred.T @ centred)

    def merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Take in what another accumulator has seen: its count, mean [D] and scatter [D, D]."""
        if self.mean is None:
            self.count, self.mean, self.scatter = count, mean.clone(), scatter.clone()
            return
        if not count:
            return
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def statistics(self) -> FeatureStatistics:
        """What was taken in so far; `ValueError` for fewer than 2 features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}.")
        covariance = self.scatter / (self.count - 1)
        return FeatureStatistics(self.mean.cpu().numpy(), covariance.cpu().numpy(), self.count)


def rank_remark(kind: str, count: int, dimension: int) -> str | None:
    """What must be said of `count` features in `dimension` dimensions, if they are too few for a full covariance."""
    if count > dimension:
        return None
    return (
        f"{count} {kind} give a covariance of rank {count - 1} at most, in {dimension} dimensions: this Frechet "
        f"distance compares with others of as many only; for one that stands alone take far more than {dimension}."
    )


def frechet_distance(
    first: FeatureStatistics,
    second: FeatureStatistics,
    device: torch.device | str = "cpu",
    second_root: Tensor | None = None,
) -> float:
    """|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2: the squared 2-Wasserstein distance of two Gaussians.

    With C = A A^T the last trace is the sum of the singular values of A1^T A2. That takes no square root of a rounded
    zero, so singular covariances (fewer features than dimensions, dead pixels) are as exact as others. The roots A,
    by symmetric eigen-decomposition in float64, are taken on `device`; `second_root` is the second's, if it was taken
    before (`covariance_root`).
    Raises `ValueError` if the dimensions differ or a covariance is not positive semi-definite.
    """
    if len(first.mean) != len(second.mean):
        raise ValueError(f"the features have different dimensions: {len(first.mean)} and {len(second.mean)}.")
    second_root = covariance_root(second, device) if second_root is None else second_root
    cross = covariance_root(first, device).T @ second_root
    # on the CPU: LAPACK needs a second or two for 2048 dimensions, the Jacobi method of GPUs longer
    overlap = np.linalg.svd(cross.cpu().numpy(), compute_uv=False).sum()
    difference = first.mean - second.mean
    distance = difference @ difference + np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap
    return max(float(distance), 0.0)  # rounding alone can take it below zero


def covariance_root(statistics: FeatureStatistics, device: torch.device | str = "cpu") -> Tensor:
    """A [D, rank] with A A^T = covariance, without the directions whose variance is rounding noise."""
    covariance = statistics.covariance
    variance, directions = torch.linalg.eigh(torch.from_numpy((covariance + covariance.T) / 2).to(device))
    largest = float(variance.abs().max()) if len(variance) else 0.0
    if bool((variance < -1e-6 * largest).any()):
        raise ValueError(f"a covariance cannot have a negative variance, got the eigenvalue {variance.min():.3g}.")
    kept = variance > len(variance) * torch.finfo(torch.float64).eps * largest
    return directions[:, kept] * variance[kept].sqrt()


def _as_float64(features: np.ndarray | Tensor) -> Tensor:
    """Features [N, D] in float64, or `ValueError`."""
    if isinstance(features, Tensor) and not features.is_complex():
        values = features.detach()
    else:
        array = np.asarray(features)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"features must be real numbers, got {array.dtype}.")
        values = torch.from_numpy(array.astype(np.float64))
    if values.dim() != 2 or values.shape[1] < 1:
        raise ValueError(f"features must have shape [N, D], got {list(values.shape)}.")
    values = values.double()
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).any(1).sum())
        raise ValueError(f"{bad} of {len(values)} features hold NaN or infinity.")
    return values
