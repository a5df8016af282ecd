"""Points in the plane as data of the training loop: eight Gaussians in two classes, whose guided flow is known."""

import hashlib
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from tvmatch.data.source import checked_indices
from tvmatch.theory import GuidedMixture, eight_gaussians

CLASSES = 2  # every second Gaussian is of the other class
SIZE = 50_000  # points in the data set
TOLERANCE = 1e-5  # of the exact flow, a step


class PointSource:
    """A `Source` of points as pictures of size 1 with two channels, float32 [B, 2, 1, 1]."""

    shape = (2, 1, 1)
    class_names = ("even", "odd")
    latent_space = None
    skipped: tuple[tuple[str, str], ...] = ()
    num_classes = CLASSES

    def __init__(self, size: int = SIZE, seed: int = 0) -> None:
        points, labels = two_colours().sample(size, torch.Generator().manual_seed(seed))
        self.points, self.labels = points.float()[:, :, None, None].numpy(), labels.numpy()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the points and labels."""
        return hashlib.sha256(self.points.tobytes() + self.labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.points)

    def batch(
        self, indices: np.ndarray, flips: np.ndarray | None = None, seeds: np.ndarray | None = None
    ) -> np.ndarray:
        """The points at `indices` [B], float32 [B, 2, 1, 1]; a point has no mirror image."""
        if flips is not None and flips.any():
            raise ValueError("points cannot be mirrored; leave --flip out.")
        return self.points[checked_indices(indices, len(self))]

    def close(self) -> None:
        """Nothing to end."""


@cache
def two_colours() -> GuidedMixture:
    """Eight Gaussians on a circle, of two classes in turn."""
    return GuidedMixture(eight_gaussians(), torch.arange(8) % CLASSES)


@cache
def exact_samples(count: int, w: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noise [count, 2] float32, classes [count], and where the exact guided flow takes them, float64 [count, 2]."""
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    label = torch.arange(count) % CLASSES
    return noise, label, two_colours().flow(noise.double(), label, w, tolerance=TOLERANCE)
