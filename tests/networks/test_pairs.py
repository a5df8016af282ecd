"""The hand-written joint backwards, against gradcheck and autograd of the closed form, float64."""

import pytest
import torch
from torch.nn import functional

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
