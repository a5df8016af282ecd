"""Precision, recall, density and coverage: how two sets of features overlap, told by nearest neighbours.

Each set stands for the union of balls around its features, with the distance to the k-th neighbour as radius.
Improved precision and recall: arXiv 1904.06991 (k = 3). Density and coverage: arXiv 2002.09797 (k = 5). Authenticity:
arXiv 2102.08921. All depend on how many features there are: compare figures of equal counts only.
"""

from typing import NamedTuple

import torch
from torch import Tensor

K_RECALL, K_DENSITY = 3, 5
ROWS, COLUMNS = 1000, 10_000  # of a distance matrix at once; fewer rows where there are more columns
ROUNDING = 1e-12  # of the squared norms


class ManifoldFigures(NamedTuple):
    """precision     share of samples inside the real balls
    recall        share of real features inside the samples' balls
    density       how many real balls hold a sample, over the 5 expected of real data; may exceed 1
    coverage      share of real balls that hold a sample
    """

    precision: float
    recall: float
    density: float
    coverage: float


@torch.no_grad()
def manifold_figures(real: Tensor, generated: Tensor) -> ManifoldFigures:
    """Compare features [N, D] and [M, D], each with more than 5 rows, in float64 on their device. Features that differ
    by no more than rounding are one point: a ball of radius zero holds its own copies.

    Raises `ValueError` for fewer, for NaN or infinity, and for different dimensions.
    """
    real, generated = _checked(real, generated)
    real_radii = _radii(real, (K_RECALL, K_DENSITY))
    own_radii = _radii(generated, (K_RECALL,))[K_RECALL]
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    nearest_sample = torch.full((len(real),), torch.inf, dtype=torch.float64, device=real.device)
    precise = counted = 0
    for start in range(0, len(generated), ROWS):
        distances = squared_distances(generated[start : start + ROWS], real)
        precise += int((distances <= real_radii[K_RECALL]).any(1).sum())
        counted += int((distances <= real_radii[K_DENSITY]).sum())
        recalled |= (distances <= own_radii[start : start + ROWS, None]).any(0)
        nearest_sample = torch.minimum(nearest_sample, distances.amin(0))
    count = len(generated)
    return ManifoldFigures(
        precision=precise / count,
        recall=float(recalled.double().mean()),
        density=counted / (K_DENSITY * count),
        coverage=float((nearest_sample <= real_radii[K_DENSITY]).double().mean()),
    )


@torch.no_grad()
def authenticity(real: Tensor, generated: Tensor) -> float:
    """Share of the samples [M, D] that are farther from their nearest real feature [N, D] than that one is from its own
    nearest: 0 for copies. Pictures of the same distribution that were not among the real ones have a share that depends
    on the features (0.54 and 0.83 were measured, docs/evaluation.md), and samples unlike the pictures a larger one.

    It tells copies only of the real features that are given: take all that a model was trained on. Same errors as
    `manifold_figures`.
    """
    real, generated = _checked(real, generated)
    rows = max(1, min(ROWS, ROWS * COLUMNS // len(real)))
    found = [squared_distances(part, real).min(1) for part in generated.split(rows)]
    closest, index = torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])
    asked, place = index.unique(return_inverse=True)
    radii = []
    for part in asked.split(rows):
        distances = squared_distances(real[part], real)
        distances[torch.arange(len(part), device=part.device), part] = torch.inf  # not itself
        radii.append(distances.amin(1))
    return float((closest > torch.cat(radii)[place]).double().mean())


def _checked(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, or `ValueError`."""
    for features in (real, generated):
        if features.dim() != 2 or features.shape[1:] != real.shape[1:]:
            raise ValueError(f"features are [N, D] and [M, D], got {list(real.shape)} and {list(generated.shape)}.")
        if not bool(features.isfinite().all()):
            raise ValueError("features must be finite, but they hold NaN or infinity.")
    least = min(len(real), len(generated))
    if least <= K_DENSITY:
        raise ValueError(f"precision and the like need more than {K_DENSITY} features of each kind, got {least}.")
    return real.double(), generated.double()


@torch.no_grad()
def nearest(features: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest of `among` [N, D] to each of `features` [M, D]: indices [M, count] and distances, nearest
    first."""
    parts = [
        squared_distances(part.double(), among.double()).topk(min(count, len(among)), largest=False)
        for part in features.split(ROWS)
    ]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]).sqrt()


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """|a - b|^2 of all pairs, float64 [N, D] and [M, D] -> [N, M]; by a matrix product, whose rounding is below
    1e-12 of the squared norms. What is below that is zero, so that copies are found as copies."""
    squares = first.square().sum(1)[:, None] + second.square().sum(1)[None]
    distances = torch.addmm(squares, first, second.T, alpha=-2)
    return distances.masked_fill_(distances < ROUNDING * squares, 0.0)


def _radii(features: Tensor, ks: tuple[int, ...]) -> dict[int, Tensor]:
    """The squared distance of every feature to its k-th nearest other one, for each k."""
    parts = []
    for start in range(0, len(features), ROWS):
        distances = squared_distances(features[start : start + ROWS], features)
        rows = torch.arange(len(distances), device=features.device)
        distances[rows, start + rows] = torch.inf  # not itself
        parts.append(distances.topk(max(ks), largest=False).values)
    values = torch.cat(parts)
    return {k: values[:, k - 1] for k in ks}
