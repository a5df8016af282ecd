import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmatch.metrics import FeatureAccumulator, FeatureStatistics, frechet_distance

seeds = st.integers(0, 2**32 - 1)


def gaussian(seed: int, dimension: int, rank: int | None = None) -> FeatureStatistics:
    random = np.random.default_rng(seed)
    factor = random.normal(size=(dimension, rank or dimension))
    return FeatureStatistics(random.normal(size=dimension), factor @ factor.T, 100)


def textbook(first: FeatureStatistics, second: FeatureStatistics) -> float:
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
    difference = first.mean - second.mean
    return difference @ difference + np.trace(first.covariance + second.covariance) - 2 * np.trace(root).real


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 12))
def test_it_agrees_with_the_matrix_square_root(seed, dimension):
    first, second = gaussian(seed, dimension), gaussian(seed + 1, dimension)
    scale = np.trace(first.covariance + second.covariance)
    # sqrtm of a nearly singular product is itself good to about the square root of the rounding error
    assert frechet_distance(first, second) == pytest.approx(textbook(first, second), abs=1e-6 * scale)


def test_it_agrees_closely_where_the_matrix_square_root_is_well_conditioned():
    random = np.random.default_rng(0)
    first, second = (FeatureStatistics.from_features(random.normal(size=(500, 20)) * w) for w in (1, 1.5))
    assert frechet_distance(first, second) == pytest.approx(textbook(first, second), rel=1e-10)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 12))
def test_diagonal_covariances_have_a_closed_form(seed, dimension):
    random = np.random.default_rng(seed)
    a, b = random.uniform(0, 3, (2, dimension))
    a[random.random(dimension) < 0.3] = 0  # dead pixels
    means = random.normal(size=(2, dimension))
    distance = frechet_distance(
        FeatureStatistics(means[0], np.diag(a**2), 9), FeatureStatistics(means[1], np.diag(b**2), 9)
    )
    assert distance == pytest.approx(((means[0] - means[1]) ** 2).sum() + ((a - b) ** 2).sum(), rel=1e-12, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(2, 12))
def test_commuting_covariances_have_a_closed_form(seed, dimension):
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.normal(size=(dimension, dimension)))
    a, b = random.uniform(0, 3, (2, dimension))
    a[0] = b[-1] = 0  # singular, each in another direction
    first, second = (FeatureStatistics(np.zeros(dimension), axes * d**2 @ axes.T, 9) for d in (a, b))
    assert frechet_distance(first, second) == pytest.approx(((a - b) ** 2).sum(), abs=1e-6)


def test_rank_deficient_covariances_lose_no_digits():
    # Gaussians in two planes of R^64: rotated into R^2 x R^2, where the root of a 2 x 2 matrix is known exactly
    random = np.random.default_rng(1)
    basis, _ = np.linalg.qr(random.normal(size=(64, 64)))
    small = [(lambda a: a @ a.T)(random.normal(size=(2, 2))) for _ in range(2)]
    plane = basis[:, :2]
    first, second = (FeatureStatistics(np.zeros(64), plane @ c @ plane.T, 9) for c in small)
    product = small[0] @ small[1]
    overlap = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    exact = np.trace(small[0] + small[1]) - 2 * overlap
    assert frechet_distance(first, second) == pytest.approx(exact, abs=1e-12)
    # in float64 the textbook form loses half of its digits here
    assert textbook(first, second) == pytest.approx(exact, abs=1e-4)


def test_covariances_without_a_common_direction_do_not_overlap():
    basis, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(64, 64)))
    halves = [FeatureStatistics(np.zeros(64), part @ part.T, 9) for part in (basis[:, :32], basis[:, 32:])]
    assert frechet_distance(*halves) == pytest.approx(64, abs=1e-11)  # the root of rounding noise would show


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 30), st.integers(1, 30))
def test_it_is_a_symmetric_distance_also_for_low_ranks(seed, first_rank, second_rank):
    first, second = gaussian(seed, 30, first_rank), gaussian(seed + 1, 30, second_rank)
    scale = np.trace(first.covariance + second.covariance)
    assert frechet_distance(first, first) < 1e-13 * scale
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-10)
    assert frechet_distance(first, second) > 0


def test_fewer_features_than_dimensions():
    random = np.random.default_rng(2)
    features = random.normal(size=(5, 40))
    first = FeatureStatistics.from_features(features)
    assert frechet_distance(first, FeatureStatistics.from_features(features + 2)) == pytest.approx(160, rel=1e-12)
    assert frechet_distance(first, FeatureStatistics.from_features(features * 3)) == pytest.approx(
        4 * (first.mean @ first.mean + np.trace(first.covariance)), rel=1e-12
    )


@settings(deadline=None, max_examples=30)
@given(seeds, st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 2))
def test_batches_give_what_the_whole_gives(seed, sizes):
    features = np.random.default_rng(seed).normal(1e6, 1, (sum(sizes), 3))  # a large mean: raw squares would fail
    accumulator = FeatureAccumulator()
    for part in np.split(features, np.cumsum(sizes)[:-1]):
        accumulator.add(part)
    parts, whole = accumulator.statistics(), FeatureStatistics.from_features(features)
    assert parts.count == whole.count == len(features)
    np.testing.assert_allclose(parts.mean, features.mean(0), rtol=1e-14)
    for statistics in (parts, whole):
        np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), atol=1e-8)


def test_tensors_and_integers_are_taken_in_float64():
    features = np.random.default_rng(0).integers(0, 200, (10, 3))
    whole = FeatureStatistics.from_features(features)
    for other in (torch.tensor(features), torch.tensor(features, dtype=torch.bfloat16), features.astype(np.uint8)):
        statistics = FeatureStatistics.from_features(other)
        assert statistics.covariance.dtype == np.float64
        np.testing.assert_array_equal(statistics.covariance, whole.covariance)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((1, 3)), "at least 2 features, got 1"),
        (np.zeros((0, 3)), "at least 2 features, got 0"),
        (np.zeros(3), r"shape \[N, D\], got \[3\]"),
        (np.zeros((3, 0)), r"got \[3, 0\]"),
        (np.array([[0.0, np.nan], [1, 1], [2, 2]]), "1 of 3 features hold NaN or infinity"),
        (np.array([[0.0, np.inf], [1, 1]]), "NaN or infinity"),
        (np.array([["a"], ["b"]]), "real numbers"),
        (torch.zeros(3, 2, dtype=torch.complex64), "real numbers, got complex64"),
    ],
)
def test_wrong_features_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatistics.from_features(features)


def test_a_change_of_dimension_is_refused():
    accumulator = FeatureAccumulator()
    accumulator.add(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="had 3 dimensions so far, now 4"):
        accumulator.add(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="different dimensions: 3 and 4"):
        frechet_distance(gaussian(0, 3), gaussian(0, 4))


@pytest.mark.parametrize(
    ("mean", "covariance", "count", "message"),
    [
        (np.zeros(2), np.eye(3), 9, r"\[2\] and \[3, 3\]"),
        (np.zeros(2), np.eye(2), 1, "at least 2 features, got 1"),
        (np.array([0, np.nan]), np.eye(2), 9, "NaN or infinity"),
        (np.zeros(2), np.array([[1, np.inf], [np.inf, 1]]), 9, "NaN or infinity"),
        (np.zeros(2), np.array([[1, 0.5], [0, 1]]), 9, "symmetric"),
    ],
)
def test_wrong_statistics_are_refused(mean, covariance, count, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatistics(mean, covariance, count)


def test_a_negative_variance_is_refused():
    impossible = FeatureStatistics(np.zeros(2), np.diag([1.0, -1.0]), 9)
    with pytest.raises(ValueError, match=r"negative variance, got the eigenvalue -1"):
        frechet_distance(impossible, impossible)
