"""Muon's step against the singular value decomposition and against its equations, and what it must leave alone."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tvmatch.networks.presets import build_network, network_config
from tvmatch.training.bench import StepCase, forward_flops, forward_passes
from tvmatch.training.muon import ITERATIONS, Muon, orthogonal


def exact(matrices: Tensor) -> Tensor:
    """U V^T where U S V^T is the matrix."""
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", [(2, 24, 96), (2, 96, 24), (1, 40, 80)])
def test_the_singular_vectors_stay_and_the_values_come_near_1(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, dtype=torch.float64)
    found = orthogonal(matrices)
    torch.testing.assert_close(orthogonal(1e-9 * matrices), found, rtol=1e-9, atol=1e-9)  # their size does not matter
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.mT @ found @ v.mT
    values = inside.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inside, torch.diag_embed(values), atol=1e-12, rtol=0)
    expected = s / s.square().sum(1, keepdim=True).sqrt()
    for _ in range(ITERATIONS):  # of each singular value alone
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(values, expected, atol=1e-12, rtol=0)
    assert bool((values > 0.65).all() and (values < 1.21).all())
    cosine = (found * exact(matrices)).sum((1, 2)) / found.norm(dim=(1, 2)) / exact(matrices).norm(dim=(1, 2))
    assert bool((cosine > 0.97).all())


def test_zero_and_16_bits() -> None:
    assert not orthogonal(torch.zeros(1, 3, 5)).any()  # a gradient of zero moves nothing
    matrices = torch.randn(2, 32, 64)
    rounded = orthogonal(matrices, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert float((rounded - orthogonal(matrices)).norm() / rounded.norm()) < 0.03


def test_two_steps_by_hand() -> None:
    """Nesterov momentum, the size 0.2 sqrt(max(rows, columns)), and decay beside the gradient."""
    shapes = [(4, 6), (6, 4), (4, 6)]
    weights = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    expected = [weight.detach().clone() for weight in weights]
    means = [torch.zeros_like(weight) for weight in expected]
    optimizer = Muon(weights, lr=0.01, momentum=0.9, weight_decay=0.5)
    for _ in range(2):
        for weight, mean, value in zip(weights, means, expected, strict=True):
            weight.grad = torch.randn_like(weight)
            mean.mul_(0.9).add_(0.1 * weight.grad)
            update = 0.1 * weight.grad + 0.9 * mean
            value.mul_(1 - 0.01 * 0.5).sub_(0.01 * 0.2 * math.sqrt(6) * orthogonal(update[None])[0])
        optimizer.step()
    for weight, mean, value in zip(weights, means, expected, strict=True):
        torch.testing.assert_close(weight.detach(), value)
        torch.testing.assert_close(optimizer.state[weight]["momentum"], mean)
    step = weights[0].detach() - expected[0]
    assert float(step.abs().max()) < 1e-12


def test_a_step_has_the_size_of_the_learning_rate() -> None:
    """Whatever the gradient's is: entries of root mean square 0.2 lr, as AdamW's steps have."""
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    weight.grad = 1e-6 * torch.randn(64, 256)
    Muon([weight], lr=0.01).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.2)


@pytest.mark.parametrize("gradient", [float("nan"), float("inf")])
def test_a_skipped_step_leaves_every_bit(gradient: float) -> None:
    weight = torch.nn.Parameter(torch.randn(4, 6))
    with torch.no_grad():
        weight[0, 0] = -0.0
    optimizer = Muon([weight], lr=0.1, weight_decay=0.1)
    for skip in (1.0, 0.0, 1.0):  # the first before there is a momentum
        before = weight.detach().clone()
        momentum = optimizer.state[weight].get("momentum", torch.zeros_like(weight)).clone()
        weight.grad = torch.full_like(weight, gradient if skip else 1.0)
        optimizer.found_inf = torch.tensor(skip)
        optimizer.step()
        bits = [
            (a.view(torch.int32), b.view(torch.int32))
            for a, b in ((weight.detach(), before), (optimizer.state[weight]["momentum"], momentum))
        ]
        assert all(torch.equal(*pair) for pair in bits) == bool(skip)


@pytest.mark.parametrize(
    ("network", "batch", "every", "tera", "share"),
    [
        ("DiT-S/2", 512, 4, 0.28, 0.008),
        ("DiT-S/4", 512, 4, 0.28, 0.034),
        ("DiT-XL/2", 64, 1, 17.6, 0.105),
        ("DiT-XL/2", 512, 1, 17.6, 0.013),
    ],
)
def test_its_arithmetic_is_what_the_page_says(network: str, batch: int, every: int, tera: float, share: float) -> None:
    """docs/engine.md, counted on shapes alone: of a step, and beside the passes of a step of TVM."""
    case = StepCase(network, 32, 4 if "XL" in network else 3, batch, classes=10, terminal_every=every)
    with torch.device("meta"):
        blocks = build_network(network_config(network, 32, case.channels, 10), initialise=False).blocks
    with FlopCounterMode(display=False) as counter:
        for matrix in (parameter for parameter in blocks.parameters() if parameter.dim() == 2):
            orthogonal(matrix.detach()[None])
    step = forward_flops(case) * forward_passes("terminal-velocity", True, every) * batch
    assert counter.get_total_flops() / 1e12 == pytest.approx(tera, rel=0.01)
    assert counter.get_total_flops() / step == pytest.approx(share, rel=0.03)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"Muon is for matrices, got a parameter of shape \[3\]"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight])
    optimizer.step()  # without a gradient nothing moves
    assert bool((weight == 1).all())
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 0.0)
