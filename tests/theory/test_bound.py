"""Lipschitz constants against the whole Jacobian, and the bound: it holds, its parts are right, and it can fail."""

import pytest
import torch

from tests.conftest import randomise
from tvmatch.flow_map import FlowMap
from tvmatch.networks.dit import DiT
from tvmatch.networks.mlp import MLP, MLPConfig
from tvmatch.theory import (
    Gaussian,
    GaussianFlow,
    eight_gaussians,
    evaluate_bound,
    largest_singular_value,
    velocity_lipschitz,
)


def planar(a: float) -> Gaussian:
    return Gaussian(torch.zeros(2).double(), a * a * torch.eye(2).double())


def exact_flow(a: float) -> FlowMap:
    return FlowMap(GaussianFlow(torch.zeros(2).double(), torch.full((2,), a, dtype=torch.float64)))


def test_power_iteration_finds_the_singular_value() -> None:
    matrices = torch.randn(4, 7, 5, dtype=torch.float64)
    found = largest_singular_value(
        lambda d: torch.einsum("bij,bj->bi", matrices, d),
        lambda g: torch.einsum("bij,bi->bj", matrices, g),
        torch.empty(4, 5, dtype=torch.float64),
        iterations=300,
    )
    torch.testing.assert_close(found, torch.linalg.matrix_norm(matrices, 2), rtol=1e-8, atol=0)
    zero = largest_singular_value(lambda d: 0 * d, lambda g: 0 * g, torch.empty(2, 3), iterations=3)
    assert not zero.any()


@pytest.mark.parametrize("scaled", [True, False])
def test_velocity_lipschitz_against_the_whole_jacobian(small_config, scaled: bool) -> None:
    flow = FlowMap(randomise(DiT(small_config)).double(), scaled)
    x, t = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.tensor([0.2, 0.7, 1.0], dtype=torch.float64)
    label, w = torch.tensor([-1, 0, 2]), torch.tensor([1.0, 1.5, 3.0], dtype=torch.float64)
    found = velocity_lipschitz(flow, x, t, label, w, iterations=60)
    for i in range(3):
        one = slice(i, i + 1)
        jacobian = torch.autograd.functional.jacobian(
            lambda y, one=one: flow.velocity(y, t[one], label[one], w[one]).flatten(), x[one]
        ).reshape(32, 32)
        torch.testing.assert_close(found[i], torch.linalg.matrix_norm(jacobian, 2), rtol=1e-2, atol=0)
        assert float(found[i]) <= (1 + 1e-9) * float(torch.linalg.matrix_norm(jacobian, 2))


def test_exact_map_has_both_sides_zero() -> None:
    bound = evaluate_bound(exact_flow(0.5), planar(0.5), torch.randn(32, 2).double(), steps=8)
    assert bound.right < 1e-20
    assert bound.w2_squared < 1e-20


@pytest.mark.parametrize("t", [1.0, 0.6])
def test_bound_of_another_gaussian_in_closed_form(t: float) -> None:
    """The exact flow map of N(0, b^2) judged for data N(0, a^2): d1 = 0, u_theta is linear with the slope
    (s - (1-s) b^2) / (s^2 + (1-s)^2 b^2), and E|x_s|^2 is known; both integrals by a fine rule of our own."""
    a, b = 0.5, 0.8
    x = torch.randn(64, 2, dtype=torch.float64)
    bound = evaluate_bound(exact_flow(b), planar(a), x, t, steps=64, iterations=2, segment=2)
    power = float(x.square().sum(1).mean())
    s = torch.linspace(0, t, 4001, dtype=torch.float64)

    def variance(d: float) -> torch.Tensor:
        return s.square() + (1 - s).square() * d * d

    def rate(d: float) -> torch.Tensor:
        return (s - (1 - s) * d * d) / variance(d)

    x_s = power * variance(a) / variance(a)[-1]
    inner = torch.cumulative_trapezoid(rate(b).abs(), s)
    growth = torch.cat([torch.zeros(1).double(), inner])
    right = 2 * t * torch.trapezoid(torch.exp(2 * growth) * (rate(b) - rate(a)).square() * x_s, s)
    assert bound.right == pytest.approx(float(right), rel=5e-3)
    apart = float(a / variance(a)[-1].sqrt() - b / variance(b)[-1].sqrt()) ** 2 * power
    assert bound.coupled == pytest.approx(apart)
    assert bound.w2_squared == pytest.approx(apart)  # a scaling is its own optimal transport
    assert bound.terminal.max() < 1e-20
    assert bound.holds


@pytest.mark.parametrize("scale", [0.02, 0.1])
def test_bound_holds_for_any_network_on_a_mixture(scale: float) -> None:
    flow = FlowMap(MLP(MLPConfig(hidden_size=16, depth=2))).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn_like(parameter)
    bound = evaluate_bound(flow, eight_gaussians(), torch.randn(48, 2).double(), steps=8, iterations=5)
    assert bound.terminal.max() > 0
    assert bound.velocity.max() > 0
    # where noise pairs the points best, the two are one sum in another order
    assert 0 < bound.w2_squared <= (1 + 1e-12) * bound.coupled
    assert bound.coupled <= bound.right
    assert bound.holds
    assert bound.looseness >= 1


class Sine(torch.nn.Module):
    """F = 2 sin(2x), at all times: its slope 4 |cos(2x)| is another wherever one looks."""

    def __init__(self) -> None:
        super().__init__()
        self.data_shape, self.num_classes = (1,), 0
        self.zero = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor, label: torch.Tensor, w: torch.Tensor
    ) -> torch.Tensor:
        return 2 * (2 * x).sin() + self.zero * (t - s)[:, None]


def test_the_lipschitz_constant_is_that_of_the_lines_from_true_to_learned_points() -> None:
    """Where the proof needs it: neither the true points alone nor the learned ones have the largest slope."""
    data = Gaussian(torch.zeros(1).double(), 0.25 * torch.eye(1).double())
    flow, x, label, one = FlowMap(Sine()), torch.tensor([[0.8], [-0.7]]).double(), torch.full((2,), -1), torch.ones(2)
    bound = evaluate_bound(flow, data, x, steps=4, iterations=2, segment=5)
    for k, s in reversed(list(enumerate(bound.s.tolist()))):
        end = torch.full((2,), s, dtype=torch.float64)
        true, learned = data.flow(x, one.double(), end), flow.jump(x, one.double(), end, label, one.double()).detach()
        slopes = torch.stack([4 * (2 * torch.lerp(true, learned, part / 4)).cos().abs() for part in range(5)])
        assert float(bound.lipschitz[k]) == pytest.approx(float(slopes.max()))
    ends = slopes[[0, -1]]
    assert float(slopes.max()) > 1.05 * float(ends.max())  # at s = 0


def test_without_the_exponential_the_right_side_may_be_too_small() -> None:
    """The check can fail: on an expanding flow the integral without its Gronwall factor is below the left side."""
    a, b = 0.01, 8.0
    bound = evaluate_bound(exact_flow(b), planar(a), torch.randn(32, 2).double(), steps=64, iterations=2, segment=2)
    assert bound.holds
    plain = 2 * torch.trapezoid(bound.terminal + bound.velocity, bound.s)
    wrong = bound._replace(right=float(plain))
    assert not wrong.holds


def test_bad_arguments_are_named() -> None:
    flow, x = exact_flow(0.5), torch.randn(4, 2).double()
    with pytest.raises(ValueError, match=r"t must lie in \(0, 1\]"):
        evaluate_bound(flow, planar(0.5), x, t=0.0)
    with pytest.raises(ValueError, match="at least 2"):
        evaluate_bound(flow, planar(0.5), x, segment=1)
    for points in (x.float(), x[:0]):
        with pytest.raises(ValueError, match=r"points .* of the weights' torch.float64 are needed"):
            evaluate_bound(flow, planar(0.5), points)
    with pytest.raises(ValueError, match=r"no number: at s = \[0.0\]"):  # one point has no velocity at t = 0
        evaluate_bound(flow, planar(0.0), x, steps=2, iterations=1)
    with pytest.raises(ValueError, match="at least 1 iteration"):
        largest_singular_value(lambda d: d, lambda g: g, x, iterations=0)
