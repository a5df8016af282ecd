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
    """Statistics of features that come in batches, without keeping them.

    Each batch is centred before it is squared and merged as in Chan, Golub and LeVeque (1979): sums of raw squares
    lose every digit when the mean is large against the deviation.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: np.ndarray | None = None
        self._scatter: np.ndarray | None = None  # sum of (x - mean)(x - mean)^T

    def add(self, features: np.ndarray | Tensor) -> None:
        """Take in features [N, D], real and finite; every batch has the same D."""
        values = _as_float64(features)
        if self._mean is None:
            self._mean, self._scatter = np.zeros(values.shape[1]), np.zeros((values.shape[1],) * 2)
        if values.shape[1] != len(self._mean):
            raise ValueError(f"features had {len(self._mean)} dimensions so far, now {values.shape[1]}.")
        if not len(values):
            return
        total = self.count + len(values)
        mean = values.mean(0)
        centred = values - mean
        shift = mean - self._mean
        self._scatter = (
            self._scatter + centred.T @ centred + np.outer(shift, shift) * (self.count * len(values) / total)
        )
        self._mean = self._mean + shift * (len(values) / total)
        self.count = total

    def statistics(self) -> FeatureStatistics:
        """What was taken in so far; `ValueError` for fewer than 2 features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}.")
        return FeatureStatistics(self._mean, self._scatter / (self.count - 1), self.count)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2: the squared 2-Wasserstein distance of two Gaussians.

    With C = A A^T the last trace is the sum of the singular values of A1^T A2. That takes no square root of a rounded
    zero, so singular covariances (fewer features than dimensions, dead pixels) are as exact as others.
    Raises `ValueError` if the dimensions differ or a covariance is not positive semi-definite.
    """
    if len(first.mean) != len(second.mean):
        raise ValueError(f"the features have different dimensions: {len(first.mean)} and {len(second.mean)}.")
    cross = _root(first.covariance).T @ _root(second.covariance)
    overlap = np.linalg.svd(cross, compute_uv=False).sum()
    difference = first.mean - second.mean
    distance = difference @ difference + np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap
    return max(float(distance), 0.0)  # rounding alone can take it below zero


def _root(covariance: np.ndarray) -> np.ndarray:
    """A [D, rank] with A A^T = covariance, without the directions whose variance is rounding noise."""
    variance, directions = np.linalg.eigh((covariance + covariance.T) / 2)
    largest = np.abs(variance).max(initial=0)
    if (variance < -1e-6 * largest).any():
        raise ValueError(f"a covariance cannot have a negative variance, got the eigenvalue {variance.min():.3g}.")
    kept = variance > len(variance) * np.finfo(np.float64).eps * largest
    return directions[:, kept] * np.sqrt(variance[kept])


def _as_float64(features: np.ndarray | Tensor) -> np.ndarray:
    """Features [N, D] in float64, or `ValueError`."""
    if isinstance(features, Tensor) and not features.is_complex():
        features = features.detach().to("cpu", torch.float64).numpy()
    values = np.asarray(features)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"features must be real numbers, got {values.dtype}.")
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"features must have shape [N, D], got {list(values.shape)}.")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(1).sum())
        raise ValueError(f"{bad} of {len(values)} features hold NaN or infinity.")
    return values
