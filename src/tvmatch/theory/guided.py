"""The guided flow of a mixture with classes: what a network trained with guidance must come to, exactly."""

import math

import torch
from torch import Tensor

from tvmatch.theory.mixture import GaussianMixture, flow_along


class GuidedMixture:
    """A Gaussian mixture whose components belong to classes, and the flow of the guided velocity

        u_w(x, t, c) = w u(x, t | c) + (1 - w) u(x, t)

    where u(x, t | c) is the velocity of the components of class c alone, and u that of all. At w = 1 it is the flow of
    the class; at no other w is it the flow of a mixture, but it is known to any accuracy all the same.

    classes int64 [K] gives the class of each component, 0 .. C - 1, each used at least once.
    """

    def __init__(self, whole: GaussianMixture, classes: Tensor) -> None:
        if classes.shape != whole.weights.shape:
            raise ValueError(f"each of {len(whole.weights)} components needs a class, got {list(classes.shape)}.")
        self.whole, self.classes = whole, classes
        self.num_classes = int(classes.max()) + 1
        if classes.unique().tolist() != list(range(self.num_classes)):
            raise ValueError(f"classes must be 0 .. {self.num_classes - 1}, each used; got {classes.tolist()}.")
        self.parts = [self._part(classes == c) for c in range(self.num_classes)]

    def _part(self, mine: Tensor) -> GaussianMixture:
        return GaussianMixture(self.whole.weights[mine], self.whole.means[mine], self.whole.deviations[mine])

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`count` points [count, D] and their classes, int64 [count]."""
        index = torch.multinomial(self.whole.weights, count, replacement=True, generator=generator)
        normal = torch.randn(count, self.whole.means.shape[1], generator=generator, dtype=self.whole.means.dtype)
        return self.whole.means[index] + self.whole.deviations[index, None] * normal, self.classes[index]

    def velocity(self, x: Tensor, t: Tensor, label: int, w: float) -> Tensor:
        """u_w(x, t, c) for points [B, D], times [B] and one class; class -1 is none, and then w plays no part."""
        whole = self.whole.velocity(x, t)
        return whole if label < 0 else w * self.parts[label].velocity(x, t) + (1 - w) * whole

    def flow(
        self, x: Tensor, label: Tensor, w: float, t: float = 1.0, s: float = 0.0, tolerance: float = 1e-7
    ) -> Tensor:
        """x_t -> x_s along the guided velocity, for points [B, D] and classes [B] (-1: none)."""
        if label.shape != (len(x),) or bool((label < -1).any()) or bool((label >= self.num_classes).any()):
            raise ValueError(f"labels [B] are -1 .. {self.num_classes - 1}, one a point, got {label.tolist()[:5]} ...")
        if not math.isfinite(w):
            raise ValueError(f"the guidance scale w must be finite, got {w}.")
        end = torch.empty_like(x)
        for c in label.unique().tolist():
            mine = label == c
            end[mine] = flow_along(lambda x, t, c=c: self.velocity(x, t, c, w), x[mine], t, s, tolerance)
        return end
