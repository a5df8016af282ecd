import itertools

import pytest
import torch
from torch import Tensor

from tests.conftest import randomise
from tests.objectives.gaussian_flow import DEVIATION, MEAN, GaussianFamily
from tvmatch.flow_map import FlowMap
from tvmatch.guidance import UniformGuidance
from tvmatch.networks.dit import DiT, DiTConfig
from tvmatch.objectives import InductiveMomentMatching, Part
from tvmatch.objectives.few_step import Draws
from tvmatch.objectives.inductive_moment_matching import (
    GroupedJumps,
    UniformJumps,
    earlier_time,
    laplace_kernel,
    time_weight,
)
from tvmatch.times import TruncatedGap

SMALL = DiTConfig(8, 1, num_classes=3, patch_size=4, hidden_size=32, depth=2, num_heads=2)
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
    return InductiveMomentMatching(FlowMap(GaussianFamily(1)), group=size, halvings=8)


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
    t, s = GroupedJumps(UniformJumps(), 4)(4000, torch.Generator().manual_seed(0))
    assert bool((t.view(-1, 4) == t.view(-1, 4)[:, :1]).all() and (s.view(-1, 4) == s.view(-1, 4)[:, :1]).all())
    assert bool((s <= t).all())
    assert len(t.unique()) == 1000
    assert float(t.mean()) == pytest.approx(0.497, abs=0.03)
    t, s = InductiveMomentMatching(FlowMap(GaussianFamily(1)), TruncatedGap()).jumps(40, torch.Generator())
    assert bool((t.view(-1, 4) == t.view(-1, 4)[:, :1]).all() and (s.view(-1, 4) == s.view(-1, 4)[:, :1]).all())
    method = InductiveMomentMatching(FlowMap(GaussianFamily(1)), guidance=UniformGuidance(1, 3), label_dropout=0.0)
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


def test_groups_are_of_one_class_and_samples_of_no_class_meet_as_they_come() -> None:
    """128 samples of ten classes, in whatever order: nearly all pairs of a group count, where of groups as they come 9%
    of the pairs of two samples would; data goes with its class, and one w with a group."""
    method = InductiveMomentMatching(FlowMap(GaussianFamily(1)), guidance=UniformGuidance(1, 3), label_dropout=0.1)
    x0 = torch.arange(128).double()[:, None]
    label = torch.randint(10, (128,), generator=torch.Generator().manual_seed(0))
    method.seed(1)
    found, classes, w = method.conditions(x0, label, Part(0, 128, 128))
    origin, kept = found[:, 0].long(), classes >= 0
    groups = classes.view(-1, 4)
    same = groups[:, :, None] == groups[:, None]
    assert float(same[:, ~torch.eye(4).bool()].double().mean()) > 0.75
    assert torch.equal(origin.sort().values, torch.arange(128))
    assert torch.equal(label[origin[kept]], classes[kept])
    assert 4 <= int((~kept).sum()) <= 25
    assert bool((origin[~kept].diff() > 0).all())  # those without a class keep their order, whatever class they had
    assert len(label[origin[~kept]].unique()) > 3
    assert bool((w[~kept] == 1).all())
    assert all(len(scale[here].unique()) <= 1 for scale, here in zip(w.view(-1, 4), kept.view(-1, 4), strict=True))
    assert len(w[kept].unique()) > 20


def test_what_is_left_over_of_a_class_is_a_smaller_group(flow: FlowMap) -> None:
    """3 and 5 samples of two classes in groups of 4: the loss is that of groups of 3, 1 and 4, however they arrive."""
    x, v = torch.randn(2, 8, 2, 4, 4).double().unbind()
    t, label = torch.full((8,), 0.8).double(), torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    draws = Draws(x, v, t, 0.5 * t, t, label, torch.ones(8).double())
    losses = InductiveMomentMatching(flow, group=4).losses(draws)
    for first, last in ((0, 3), (3, 4), (4, 8)):
        part = Draws(*(value[first:last] for value in draws))
        alone = InductiveMomentMatching(flow, group=last - first).losses(part)
        torch.testing.assert_close(losses[first:last], alone)


def test_towards_noise_the_step_is_what_16_bits_resolve() -> None:
    """At least 1/32 of the jump where blocks compute in bfloat16; nothing that is felt in float32, as in the paper."""
    flow = FlowMap(randomise(DiT(SMALL)))
    method = InductiveMomentMatching(flow)
    t, s = torch.tensor([0.98, 0.7, 0.3]), torch.tensor([0.0, 0.5, 0.0])
    assert method.smallest_step < 1e-6
    assert method.notice() is None
    torch.testing.assert_close(earlier_time(t, s, 12, method.smallest_step), earlier_time(t, s, 12))
    flow.network.set_compute_dtype(torch.bfloat16)
    assert method.smallest_step == 1 / 32
    assert method.notice() is not None
    r = earlier_time(t, s, 12, method.smallest_step)
    torch.testing.assert_close(
        t - r, torch.stack([0.98 / 32 * t.new_ones(()), 0.2 / 32 * t.new_ones(()), (t - earlier_time(t, s, 12))[2]])
    )
    assert InductiveMomentMatching(flow, smallest_step=0.0).smallest_step == 0
    assert float(earlier_time(torch.tensor(0.5), torch.tensor(0.4999), 12, 1.0)) == pytest.approx(0.4999)
    with pytest.raises(ValueError, match=r"share of the jump in \[0, 1\], got 2"):
        InductiveMomentMatching(flow, smallest_step=2.0)


@pytest.mark.parametrize("smallest_step", [None, 0.0])
def test_blocks_in_bfloat16_keep_the_direction_of_what_is_learned(smallest_step: float | None) -> None:
    """y_t - y_r at t = 0.98, by blocks in bfloat16 and in float32: with the paper's r it is rounding."""
    flow = FlowMap(randomise(DiT(SMALL)))
    x, v = torch.randn(2, 64, 1, 8, 8)
    t, label, w = torch.full((64,), 0.98), torch.zeros(64).long(), torch.ones(64)
    s, found = 0.3 * t, []
    method = InductiveMomentMatching(flow, smallest_step=smallest_step)
    for dtype in (torch.bfloat16, None):
        flow.network.set_compute_dtype(dtype)
        if dtype is not None:
            r = earlier_time(t, s, 12, method.smallest_step)
        with torch.no_grad():
            ends = flow.jump(x, t, s, label, w), flow.jump(x - (t - r)[:, None, None, None] * v, r, s, label, w)
        found.append((ends[0] - ends[1]).flatten(1))
    cosine = float(torch.nn.functional.cosine_similarity(*found).mean())
    assert cosine > 0.95 if smallest_step is None else cosine < 0.5
