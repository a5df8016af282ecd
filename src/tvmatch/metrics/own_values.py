"""The Frechet distance in the values of the data themselves: pixels (0..1), or numbers of latents.

A covariance of D values takes memory as D^2 and time as D^3, too much for larger pictures. The distance needs none:
with data X [N, D] and samples Y [M, D], each less its mean, tr (C1^1/2 C2 C1^1/2)^1/2 is the sum of the singular values
of X Y^T, over sqrt((N - 1) (M - 1)). What is quicker is taken; both are exact.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tvmatch.data.source import Source
from tvmatch.metrics.frechet import FeatureAccumulator, FeatureStatistics, covariance_root, frechet_distance

LARGEST_DIMENSION = 3 * 64 * 64  # beyond it a covariance of pixel values is too large to be of use
AT_ONCE = 2000  # samples of the data
DECOMPOSITION = 25  # a root and singular values take as long as so many D^3 operations of products (CPU, by trial)


class OwnValues:
    """The distance of sets of samples from a data set."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.dimension = int(np.prod(source.shape))

    def distance(self, samples: np.ndarray) -> float:
        """Of samples [M, ...] as the source has them: pictures uint8, latents float. `ValueError` where neither way is
        quick enough, or they are not finite."""
        values = _values(samples)
        if self._covariance_is_quicker(len(values)):
            if self.dimension > LARGEST_DIMENSION:
                what = "pictures" if self.source.latent_space is None else "latents"
                raise ValueError(
                    f"{what} of {self.source.shape} are too large for a Frechet distance of their values with "
                    f"{len(values)} samples and {len(self.source)} {what}: take fewer --samples, or give --features "
                    "NETWORK."
                )
            return frechet_distance(FeatureStatistics.from_features(values), self._statistics, second_root=self._root)
        return self._without_covariance(values)

    def _covariance_is_quicker(self, samples: int) -> bool:
        products = 2 * len(self.source) * samples * (self.dimension + samples) + DECOMPOSITION * samples**3
        return samples > self.dimension or products > DECOMPOSITION * self.dimension**3

    @cached_property
    def _statistics(self) -> FeatureStatistics:
        accumulator = FeatureAccumulator()
        for values in self._batches():
            accumulator.add(values)
        return accumulator.statistics()

    @cached_property
    def _root(self) -> Tensor:
        return covariance_root(self._statistics)

    @cached_property
    def _moments(self) -> tuple[Tensor, float]:
        """Mean [D], and the sum of all variances."""
        count, mean, squares = 0, torch.zeros(self.dimension, dtype=torch.float64), 0.0
        for values in self._batches():
            shift = values.mean(0) - mean
            squares += float((values - values.mean(0)).square().sum())
            squares += float(shift.square().sum()) * count * len(values) / (count + len(values))
            count += len(values)
            mean = mean + shift * (len(values) / count)
        return mean, squares / (count - 1)

    def _without_covariance(self, values: Tensor) -> float:
        mean, variance = self._moments
        ours = values.mean(0)
        centred = values - ours
        triangle = torch.empty(0, len(values), dtype=torch.float64)  # R of X Y^T = Q R: it has the same singular values
        for batch in self._batches():
            triangle = torch.linalg.qr(torch.cat([triangle, (batch - mean) @ centred.T]), mode="r").R
        overlap = float(torch.linalg.svdvals(triangle).sum()) / ((len(self.source) - 1) * (len(values) - 1)) ** 0.5
        own_variance = float(centred.square().sum()) / (len(values) - 1)
        return max(float((ours - mean).square().sum()) + own_variance + variance - 2 * overlap, 0.0)

    def _batches(self) -> Iterator[Tensor]:
        for first in range(0, len(self.source), AT_ONCE):
            yield _values(self.source.batch(np.arange(first, min(first + AT_ONCE, len(self.source)))))


def _values(samples: np.ndarray) -> Tensor:
    """[N, D] float64: uint8 pictures scaled to 0..1, latents as they are. `ValueError` if they are not finite."""
    values = torch.from_numpy(samples.reshape(len(samples), -1)).double()
    if not bool(values.isfinite().all()):
        raise ValueError(f"{int((~values.isfinite()).any(1).sum())} of {len(values)} samples hold NaN or infinity.")
    return values / 255 if samples.dtype == np.uint8 else values
