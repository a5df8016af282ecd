"""Each loss again, one sample at a time, from the equation of its paper, plain network calls and central differences;
and the share of samples with s = t and the times that each method draws."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.conftest import randomise
from tests.objectives.gaussian_flow import GaussianFamily, gaussian_data
from tvmatch.flow_map import FlowMap
from tvmatch.networks.dit import DiT
from tvmatch.objectives import (
    AlphaFlow,
    ConsistencyTraining,
    FewStepObjective,
    ImprovedMeanFlow,
    InductiveMomentMatching,
    LagrangianSelfDistillation,
    MeanFlow,
    ModularMeanFlow,
    Objective,
    Shortcut,
    SplitMeanFlow,
    TerminalVelocityMatching,
)
from tvmatch.objectives.few_step import Draws
from tvmatch.objectives.inductive_moment_matching import LATEST
from tvmatch.times import LogitNormal, TruncatedGap

STEP = 1e-5  # of the central differences
Average = Callable[[Tensor, Tensor, Tensor], Tensor]  # A(x, t, s) of one sample, with its class and its w


def five_draws() -> Draws:
    """Jumps of several lengths, one of them 1/64, and two samples with s = t; w from 1 to 3, a class each or none."""
    x, v = torch.randn(2, 6, 2, 4, 4).double().unbind()
    t = torch.tensor([0.9, 0.5, 0.7, 0.40625, 0.6, 0.3]).double()
    s = torch.tensor([0.2, 0.1, 0.35, 0.390625, 0.6, 0.3]).double()
    share = torch.tensor([0.3, 0.8, 0.5, 0.5, 0.4, 0.6]).double()
    w = torch.tensor([2.0, 1.5, 1.0, 2.5, 3.0, 1.25]).double()
    return Draws(x, v, t, s, share, torch.tensor([0, 1, -1, 2, 2, 0]), w)


def split(a: Average, teacher: Average, x: Tensor, v: Tensor, t: Tensor, s: Tensor, share: Tensor) -> Tensor:
    middle = (1 - share) * t + share * s
    first = a(x, t, middle)
    return a(x, t, s) - ((1 - share) * a(x - (t - middle) * first, middle, s) + share * first)


def shortcut(a: Average, teacher: Average, x: Tensor, v: Tensor, t: Tensor, s: Tensor, share: Tensor) -> Tensor:
    middle = (t + s) / 2
    euler = float(t - s) <= 1 / 64  # its halves of 1/128 are Euler steps
    first = teacher(x, t, t if euler else middle)
    second = teacher(x - (t - middle) * first, middle, middle if euler else s)
    return a(x, t, s) - (first + second) / 2


def alpha_flow(a: Average, teacher: Average, x: Tensor, v: Tensor, t: Tensor, s: Tensor, share: Tensor) -> Tensor:
    alpha = 0.1
    middle = alpha * s + (1 - alpha) * t
    target = alpha * v + (1 - alpha) * a(x - (t - middle) * v, middle, s)
    return (a(x, t, s) - target) / alpha**0.5


def lagrangian(a: Average, teacher: Average, x: Tensor, v: Tensor, t: Tensor, s: Tensor, share: Tensor) -> Tensor:
    end = [x - (t - time) * a(x, t, time) for time in (s - STEP, s, s + STEP)]
    return (end[2] - end[0]) / (2 * STEP) - a(end[1], s, s)


def modular(a: Average, teacher: Average, x: Tensor, v: Tensor, t: Tensor, s: Tensor, share: Tensor) -> Tensor:
    slope = (a(x + STEP * v, t + STEP, s) - a(x - STEP * v, t - STEP, s)) / (2 * STEP)
    return a(x, t, s) + (t - s) * slope - v


EQUATIONS = {
    "split-mean-flow": (SplitMeanFlow, split),
    "shortcut": (Shortcut, shortcut),
    "alpha-flow": (lambda flow: AlphaFlow(flow, smallest=0.1), alpha_flow),
    "lagrangian": (LagrangianSelfDistillation, lagrangian),
    "modular-mean-flow": (ModularMeanFlow, modular),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_loss_of_each_sample(flow: FlowMap, small_config, name: str) -> None:
    make, equation = EQUATIONS[name]
    method, draws = make(flow), five_draws()
    if method.target is not None:  # a teacher of other weights, so that it is felt which of the two is asked
        method.target = FlowMap(randomise(DiT(small_config)).double())
    losses = method.losses(draws).detach()
    for i in range(6):
        x, v, t, s, share, label, w = (value[i : i + 1] for value in draws)

        def average(network_of: FlowMap, x: Tensor, t: Tensor, s: Tensor, label=label, w=w) -> Tensor:
            with torch.no_grad():
                return w * network_of.network(x, t, s, label, w)

        def own(*point: Tensor, average=average) -> Tensor:
            return average(method.flow, *point)

        def teacher(*point: Tensor, average=average) -> Tensor:
            return average(method.teacher, *point)

        error = own(x, t, s) - v if bool(s == t) else equation(own, teacher, x, v, t, s, share)
        torch.testing.assert_close(losses[i], error.square().mean() / w[0] ** 2, rtol=1e-6, atol=1e-9)


def drawn(make: Callable[[FlowMap], FewStepObjective]) -> tuple[Tensor, Tensor]:
    """t and s of 8,000 samples, as `forward` draws them."""
    method = make(FlowMap(GaussianFamily(1)))
    method.seed(0)
    x0 = gaussian_data(8000, 1, torch.Generator().manual_seed(0))
    samples = method(x0, torch.full((8000,), -1)).samples[0]
    return samples.t, samples.s


def logit_moments(times: Tensor) -> tuple[float, float]:
    return float(torch.logit(times).mean()), float(torch.logit(times).std())


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (MeanFlow, 0.75),
        (ImprovedMeanFlow, 0.5),
        (SplitMeanFlow, 0.5),
        (AlphaFlow, 0.5),
        (LagrangianSelfDistillation, 0.75),
        (ModularMeanFlow, 0.5),
    ],
)
def test_shares_and_logit_normal_times(make: type[FewStepObjective], share: float) -> None:
    """Two times, logit-normal (-0.4, 1), in order; where s = t it is the later of the two."""
    t, s = drawn(make)
    same = t == s
    assert float(same.double().mean()) == pytest.approx(share, abs=0.02)
    assert logit_moments(torch.cat([t[~same], s[~same]])) == pytest.approx((-0.4, 1.0), abs=0.06)
    assert bool((s <= t).all())
    assert logit_moments(t[same])[0] == pytest.approx(-0.4 + torch.pi**-0.5, abs=0.06)


def test_shares_and_times_of_shortcut_models() -> None:
    t, s = drawn(Shortcut)
    same = t == s
    assert float(same.double().mean()) == pytest.approx(0.75, abs=0.02)
    lengths = torch.log2(t[~same] - s[~same])
    assert lengths.unique().tolist() == [-6, -5, -4, -3, -2, -1, 0]
    assert float(lengths.mean()) == pytest.approx(-3, abs=0.15)
    assert float(t[same].mean()) == pytest.approx(0.5, abs=0.02)
    assert float(t[same].std()) == pytest.approx(12**-0.5, abs=0.02)


@pytest.mark.parametrize(("deviation", "mean"), [(1.0, -0.307), (0.5, -1.0)])
def test_times_of_consistency_training_follow_the_scale_of_the_data(deviation: float, mean: float) -> None:
    """ln of noise over data, t / (1 - t) / d, is N(-1, 1.4^2) - ln(1/2), as in its paper."""
    t, s = drawn(lambda flow: ConsistencyTraining(flow, data_deviation=deviation))
    assert not s.any()
    assert logit_moments(t) == pytest.approx((mean, 1.4), abs=0.05)
    with pytest.raises(ValueError, match="deviation must be positive"):
        ConsistencyTraining(FlowMap(GaussianFamily(1)), data_deviation=0.0)


CONSTANTS = [  # what the papers fix, each by the name that it has here
    (TerminalVelocityMatching, {"jumps": TruncatedGap(-0.8, 1.0, -0.4, 1.0), "times": LogitNormal(-0.4, 1.0)}),
    (MeanFlow, {"power": 1.0, "offset": 1e-3, "mixing": 0.0}),
    (AlphaFlow, {"begin": 0.0, "end": 0.8, "smallest": 0.005}),
    (ModularMeanFlow, {"warmup": 0.5, "largest": 1.0}),
    (ConsistencyTraining, {"warmup": 0.1, "offset": 0.1}),
    (InductiveMomentMatching, {"group": 4, "halvings": 12}),
]


@pytest.mark.parametrize(("make", "constants"), CONSTANTS)
def test_constants(make: type[Objective], constants: dict) -> None:
    method = make(FlowMap(GaussianFamily(1)))
    assert {name: getattr(method, name) for name in constants} == constants
    assert method.label_dropout == 0.1


def test_times_of_moment_matching() -> None:
    t, s = drawn(InductiveMomentMatching)
    assert bool((s < t).all())
    for value in (t / LATEST, s / t):
        assert float(value.mean()) == pytest.approx(0.5, abs=0.03)
        assert float(value.std()) == pytest.approx(12**-0.5, abs=0.03)
