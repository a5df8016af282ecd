"""alpha-Flow and Modular MeanFlow, which have a dial that a curriculum turns, on the nodes of `test_methods.py`."""

import math

import pytest
import torch
from torch import Tensor

from tests.objectives.gaussian_flow import GaussianFamily
from tests.objectives.test_methods import expected_loss, nodes
from tvmatch.flow_map import FlowMap
from tvmatch.objectives import AlphaFlow, MeanFlow, ModularMeanFlow
from tvmatch.objectives.few_step import Draws


def test_alpha_falls_with_the_progress_of_the_training() -> None:
    method = AlphaFlow(FlowMap(GaussianFamily(1)), begin=0.2, end=0.6)
    assert float(method.alpha()) == pytest.approx(0.005)  # nobody has called advance: the curriculum is over
    seen = []
    for progress in (0.0, 0.2, 0.4, 0.6, 1.0):
        method.advance(progress)
        seen.append(float(method.alpha()))
    assert seen[0] == pytest.approx(1)
    assert seen[1] == pytest.approx(1 / (1 + math.exp(-12.5)))
    assert seen[2] == pytest.approx(0.5)
    assert seen[3:] == [pytest.approx(0.005)] * 2


def test_alpha_flow_at_one_is_trajectory_flow_matching_and_near_zero_mean_flow() -> None:
    draws = nodes(noise=4)
    flow = FlowMap(GaussianFamily(1))
    with torch.no_grad():
        flow.network.p += 0.2
    whole = AlphaFlow(flow, smallest=1.0).losses(draws)
    torch.testing.assert_close(whole, (flow.average_velocity(*draws[:1], *draws[2:4], *draws[5:]) - draws.v)[:, 0] ** 2)
    gradients = [
        torch.autograd.grad(method.losses(draws).mean(), flow.network.p)[0]
        for method in (AlphaFlow(flow, smallest=1e-6), MeanFlow(flow, power=0.0))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_modular_mean_flow_follows_its_dial() -> None:
    """At l = 0 it is MeanFlow's. At l = 1 it is the whole derivative of the loss, which does not vanish at the exact
    map: the network can lower the variance that v brings into the JVP. The paper's curriculum ends there."""
    draws, flow = nodes(noise=4), FlowMap(GaussianFamily(1))
    method = ModularMeanFlow(flow, warmup=0.5)
    gradients = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        method.advance(progress)
        gradients.append(torch.autograd.grad(expected_loss(method, draws), flow.network.p)[0])
    assert gradients[0].abs().max() < 1e-12
    assert gradients[2].abs().max() > 0.01
    torch.testing.assert_close(gradients[1], gradients[2] / 2)
    torch.testing.assert_close(gradients[2], gradients[3])


def test_alpha_flow_divides_no_rounding_by_alpha_where_s_is_t(flow: FlowMap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of one network may round differently (compiled with and without gradient): where s = t the loss is
    |A - v|^2 / w^2 all the same, with the gradient that the method's equation has there."""
    x, v = torch.randn(2, 2, 2, 4, 4).double().unbind()
    t, w = torch.tensor([0.6, 0.3]).double(), torch.tensor([2.0, 1.5]).double()
    draws = Draws(x, v, t, t, t, torch.tensor([0, 1]), w)
    exact = flow.average_velocity(x, t, t, draws.label, w).detach()
    plain = flow.average_velocity

    def rounded(*arguments: Tensor) -> Tensor:
        return plain(*arguments) + (0.0 if torch.is_grad_enabled() else 0.01)

    monkeypatch.setattr(flow, "average_velocity", rounded)
    losses = AlphaFlow(flow).losses(draws)
    torch.testing.assert_close(losses.detach(), (exact - v).square().mean((1, 2, 3)) / w**2)
    (found,) = torch.autograd.grad(losses.sum(), flow.network.patches.weight)
    monkeypatch.undo()
    alpha, average = 0.005, flow.average_velocity(x, t, t, draws.label, w)
    equation = ((average - alpha * v - (1 - alpha) * exact).square().mean((1, 2, 3)) / w**2 / alpha).sum()
    torch.testing.assert_close(found, torch.autograd.grad(equation, flow.network.patches.weight)[0])


def test_what_the_whole_gradient_adds_to_modular_mean_flow() -> None:
    """Its loss is that along u, the mean of v, plus the mean of |J (v - u)|^2 with J the Jacobian of the jump: it draws
    the map towards a constant, away from the flow map and its spread."""
    method, draws, h = ModularMeanFlow(FlowMap(GaussianFamily(1))), nodes(noise=4), 1e-5
    with torch.no_grad():
        method.flow.network.p += 0.2
        mean = draws.v.view(7, 4, 6, 1).mean(1, keepdim=True).expand(7, 4, 6, 1).reshape(draws.v.shape)
        x, _, t, s, _, label, w = draws
        jacobian = (method.flow.jump(x + h, t, s, label, w) - method.flow.jump(x - h, t, s, label, w)) / (2 * h)
        spread = (jacobian * (draws.v - mean)).square()[:, 0]
        along_mean = method.losses(draws._replace(v=mean))
        torch.testing.assert_close(method.losses(draws).mean(), (along_mean + spread).mean(), rtol=1e-8, atol=0)
        assert float(spread.mean()) > 0.1
