"""The distance in the values themselves is the same without a covariance, and needs none for large pictures."""

import time

import numpy as np
import pytest

from tvmatch.data.arrays import source_from_arrays
from tvmatch.metrics import own_values
from tvmatch.metrics.frechet import FeatureStatistics, covariance_root, frechet_distance
from tvmatch.metrics.own_values import OwnValues


def pictures(count: int, size: int, seed: int, level: int = 120) -> np.ndarray:
    """Pictures of a few directions and some noise, so that no singular value is alone."""
    random = np.random.default_rng(seed)
    directions = random.normal(0, 20, (5, size, size, 3))
    values = level + np.einsum("nk,khwc->nhwc", random.normal(size=(count, 5)), directions)
    return (values + random.normal(0, 6, values.shape)).clip(0, 255).astype(np.uint8)


def of_covariances(samples: np.ndarray, data: np.ndarray) -> float:
    flat = [array.reshape(len(array), -1) / 255 for array in (samples, data)]
    return frechet_distance(*map(FeatureStatistics.from_features, flat))


@pytest.mark.parametrize("at_once", [2000, 7, 1])
@pytest.mark.parametrize(("samples", "data"), [(30, 100), (30, 20), (190, 300), (191, 40)])
def test_without_a_covariance_it_is_the_distance_of_covariances(
    monkeypatch: pytest.MonkeyPatch, samples: int, data: int, at_once: int
) -> None:
    """192 dimensions, with fewer and with more data; in batches of any size."""
    monkeypatch.setattr(own_values, "AT_ONCE", at_once)
    monkeypatch.setattr(own_values, "DECOMPOSITION", 1e9)
    drawn, real = pictures(samples, 8, 1, level=130), pictures(data, 8, 2)
    distance = OwnValues(source_from_arrays(real, None))
    monkeypatch.setattr(own_values, "frechet_distance", None)  # it does not go that way
    assert distance.distance(drawn) == pytest.approx(of_covariances(drawn, real), rel=1e-9)
    assert distance.distance(real[:150]) == pytest.approx(of_covariances(real[:150], real), rel=1e-9, abs=1e-12)


def test_of_many_samples_it_goes_by_covariances_and_takes_the_datas_root_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, real = pictures(400, 4, 1, level=130), pictures(300, 4, 2)
    roots = []
    monkeypatch.setattr(
        own_values, "covariance_root", lambda statistics: roots.append(1) or covariance_root(statistics)
    )
    distance = OwnValues(source_from_arrays(real, None))
    expected = of_covariances(drawn, real)
    assert [distance.distance(drawn) for _ in range(3)] == [expected] * 3
    assert len(roots) == 1


def test_pictures_of_64_pixels_take_seconds() -> None:
    """12,288 dimensions: a covariance would have 1.2 GB, and its root would take half an hour."""
    drawn, real = pictures(40, 64, 1), pictures(60, 64, 2)
    began = time.perf_counter()
    value = OwnValues(source_from_arrays(real, None)).distance(drawn)
    assert time.perf_counter() - began < 20
    centred = [array.reshape(len(array), -1) / 255 for array in (drawn, real)]
    means = [array.mean(0) for array in centred]
    centred = [array - mean for array, mean in zip(centred, means, strict=True)]
    overlap = np.linalg.svd(centred[1] @ centred[0].T, compute_uv=False).sum() / np.sqrt(39 * 59)
    variances = (centred[0] ** 2).sum() / 39 + (centred[1] ** 2).sum() / 59
    assert value == pytest.approx(((means[0] - means[1]) ** 2).sum() + variances - 2 * overlap, rel=1e-9)


def test_too_much_of_both_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_values, "LARGEST_DIMENSION", 100)
    with pytest.raises(ValueError, match=r"pictures of \(3, 8, 8\) are too large.* --samples, or give --features"):
        OwnValues(source_from_arrays(pictures(20, 8, 0), None)).distance(pictures(300, 8, 1))


def test_what_is_not_finite_is_named() -> None:
    latents = np.zeros((5, 3, 8, 8), np.float32)
    latents[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 5 samples hold NaN"):
        OwnValues(source_from_arrays(pictures(20, 8, 0), None)).distance(latents)
