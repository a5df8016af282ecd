"""Gaussians and mixtures against autograd, Monte Carlo, other solvers and each other; distances against brute force."""

import itertools
import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from tvmatch.flow_map import FlowMap
from tvmatch.theory import (
    Checkerboard,
    Gaussian,
    GaussianFlow,
    GaussianMixture,
    TwoMoons,
    eight_gaussians,
    w2_gaussians,
    w2_samples,
)


def gaussian() -> Gaussian:
    root = torch.tensor([[0.9, 0.0, 0.0], [0.4, 0.3, 0.0], [-0.2, 0.5, 0.6]], dtype=torch.float64)
    return Gaussian(torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64), root @ root.T)


def mixture() -> GaussianMixture:
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.4]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([1.0, 2.0, 1.5]).double(), means, torch.tensor([0.3, 0.5, 0.2]).double())


def points(dimension: int, batch: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, dimension, dtype=torch.float64), torch.linspace(0.05, 1, batch, dtype=torch.float64)


@pytest.mark.parametrize("data", [gaussian(), mixture()])
def test_velocity_is_the_mean_of_the_conditional_velocity(data: Gaussian | GaussianMixture) -> None:
    """The least-squares characterisation: E[(v - u(x_t)) g(x_t)] = 0 for any g. A Monte Carlo check of the sign and of
    every factor, with data drawn by `sample`."""
    x0 = data.sample(400_000)
    noise = torch.randn_like(x0)
    for time in (0.2, 0.6, 0.95):
        t = torch.full((len(x0),), time, dtype=torch.float64)
        x = (1 - time) * x0 + time * noise
        error = noise - x0 - data.velocity(x, t)
        for g in (torch.ones_like(x), x, x.sin(), x.flip(1).square()):
            product = error * g
            sigma = product.std(0) / math.sqrt(len(x))
            assert bool((product.mean(0).abs() < 4.5 * sigma).all())


def test_gaussian_flow_solves_its_equation() -> None:
    data = gaussian()
    x, t = points(3)
    s = t * 0.3
    torch.testing.assert_close(data.flow(x, t, t), x)
    torch.testing.assert_close(data.flow(data.flow(x, t, s), s, t), x)
    time = s.clone().requires_grad_()
    slope = torch.stack([torch.autograd.grad(data.flow(x, t, time)[:, k].sum(), time)[0] for k in range(3)], dim=1)
    torch.testing.assert_close(slope, data.velocity(data.flow(x, t, s), s), rtol=1e-10, atol=1e-10)


def test_the_exact_network_is_the_flow_and_the_velocity_of_the_gaussian() -> None:
    mean, deviation = torch.tensor([0.7, -0.2]).double(), torch.tensor([0.3, 1.7]).double()
    data, flow = Gaussian(mean, torch.diag(deviation.square())), FlowMap(GaussianFlow(mean, deviation))
    x, t = points(2)
    w, label = torch.linspace(0.5, 3, 6).double(), torch.full((6,), -1)
    with torch.no_grad():
        torch.testing.assert_close(flow.velocity(x, t, label, w), data.velocity(x, t))
        for part in (0.0, 0.3, 1 - 1e-9):
            torch.testing.assert_close(flow.jump(x, t, t * part, label, w), data.flow(x, t, t * part))
    x_s, slope = flow.terminal_velocity(x, t, t, label, w)  # smooth where the times meet
    torch.testing.assert_close(slope, flow.velocity(x_s, t, label, w))


def test_gaussian_flow_carries_marginals() -> None:
    """The push-forward of N(0, I) by the linear flow from 1 to s, read off its action on a basis, is the marginal."""
    data = gaussian()
    basis = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    for s in (0.0, 0.4, 1.0):
        images = data.flow(basis, torch.ones(4).double(), torch.full((4,), s, dtype=torch.float64))
        matrix = (images[1:] - images[0]).T
        torch.testing.assert_close(images[0], data.marginal(s).mean)
        torch.testing.assert_close(matrix @ matrix.T, data.marginal(s).covariance)
    torch.testing.assert_close(data.marginal(0.0).covariance, data.covariance)


def test_irreducible_variance_by_monte_carlo() -> None:
    data = gaussian()
    x0 = data.sample(400_000)
    noise, t = torch.randn_like(x0), torch.full((400_000,), 0.7, dtype=torch.float64)
    square = (noise - x0 - data.velocity(0.3 * x0 + 0.7 * noise, t)).square().sum(1)
    assert float(square.mean()) == pytest.approx(float(data.irreducible(t)[0]), rel=0.01)


def test_mixture_score_is_the_gradient_of_its_log_density_and_gives_the_velocity() -> None:
    data = mixture()
    x, t = points(2)
    x = x.requires_grad_()
    score = torch.autograd.grad(data.log_density(x, t).sum(), x)[0]
    torch.testing.assert_close(data.score(x, t).detach(), score)
    time = t[:, None]  # u = -(x + t score) / (1 - t), for t < 1 (Tweedie on the straight path)
    torch.testing.assert_close(
        data.velocity(x, t)[:-1].detach(), (-(x + time * score) / (1 - time)).detach()[:-1], rtol=1e-9, atol=1e-9
    )


def test_mixture_density_integrates_to_one() -> None:
    axis = torch.linspace(-7, 7, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for t in (0.1, 1.0):
        density = mixture().log_density(grid, torch.full((len(grid),), t, dtype=torch.float64)).exp()
        assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=1e-6)


def test_mixture_of_one_is_the_gaussian() -> None:
    mean = torch.tensor([0.7, -0.2], dtype=torch.float64)
    one = GaussianMixture(torch.ones(1).double(), mean[None], torch.tensor([0.4]).double())
    same = Gaussian(mean, 0.16 * torch.eye(2).double())
    x, t = points(2)
    torch.testing.assert_close(one.velocity(x, t), same.velocity(x, t))
    full = torch.full((6,), 1.0, dtype=torch.float64)
    for s in (0.0, 0.5):
        torch.testing.assert_close(
            one.flow(x, 1.0, s, tolerance=1e-10), same.flow(x, full, s * full), rtol=1e-6, atol=1e-7
        )


def test_mixture_flow_against_another_solver() -> None:
    data = mixture()
    x, _ = points(2)

    def slope(time: float, flat):  # the velocity from the score, by an implicit method of another family
        y, t = torch.from_numpy(flat).reshape(6, 2), torch.full((6,), time, dtype=torch.float64)
        return (-(y + time * data.score(y, t)) / (1 - time)).flatten().numpy()

    other = solve_ivp(slope, (0.95, 0.0), x.flatten().numpy(), method="Radau", rtol=1e-9, atol=1e-9).y[:, -1]
    torch.testing.assert_close(
        data.flow(x, 0.95, 0.0, tolerance=1e-10), torch.from_numpy(other).reshape(6, 2), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(data.flow(data.flow(x, 0.9, 0.1), 0.1, 0.9), x, rtol=1e-5, atol=1e-5)


def test_w2_of_gaussians() -> None:
    data, eye = gaussian(), torch.eye(3).double()
    assert w2_gaussians(data, data) == pytest.approx(0, abs=1e-7)
    shifted = Gaussian(data.mean + torch.tensor([3.0, 4.0, 0.0]).double(), data.covariance)
    assert w2_gaussians(data, shifted) == pytest.approx(5)
    # one dimension: W2^2 = (m - n)^2 + (a - b)^2
    one = [Gaussian(torch.tensor([m]).double(), torch.tensor([[a * a]]).double()) for m, a in ((1.0, 2.0), (0.0, 0.5))]
    assert w2_gaussians(*one) == pytest.approx(math.sqrt(1 + 2.25))
    # the optimal map from N(0, I) is S^(1/2): its cost, computed directly
    root = data.axes @ torch.diag(data.variances.sqrt()) @ data.axes.T
    cost = data.mean.square().sum() + (root - eye).square().sum()
    assert w2_gaussians(Gaussian(torch.zeros(3).double(), eye), data) == pytest.approx(float(cost.sqrt()))
    other = Gaussian(torch.ones(3).double(), torch.diag(torch.tensor([1.0, 0.2, 0.5]).double()))
    assert w2_gaussians(data, other) == pytest.approx(w2_gaussians(other, data))


def test_w2_of_samples() -> None:
    x, y = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    brute = min(float((x - y[list(order)]).square().sum(1).mean()) for order in itertools.permutations(range(5)))
    assert w2_samples(x, y) == pytest.approx(math.sqrt(brute))
    assert w2_samples(x, x[torch.randperm(5)]) == 0
    assert w2_samples(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(5)
    # against the closed form, with the bias of 800 samples
    p = Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    q = Gaussian(torch.tensor([2.0, 0.0]).double(), 0.25 * torch.eye(2).double())
    assert w2_samples(p.sample(800), q.sample(800)) == pytest.approx(w2_gaussians(p, q), rel=0.06)
    with pytest.raises(ValueError, match="equal shape"):
        w2_samples(x, y[:4])
    with pytest.raises(ValueError, match="finite"):
        w2_samples(x * float("nan"), y)


@pytest.mark.parametrize("data", [eight_gaussians(), TwoMoons(), Checkerboard()])
def test_planar_data_is_centred_and_scaled(data) -> None:
    x = data.sample(20_000, torch.Generator().manual_seed(0))
    assert float(x.mean(0).abs().max()) < 0.03
    assert 0.8 < float(x.square().mean().sqrt()) < 1.25
    torch.testing.assert_close(x, data.sample(20_000, torch.Generator().manual_seed(0)))


def test_the_checkerboard_is_empty_on_its_light_squares() -> None:
    cell = (1.15 * Checkerboard().sample(5000) + 2).floor().long()
    assert bool(((cell.sum(1) % 2) == 0).all())
    assert len(torch.unique(cell, dim=0)) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(torch.zeros(2), torch.eye(3)), r"\[D, D\]"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0]))), "negative eigenvalue"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(3, 2), torch.ones(2)), r"means \[K, D\]"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 2), torch.zeros(2)), "positive"),
        (lambda: GaussianMixture(torch.ones(0), torch.zeros(0, 2), torch.ones(0)), r"weights \[K\]"),
        (lambda: GaussianMixture(torch.tensor([torch.inf, 1]), torch.zeros(2, 2), torch.ones(2)), "must be finite"),
        (lambda: eight_gaussians(radius=math.nan), "must be finite"),
        (lambda: Gaussian(torch.full((2,), torch.nan), torch.eye(2)), "must be finite"),
        (lambda: Gaussian(torch.zeros(2), torch.eye(2).double()), "of one real type"),
        (lambda: TwoMoons(-1.0), "noise must be at least 0"),
        (lambda: GaussianFlow(torch.zeros(2), torch.tensor([1.0, 0.0])), "deviations positive"),
    ],
)
def test_bad_distributions_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("t", "s", "tolerance", "scale", "message"),
    [
        (math.nan, 0.0, 1e-8, 1.0, r"times must lie in \[0, 1\], got nan and 0.0"),
        (1.0, -0.5, 1e-8, 1.0, r"got 1.0 and -0.5"),
        (1.0, 0.0, 0.0, 1.0, "tolerance must be positive and finite, got 0.0"),
        (1.0, 0.0, 1e-8, math.nan, "points must be finite"),
    ],
)
def test_a_flow_that_would_never_end_is_refused(
    t: float, s: float, tolerance: float, scale: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        eight_gaussians().flow(torch.ones(2, 2).double() * scale, t, s, tolerance)


def test_distances_of_what_cannot_be_compared() -> None:
    one, two = (Gaussian(torch.zeros(n), torch.eye(n)) for n in (1, 2))
    with pytest.raises(ValueError, match="different dimensions: 1 and 2"):
        w2_gaussians(one, two)
    for x in (torch.zeros(0, 2), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"samples .* of equal shape"):
            w2_samples(x, x)
