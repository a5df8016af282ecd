import itertools

import pytest
import torch
from torch import Tensor

from tests.objectives.test_methods import DEVIATION, MEAN, Perturbed
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import UniformGuidance
from tvmatch.objectives import InductiveMomentMatching, Part
from tvmatch.objectives.few_step import Draws
from tvmatch.objectives.inductive_moment_matching import (
    GroupedJumps,
    earlier_time,
    laplace_kernel,
    time_weight,
)

TIMES = ((0.9, 0.0), (0.8, 0.3), (0.6, 0.1), (0.4, 0.2), (0.3, 0.0), (0.12, 0.0))


def gaussian_groups(size: int) -> Draws:
    """Six groups, each a Gaussian sample of data and noise of good quality (a lattice through both quantiles)."""
    place = torch.arange(size).double()
    uniform = (place + 0.5) / size, ((place * 0.6180339887498949) + 0.25) % 1
    x0, e = (torch.special.ndtri(u) for u in uniform)
    x0 = (MEAN + DEVIATION * x0).repeat(len(TIMES))
    e = e.repeat(len(TIMES))
    t, s = torch.tensor(TIMES).double().repeat_interleave(size, 0).unbind(1)
    x_t = (1 - t) * x0 + t * e
    label = torch.full((len(t),), -1)
    return Draws(x_t[:, None], (e - x0)[:, None], t, s, t, label, torch.ones_like(t))


def matching(size: int) -> InductiveMomentMatching:
    return InductiveMomentMatching(FlowMap(Perturbed()), group=size, halvings=8)


def test_the_loss_is_the_double_sum_of_the_paper(flow: FlowMap) -> None:
    """Written out pair by pair; where two classes meet in a group, each of them is a group of its own."""
    method = InductiveMomentMatching(flow, group=3)
    x, v = torch.randn(2, 6, 2, 4, 4).double().unbind()
    t = torch.tensor([0.9] * 3 + [0.5] * 3).double()
    s, label = 0.3 * t, torch.tensor([0, 1, 0, 2, 2, 2])
    w = torch.tensor([1.0] * 3 + [2.0] * 3).double()
    r = earlier_time(t, s, 12)
    y_t = flow.jump(x, t, s, label, w)
    y_r = flow.jump(x - (t - r)[:, None, None, None] * v, r, s, label, w)

    def kernel(a: Tensor, b: Tensor, gap: Tensor) -> Tensor:
        return torch.exp(-(a - b).norm().clamp(min=1e-8) / gap / a.numel())

    expected = torch.zeros(6).double()
    for first in (0, 3):
        for j, k in itertools.product(range(first, first + 3), repeat=2):
            if label[j] == label[k]:
                gap = (t - s)[j]
                value = kernel(y_t[j], y_t[k], gap) + kernel(y_r[j], y_r[k], gap) - 2 * kernel(y_t[j], y_r[k], gap)
                expected[j] += time_weight(t[j]) * value / (label[first : first + 3] == label[j]).sum()
    losses = method.losses(Draws(x, v, t, s, t, label, w))
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-12)


def test_the_earlier_time_is_one_step_of_the_noise_ratio() -> None:
    t = torch.tensor([0.99, 0.9, 0.5, 0.1, 0.02, 0.9]).double()
    s = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.89999]).double()
    r = earlier_time(t, s, 12)
    step = (0.994 / 0.006) / 4096
    difference = t / (1 - t) - r / (1 - r)
    torch.testing.assert_close(difference[:4], torch.full((4,), step).double())
    assert float(r[4]) == 0  # the whole of a short way
    assert float(r[5]) == pytest.approx(0.89999)
    assert bool((r < t).all() and (r >= s).all())
    assert bool((earlier_time(torch.ones(1), torch.zeros(1), 12) <= 1).all())


def test_the_time_weight_is_that_of_the_paper() -> None:
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64).requires_grad_()
    ratio = torch.log(((1 - t) / t).square())  # log signal-to-noise
    (slope,) = torch.autograd.grad(ratio.sum(), t)
    expected = 0.5 * torch.sigmoid(4 - ratio) * -slope * (1 - t) / ((1 - t).square() + t.square())
    torch.testing.assert_close(time_weight(t), expected)
    assert torch.isfinite(time_weight(torch.tensor([1e-4, 1.0]))).all()


def test_points_that_coincide_have_no_gradient() -> None:
    y = torch.zeros(1, 2, 3, requires_grad=True)
    laplace_kernel(y, y, torch.ones(1)).sum().backward()
    assert torch.equal(y.grad, torch.zeros(1, 2, 3))


def test_groups_share_times_and_guidance() -> None:
    t, s = GroupedJumps(4)(4000, torch.Generator().manual_seed(0))
    assert bool((t.view(-1, 4) == t.view(-1, 4)[:, :1]).all() and (s.view(-1, 4) == s.view(-1, 4)[:, :1]).all())
    assert bool((s <= t).all())
    assert len(t.unique()) == 1000
    assert float(t.mean()) == pytest.approx(0.497, abs=0.03)
    method = InductiveMomentMatching(FlowMap(Perturbed()), guidance=UniformGuidance(1, 3), label_dropout=0.0)
    draws = method.draws(torch.randn(40, 1).double(), torch.full((40,), -1), Part(0, 40, 40))
    assert bool((draws.w == 1).all())  # no class, no guidance
    w = method.guidance(40, torch.Generator().manual_seed(0)).view(10, 4)
    assert bool((w == w[:, :1]).all())
    assert len(w.unique()) == 10


def test_at_the_exact_map_the_gradient_is_small() -> None:
    """Small, and the smaller the larger the groups: a sample is not the distribution, and in the pair of a point with
    itself v stands for u."""
    method, draws = matching(600), gaussian_groups(600)
    losses = method.losses(draws)
    (gradient,) = torch.autograd.grad(losses.mean(), method.flow.network.p)
    with torch.no_grad():
        method.flow.network.p += 0.1
    (other,) = torch.autograd.grad(method.losses(draws).mean(), method.flow.network.p)
    assert gradient.norm() < 0.02 * other.norm()


def test_it_trains_to_the_exact_map() -> None:
    method, draws = matching(100), gaussian_groups(100)
    network = method.flow.network
    with torch.no_grad():
        network.p.copy_(torch.tensor([0.3, -0.4, 0.3, 0.3, -0.2]))
    optimizer = torch.optim.Adam([network.p], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        method.losses(draws).mean().backward()
        optimizer.step()
        schedule.step()
    assert network.p.detach().abs().max() < 0.04  # 0.019 with 200 in a group and 800 steps


def test_groups_have_at_least_one_sample(flow: FlowMap) -> None:
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        InductiveMomentMatching(flow, group=0)
