"""Frechet and kernel distance beside torchmetrics, sliced W2 beside closed forms."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tvmatch.metrics import FeatureStatistics, frechet_distance
from tvmatch.metrics import kernel as kernel_module
from tvmatch.metrics.cases import _some
from tvmatch.metrics.kernel import kernel_distance
from tvmatch.metrics.projections import sliced_wasserstein

fid = pytest.importorskip("torchmetrics.image.fid")


class AsTheyAre(nn.Identity):
    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.num_features = dimension


def like_inception(count: int, seed: int, dimension: int = 96) -> Tensor:
    """Positive features of a spectrum that falls over six decades, as those of the Inception network."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -3, dimension)
    mixing, _ = torch.linalg.qr(torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(9)))
    return (torch.randn(count, dimension, generator=generator) * scales @ mixing + 0.1 * seed).relu()


def test_the_library_gives_the_same_frechet_distance_of_the_same_features() -> None:
    first, second = like_inception(400, 0), like_inception(500, 1)
    metric = fid.FrechetInceptionDistance(feature=AsTheyAre(first.shape[1]), input_img_size=(first.shape[1],))
    metric.set_dtype(torch.float64)
    metric.update(first.double(), real=True)
    metric.update(second.double(), real=False)
    ours = frechet_distance(*(FeatureStatistics.from_features(x) for x in (first, second)))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)  # the bar is 1e-3


def test_the_kernel_distance_is_the_unbiased_mmd(monkeypatch: pytest.MonkeyPatch) -> None:
    """All features in one subset: then no draw matters, and the definition can be summed by hand."""
    real, generated = like_inception(30, 0, 6).double().numpy(), like_inception(30, 1, 6).double().numpy()
    monkeypatch.setattr(kernel_module, "SUBSETS", 3)

    def k(x, y):
        return (x @ y / 6 + 1) ** 3

    def off_diagonal(points):
        pairs = [k(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j]
        return np.mean(pairs)

    expected = off_diagonal(real) + off_diagonal(generated) - 2 * np.mean([k(a, b) for a in real for b in generated])
    mean, deviation = kernel_distance(torch.from_numpy(real), torch.from_numpy(generated))
    assert mean == pytest.approx(expected, rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_published_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 subsets of 1000 for the kernel distance, and 1000 directions: what the page says, and is really asked for."""
    kid, asked = pytest.importorskip("torchmetrics.image.kid"), []

    class Noted(kid.KernelInceptionDistance):
        def __init__(self, **options) -> None:
            asked.append((options["subsets"], options["subset_size"]))
            super().__init__(**options | {"subsets": 1})

    monkeypatch.setattr(kid, "KernelInceptionDistance", Noted)
    kernel_distance(torch.randn(1500, 2), torch.randn(1200, 2))
    assert asked == [(100, 1000)]
    assert inspect.signature(sliced_wasserstein).parameters["directions"].default == 1000


def test_neighbours_are_sought_among_features_chosen_at_random() -> None:
    """Not the first: data may be sorted by class."""
    chosen = _some(torch.arange(1000)[:, None], 100)[:, 0]
    assert len(chosen.unique()) == 100
    assert 400 < float(chosen.float().mean()) < 600
    assert torch.equal(chosen, _some(torch.arange(1000)[:, None], 100)[:, 0])


def test_the_kernel_distance_repeats_itself_and_leaves_the_global_stream_alone() -> None:
    real, generated = like_inception(1200, 0, 4), like_inception(1300, 2, 4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = kernel_distance(real, generated)
    assert torch.equal(torch.get_rng_state(), before)
    assert kernel_distance(real, generated) == first
    assert first[1] > 0
    assert first[0] > 10 * abs(kernel_distance(real, like_inception(1300, 0, 4))[0])


def test_sliced_w2_of_a_shift_and_of_a_stretch() -> None:
    points = torch.randn(300, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([3.0, 0, 0, 0, 4.0], dtype=torch.float64)
    # E <shift, direction>^2 = |shift|^2 / D
    assert sliced_wasserstein(points, points + shift, 4000) == pytest.approx(5 / math.sqrt(5), rel=0.03)
    line = points[:, :1]
    assert sliced_wasserstein(line, 3 * line) == pytest.approx(2 * float(line.square().mean().sqrt()), rel=1e-12)
    assert sliced_wasserstein(points, points.flip(0)) == pytest.approx(0, abs=1e-12)


def test_sliced_w2_is_that_of_scipy_in_one_dimension() -> None:
    from scipy.optimize import linear_sum_assignment

    random = np.random.default_rng(0)
    first, second = random.normal(size=(12, 1)), random.normal(size=(12, 1)) ** 3
    costs = (first - second.T) ** 2
    rows, columns = linear_sum_assignment(costs)
    exact = math.sqrt(costs[rows, columns].mean())
    assert sliced_wasserstein(torch.from_numpy(first), torch.from_numpy(second), 7) == pytest.approx(exact)


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal shape are needed, got \[3, 2\], \[4, 2\]"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="at least 2 features of each kind, got 1"):
        kernel_distance(torch.zeros(1, 2), torch.zeros(4, 2))
