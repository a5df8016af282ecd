"""The hand-written joint backwards, against gradcheck and autograd of the closed form, float64."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional

from tvmatch.networks.layers import gelu, rms_norm
from tvmatch.networks.pairs import gelu_curvature, gelu_pair, rms_norm_pair


def double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("pair", [gelu_pair, lambda x, tx: rms_norm_pair(x, tx, 1e-6)])
def test_gradcheck(pair) -> None:
    assert torch.autograd.gradcheck(pair, (double(3, 5), double(3, 5)))
    assert torch.autograd.gradgradcheck(pair, (double(2, 3), double(2, 3)))


def test_second_derivative_of_gelu() -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(functional.gelu(x, approximate="tanh").sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(gelu_curvature(x.detach()), second, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", [gelu, rms_norm])
@pytest.mark.parametrize("energy", [torch.sum, lambda y: y.sin().sum()])  # whose gradient has no tangent, and has one
def test_forward_mode_over_the_gradient_inside_of_one_level(layer, energy) -> None:
    """A force field and its derivative: the backward must know the tangent of what it has saved."""
    x, tangent = double(4, 8), torch.randn(4, 8, dtype=torch.float64)

    def force(x: torch.Tensor, create_graph: bool = True) -> torch.Tensor:
        return torch.autograd.grad(energy(layer(x)), x, create_graph=create_graph)[0]

    _, exact = torch.func.jvp(torch.func.grad(lambda x: energy(layer(x))), (x,), (tangent,))
    for create_graph in (True, False):
        with forward_ad.dual_level():
            primal, ours = forward_ad.unpack_dual(force(forward_ad.make_dual(x, tangent), create_graph))
        torch.testing.assert_close(ours, exact)
        torch.testing.assert_close(primal, force(x))


@pytest.mark.parametrize("layer", [gelu, rms_norm])
def test_a_backward_in_a_later_level_has_no_tangent_of_an_earlier_one(layer) -> None:
    x, tangent = double(4, 8), torch.randn(4, 8, dtype=torch.float64)
    with forward_ad.dual_level():
        _, ty = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)))
    (alone,) = torch.autograd.grad(ty.square().sum(), x, retain_graph=True)
    with forward_ad.dual_level():
        (inside,) = torch.autograd.grad(ty.square().sum(), x)
        assert forward_ad.unpack_dual(inside).tangent is None
    assert torch.equal(alone, inside)
