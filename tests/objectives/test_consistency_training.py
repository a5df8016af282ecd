import math

import pytest
import torch
from torch.autograd import grad

from tests.objectives.gaussian_flow import GaussianFamily
from tests.objectives.test_methods import nodes
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import FixedGuidance
from tvmatch.objectives import ConsistencyTraining
from tvmatch.objectives.consistency_training import TimeWeight
from tvmatch.objectives.few_step import Draws


def some_draws() -> Draws:
    x, v = torch.randn(2, 3, 2, 4, 4).double().unbind()
    t = torch.tensor([0.9, 0.5, 0.7]).double()
    w = torch.tensor([1.0, 2.0, 1.5]).double()
    return Draws(x, v, t, torch.zeros_like(t), t, torch.tensor([0, 1, -1]), w)


@pytest.mark.parametrize("progress", [0.0, 0.05, 1.0])
def test_gradient_follows_the_normalised_slope_of_the_consistency_function(flow: FlowMap, progress: float) -> None:
    """f = x - t A, its slope along the path by central differences, and by the chain rule where the warm-up weakens
    the derivative of A."""
    method, draws, h = ConsistencyTraining(flow, warmup=0.1, offset=0.1), some_draws(), 1e-5
    method.advance(progress)
    x, v, t, s, _, label, w = draws

    def average(d: float) -> torch.Tensor:
        return flow.average_velocity(x + d * v, t + d, s, label, w).detach()

    def consistency(d: float) -> torch.Tensor:
        return x + d * v - (t + d)[:, None, None, None] * average(d)

    rise = min(progress / 0.1, 1)
    whole = (consistency(h) - consistency(-h)) / (2 * h)
    frozen = v - average(0)
    g = ((1 - rise) * frozen + rise * whole) / w[:, None, None, None]
    g = g / (g.square().mean((1, 2, 3), keepdim=True).sqrt() + 0.1)
    output = flow.network(x, t, s, label, w)
    expected = grad(-2 * (output * g).mean((1, 2, 3)).sum(), flow.network.patches.weight)[0]
    losses = method.losses(draws)
    torch.testing.assert_close(losses.detach(), g.square().mean((1, 2, 3)), rtol=1e-6, atol=1e-9)
    found = grad(losses.sum(), flow.network.patches.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_the_learned_weight_is_best_at_the_inverse_of_the_error() -> None:
    method, draws = ConsistencyTraining(FlowMap(GaussianFamily(1))), nodes(noise=4)
    draws = draws._replace(s=torch.zeros_like(draws.s))
    with torch.no_grad():
        method.flow.network.p += 0.2
    plain = method.losses(draws).detach()
    coefficients = method.time_weight.coefficients
    optimizer = torch.optim.LBFGS([coefficients], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = method.losses(draws).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    for time in draws.t.unique():
        here = draws.t == time
        phi = method.time_weight(time[None]).detach()
        torch.testing.assert_close(phi.exp()[0], 1 / plain[here].mean(), rtol=1e-3, atol=0)


def test_the_weight_is_a_cosine_series() -> None:
    weight, t = TimeWeight(3), torch.tensor([0.0, 0.3, 1.0])
    assert not weight(t).any()
    with torch.no_grad():
        weight.coefficients.copy_(torch.tensor([1.0, 2.0, 3.0]))
    expected = [1 + 2 * math.cos(math.pi * x) + 3 * math.cos(2 * math.pi * x) for x in t.tolist()]
    torch.testing.assert_close(weight(t), torch.tensor(expected))


def test_it_learns_jumps_to_the_data_and_with_guidance_a_quarter_of_velocity(flow: FlowMap) -> None:
    x0, label = torch.randn(400, 2, 4, 4).double(), torch.zeros(400).long()
    for guidance, share in ((FixedGuidance(1.0), 0.0), (FixedGuidance(2.0), 0.25)):
        samples = ConsistencyTraining(flow, guidance=guidance)(x0, label).samples[0]
        jumps = samples.s < samples.t
        assert not samples.s[jumps].any()
        assert 1 - float(jumps.double().mean()) == pytest.approx(share, abs=0.06)


def test_its_own_weight_is_trained(flow: FlowMap) -> None:
    trained = ConsistencyTraining(flow).trained()
    assert [name for name in trained if not name.startswith("network.")] == ["time_weight.coefficients"]
    assert len(trained) == len(list(flow.parameters())) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 0.0}, "warmup must lie in"),
        ({"offset": 0.0}, "offset above 0"),
        ({"guidance": FixedGuidance(2.0), "equal": 0.0}, "needs samples with s = t"),
    ],
)
def test_bad_options_are_named(flow: FlowMap, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConsistencyTraining(flow, **options)
