"""The loss of every method by itself, at given times, on Gaussian data: content with its flow map, and leading to it.

The draws and shares of each method are part of the tests in `test_convergence.py` and `test_by_hand.py`.
Expectations are sums over fixed nodes: x_t through its quantiles, and v = u(x_t, t) + d z with nodes z that are
symmetric about zero. Given x_t the true v is Gaussian about u, so that a gradient that vanishes in expectation does so
here to rounding. The network is the exact one plus a combination p of five functions of (x, t, s); the exact map
is p = 0.
"""

import pytest
import torch
from torch import Tensor

from tests.objectives.gaussian_flow import DEVIATION, MEAN, GaussianFamily
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance, UniformGuidance
from tvmatch.objectives import (
    AlphaFlow,
    ConsistencyTraining,
    FewStepObjective,
    ImprovedMeanFlow,
    LagrangianSelfDistillation,
    MeanFlow,
    ModularMeanFlow,
    Part,
    Shortcut,
    SplitMeanFlow,
)
from tvmatch.objectives.few_step import Draws
from tvmatch.objectives.shortcut import DyadicJumps
from tvmatch.theory import Gaussian

ALPHA = 1e-6
METHODS = {
    "mean-flow": lambda flow: MeanFlow(flow, offset=1.0),
    "mean-flow-plain": lambda flow: MeanFlow(flow, power=0.0),
    "improved-mean-flow": ImprovedMeanFlow,
    "split-mean-flow": SplitMeanFlow,
    "shortcut": Shortcut,
    "alpha-flow": lambda flow: AlphaFlow(flow, smallest=ALPHA),
    "lagrangian": LagrangianSelfDistillation,
    "modular-mean-flow": lambda flow: ModularMeanFlow(flow, largest=0.0),
    "consistency-training": ConsistencyTraining,
}
POINTWISE = ("split-mean-flow", "shortcut", "lagrangian")  # their loss itself vanishes where s < t


def nodes(noise: int) -> Draws:
    """Draws on a grid of x_t, `noise` values of v about u, and six (t, s), of which two have s = t."""
    quantiles = [torch.special.ndtri((torch.arange(n).double() + 0.5) / n) for n in (7, noise)]
    times = torch.tensor([[1.0, 0.0], [0.9, 0.3], [0.6, 0.1], [0.5, 0.25], [0.8, 0.8], [0.3, 0.3]]).double()
    share = torch.tensor([0.5, 0.2, 0.9, 0.4, 0.3, 0.6]).double()
    first, second, index = torch.cartesian_prod(*quantiles, torch.arange(6).double()).unbind(1)
    index = index.long()
    t, s = times[index].unbind(1)
    data = Gaussian(torch.tensor([MEAN], dtype=torch.float64), torch.tensor([[DEVIATION**2]], dtype=torch.float64))
    x = ((1 - t) * MEAN + data.spectrum(t)[:, 0].sqrt() * first)[:, None]
    v = data.velocity(x, t) + (data.irreducible(t).sqrt() * second)[:, None]
    return Draws(x, v, t, s, share[index], torch.full_like(index, -1), torch.ones_like(t))


def objective(name: str) -> FewStepObjective:
    return METHODS[name](FlowMap(GaussianFamily(1)))


def expected_loss(method: FewStepObjective, draws: Draws) -> Tensor:
    return method.losses(draws).mean()


@pytest.mark.parametrize("name", METHODS)
def test_gradient_vanishes_at_the_exact_map(name: str) -> None:
    method, draws = objective(name), nodes(noise=24)
    losses = method.losses(draws)
    (gradient,) = torch.autograd.grad(losses.mean(), method.flow.network.p)
    assert gradient.abs().max() < (10 * ALPHA if name == "alpha-flow" else 1e-12)
    jumps = draws.s < draws.t
    assert (float(losses[jumps].detach().max()) < 1e-24) == (name in POINTWISE)
    # and it is no gradient that always vanishes
    with torch.no_grad():
        method.flow.network.p += 0.1
    (gradient,) = torch.autograd.grad(expected_loss(method, draws), method.flow.network.p)
    assert gradient.abs().min() > 1e-4


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("direction", [0, 1])
def test_a_shifted_map_has_a_larger_loss(name: str, direction: int) -> None:
    """Shifts that do not depend on x: others may lower the variance of a target that holds v, and with it the loss.
    Of the jumps alone: the second shift is felt by no others, and their loss is of another scale in alpha-Flow."""
    method, draws = objective(name), nodes(noise=200)
    jumps = draws.s < draws.t
    draws = Draws(*(value[jumps] for value in draws))
    exact = float(expected_loss(method, draws))
    for size in (-0.3, -0.1, 0.1, 0.3):
        for flow in (method.flow, method.teacher):
            with torch.no_grad():
                flow.network.p.zero_()[direction] = size
        assert float(expected_loss(method, draws)) > exact * (1 + 1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_to_the_exact_map(name: str) -> None:
    method, draws = objective(name), nodes(noise=4)
    network = method.flow.network
    with torch.no_grad():
        network.p.copy_(torch.tensor([0.3, -0.4, 0.3, 0.3, -0.2]))
    # the gradient through the JVP is the worst conditioned
    steps, rate = (800, 0.03) if name == "lagrangian" else (300, 0.1)
    optimizer = torch.optim.Adam([network.p], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        if method.target is not None:
            method.target.load_state_dict(method.flow.state_dict())
        optimizer.zero_grad()
        expected_loss(method, draws).backward()
        optimizer.step()
        schedule.step()
    assert network.p.abs().max() < 0.02


@pytest.mark.parametrize("name", METHODS)
def test_it_says_truly_whether_it_differentiates_and_has_a_target(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """StepGradient and the trainer rely on both attributes."""
    method, calls = objective(name), []
    derivative = FlowMap.network_derivative
    monkeypatch.setattr(FlowMap, "network_derivative", lambda *a: calls.append(1) or derivative(*a))
    assert method(torch.randn(8, 1).double(), torch.full((8,), -1)).loss.isfinite()
    assert bool(calls) == method.has_tangents
    assert (method.target is not None) == method.has_target


@pytest.mark.parametrize("name", METHODS)
def test_the_step_reports_its_parts(name: str) -> None:
    method = objective(name)
    step = method(torch.randn(64, 1).double(), torch.full((64,), -1))
    torch.testing.assert_close(sum(step.terms.values()), step.loss.detach())
    assert not any(value.requires_grad for value in step.terms.values())
    (samples,) = step.samples
    assert bool((samples.t >= samples.s).all())
    torch.testing.assert_close(samples.figures["loss"].mean(), step.loss.detach())
    same = float((samples.t == samples.s).double().mean())
    assert same == pytest.approx(method.equal, abs=0.2)


@pytest.mark.parametrize("name", METHODS)
def test_guidance_enters_the_target(flow: FlowMap, name: str) -> None:
    """With w = 2 the target's v is 2 v - u(x_t, t, null, 1) of the teacher; without guidance it is v."""
    method = METHODS[name](flow)
    method.guidance, method.label_dropout = FixedGuidance(2.0), 0.0
    x0, label = torch.randn(4, 2, 4, 4).double(), torch.tensor([0, 1, 2, 0])
    method.seed(3)
    plain_method = METHODS[name](flow)
    plain_method.guidance, plain_method.label_dropout = FixedGuidance(1.0), 0.0
    plain_method.seed(3)
    guided, plain = (m.draws(x0, label, Part(0, 4, 4)) for m in (method, plain_method))
    torch.testing.assert_close(guided.x_t, plain.x_t)
    unconditional = flow.unconditional_velocity(guided.x_t, guided.t)
    torch.testing.assert_close(guided.v, (2 * plain.v - unconditional).detach())
    assert not guided.v.requires_grad


def test_mixing_of_mean_flow_is_the_equation_of_the_paper(flow: FlowMap) -> None:
    kappa, w = 0.6, torch.tensor([2.0, 3.0, 1.5, 2.5]).double()
    method = MeanFlow(flow, guidance=UniformGuidance(1, 3), mixing=kappa)
    x, v, t = torch.randn(4, 2, 4, 4).double(), torch.randn(4, 2, 4, 4).double(), torch.rand(4).double()
    label, omega = torch.tensor([0, 1, 2, 0]), (1 - kappa) * w[:, None, None, None]
    with torch.no_grad():
        own, null = flow.velocity(x, t, label, w), flow.unconditional_velocity(x, t)
    expected = omega * v + kappa * own + (1 - omega - kappa) * null
    torch.testing.assert_close(method.guided(x, v, t, label, w), expected)


@pytest.mark.parametrize(("options", "power"), [({"power": 0.0}, 0.0), ({"power": 0.5}, 0.5), ({}, 1.0)])
def test_mean_flow_loss_by_differences_along_the_path(flow: FlowMap, options: dict, power: float) -> None:
    """dA/dt by central differences of A(x + h v, t + h, s); the adaptive weight has no gradient, and p = 1."""
    method = MeanFlow(flow, **options)
    x, v, t = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 4, 4).double(), torch.tensor([0.9, 0.5, 0.7]).double()
    s, label, w, h = 0.4 * t, torch.tensor([0, 1, -1]), torch.tensor([1.0, 2.0, 1.5]).double(), 1e-5
    with torch.no_grad():
        ends = [flow.average_velocity(x + d * v, t + d, s, label, w) for d in (h, -h)]
        target = v - (t - s)[:, None, None, None] * (ends[0] - ends[1]) / (2 * h)
    square = (flow.average_velocity(x, t, s, label, w) - target).square().sum((1, 2, 3))
    expected = square / (square.detach() + 1e-3) ** power
    losses = method.losses(Draws(x, v, t, s, s, label, w))
    torch.testing.assert_close(losses.detach(), expected.detach(), rtol=1e-6, atol=0)
    parameters = list(flow.parameters())
    gradients = (torch.autograd.grad(value.sum(), parameters) for value in (losses, expected))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_dyadic_jumps() -> None:
    t, s = DyadicJumps()(4000, torch.Generator().manual_seed(0))
    gap = t - s
    assert sorted(gap.unique().tolist()) == [2.0**-k for k in range(6, -1, -1)]
    assert bool(((t / gap) == (t / gap).round()).all())
    assert bool((s >= 0).all() and (t <= 1).all())
    assert len(t[gap == 1 / 64].unique()) == 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda flow: SplitMeanFlow(flow, equal=1.5), r"\[0, 1\], got 1\.5"),
        (lambda flow: MeanFlow(flow, mixing=1.0), r"kappa.*got 1\.0"),
        (lambda flow: MeanFlow(flow, mixing=0.5), r"\(kappa\) 0\.5 is a part of guidance.*give a guidance"),
        (lambda flow: AlphaFlow(flow, begin=0.5, end=0.5), "begin < end"),
        (lambda flow: ModularMeanFlow(flow, warmup=0.0), r"warmup must lie in \(0, 1\]"),
    ],
)
def test_bad_options_are_named(flow: FlowMap, make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(flow)


def test_improved_mean_flow_differentiates_along_its_own_velocity(flow: FlowMap) -> None:
    """By central differences of A(x + h u, t + h, s): a tangent v gives the same mean gradient, and more variance."""
    x, v, t = (
        torch.randn(3, 2, 4, 4).double(),
        torch.randn(3, 2, 4, 4).double(),
        torch.tensor([0.9, 0.5, 0.7]).double(),
    )
    s, label, w, h = 0.4 * t, torch.tensor([0, 1, -1]), torch.tensor([1.0, 2.0, 1.5]).double(), 1e-5
    with torch.no_grad():
        u = flow.velocity(x, t, label, w)
        ends = [flow.average_velocity(x + d * u, t + d, s, label, w) for d in (h, -h)]
        compound = flow.average_velocity(x, t, s, label, w)
        compound = compound + (t - s)[:, None, None, None] * (ends[0] - ends[1]) / (2 * h)
        expected = (compound - v).square().mean((1, 2, 3)) / w**2
    losses = ImprovedMeanFlow(flow).losses(Draws(x, v, t, s, s, label, w)).detach()
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("make", "biased"),
    [
        (lambda flow: MeanFlow(flow, power=1.0), True),
        (ConsistencyTraining, True),
        (lambda flow: MeanFlow(flow, power=0.0), False),
        (ImprovedMeanFlow, False),
    ],
)
def test_dividing_a_noisy_error_by_its_size_shifts_what_is_learned(make, biased: bool) -> None:
    """v about u no longer symmetric, its mean still u: two thirds a little below, one third far above."""
    draws = nodes(noise=3)
    middle = draws.v.view(-1, 3, 6, 1)[:, 1:2]
    size = (draws.v.view(-1, 3, 6, 1) - middle).abs().amax(1, keepdim=True)
    skewed = middle + size * torch.tensor([-1.0, -1.0, 2.0]).double()[:, None, None]
    torch.testing.assert_close(skewed.mean(1), middle[:, 0])
    method = make(FlowMap(GaussianFamily(1)))
    losses = method.losses(draws._replace(v=skewed.reshape(draws.v.shape)))
    (gradient,) = torch.autograd.grad(losses.mean(), method.flow.network.p)
    assert (gradient.abs().max() > 0.01) == biased
    assert biased or gradient.abs().max() < 1e-12
