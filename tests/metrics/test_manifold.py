"""Precision, recall, density, coverage: against loops over all pairs, and where the answer is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tvmatch.metrics import manifold
from tvmatch.metrics.manifold import authenticity, manifold_figures, nearest


def by_loops(real: np.ndarray, generated: np.ndarray) -> tuple[float, ...]:
    """The definitions of the papers, one pair after another."""

    def distance(a, b):
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))

    def radius(points, i, k):
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    precision = np.mean([any(distance(g, r) <= radius(real, i, 3) for i, r in enumerate(real)) for g in generated])
    recall = np.mean([any(distance(g, r) <= radius(generated, j, 3) for j, g in enumerate(generated)) for r in real])
    density = sum(distance(g, r) <= radius(real, i, 5) for g in generated for i, r in enumerate(real))
    coverage = np.mean([min(distance(g, r) for g in generated) <= radius(real, i, 5) for i, r in enumerate(real)])
    authentic = []
    for g in generated:
        closest = min(range(len(real)), key=lambda i: distance(g, real[i]))
        authentic.append(distance(g, real[closest]) > radius(real, closest, 1))
    return precision, recall, density / (5 * len(generated)), coverage, np.mean(authentic)


@pytest.mark.parametrize("seed", range(4))
def test_the_definitions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "ROWS", 7)  # several pieces of a distance matrix
    random = np.random.default_rng(seed)
    real, generated = random.normal(size=(23, 3)), random.normal(size=(17, 3)) * 1.3 + 0.3
    found = manifold_figures(torch.from_numpy(real), torch.from_numpy(generated))
    found = *found, authenticity(torch.from_numpy(real), torch.from_numpy(generated))
    assert found == pytest.approx(by_loops(real, generated))
    assert 0 < found[0] < 1 or 0 < found[1] < 1


def cloud(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + shift


def test_equal_distributions_overlap_and_distant_ones_do_not() -> None:
    same = manifold_figures(cloud(400, 0), cloud(400, 1))
    assert same.precision > 0.7
    assert same.recall > 0.7
    assert same.density == pytest.approx(1, abs=0.15)
    assert same.coverage > 0.9
    assert manifold_figures(cloud(50, 0), cloud(50, 1, shift=100)) == (0, 0, 0, 0)


def test_one_mode_of_two_is_precise_and_misses_half() -> None:
    both = torch.cat([cloud(200, 0), cloud(200, 1, shift=50)])
    figures = manifold_figures(both, cloud(200, 2))
    assert figures.precision > 0.7
    assert figures.recall < 0.5
    assert figures.coverage < 0.51


def test_copies_are_not_authentic() -> None:
    real = cloud(600, 0)
    assert authenticity(real, real[:300]) == 0
    assert 0.4 < authenticity(real, cloud(300, 1)) < 0.65  # as if they had been among the others
    assert authenticity(real[:120], real) > 0.3  # copies of those that are not known count as new


def test_authenticity_in_pieces_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = cloud(90, 0), cloud(40, 1)
    whole = authenticity(real, generated)
    monkeypatch.setattr(manifold, "COLUMNS", 1)
    monkeypatch.setattr(manifold, "ROWS", 90 * 7)
    assert authenticity(real, generated) == whole


def test_nearest_finds_itself_first() -> None:
    points = cloud(30, 0)
    index, distance = nearest(points[4:7], points, 3)
    assert index[:, 0].tolist() == [4, 5, 6]
    assert distance[:, 0].max() < 1e-5
    exact = torch.cdist(points[4:7].double(), points.double()).sort(1)
    assert torch.equal(index, exact.indices[:, :3])
    assert torch.allclose(distance, exact.values[:, :3], atol=1e-6)


def test_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 5 features of each kind, got 5"):
        manifold_figures(cloud(5, 0), cloud(20, 1))


def test_copies_are_copies_whatever_rounding_makes_of_them() -> None:
    """Points that coincide, far from the origin: their distances are zero, not the rounding of a product."""
    points = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 100 + 1000
    real = points.repeat(3, 1)
    assert manifold.squared_distances(real.double(), real.double()).eq(0).sum() == 4 * 9
    figures = manifold_figures(real, real)
    # each point has two copies: the first neighbour is at zero, the third is another point
    assert (figures.precision, figures.recall, figures.coverage, authenticity(real, real)) == (1, 1, 1, 0)


def test_samples_that_are_all_the_same() -> None:
    real = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    same = real[:1].repeat(20, 1)
    figures = manifold_figures(real, same)
    assert (figures.precision, figures.recall, authenticity(real, same)) == (1, 1 / 20, 0)
    figures = manifold_figures(same, same)
    assert figures == (1, 1, 4, 1)  # 20 balls hold each sample, 5 are expected


@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (torch.zeros(6, 3), torch.full((6, 3), torch.nan), "features must be finite"),
        (torch.full((6, 3), torch.inf), torch.zeros(6, 3), "features must be finite"),
        (torch.zeros(6, 3), torch.zeros(6, 4), r"features are \[N, D\] and \[M, D\], got \[6, 3\] and \[6, 4\]"),
        (torch.zeros(5, 3), torch.zeros(9, 3), "need more than 5 features of each kind, got 5"),
    ],
)
def test_features_that_cannot_be_compared_are_named(real: Tensor, generated: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manifold_figures(real, generated)
