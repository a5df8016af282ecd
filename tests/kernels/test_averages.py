"""Moving averages in one pass: the kernel in Triton's interpreter (marked: on a GPU) against the plain formula."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tvmatch.kernels.averages import move_averages
from tvmatch.kernels.averages import op as averages_op

SHAPES = [(7,), (64, 65), (), (3, 2, 1)]  # odd sizes, more than one block, a single number


def make(device: str, count: int) -> tuple[list[Tensor], list[list[Tensor]]]:
    lists = [[torch.randn(shape, device=device) for shape in SHAPES] for _ in range(count + 1)]
    return lists[0], lists[1:]


def check(device: str, shares: list[float], skip: float | None) -> None:
    weights, averages = make(device, len(shares))
    before = [[a.double() for a in tensors] for tensors in averages]
    move_averages(weights, averages, shares, None if skip is None else torch.tensor(skip, device=device))
    for tensors, old, share in zip(averages, before, shares, strict=True):
        for average, was, weight in zip(tensors, old, weights, strict=True):
            moved = was + share * (weight.double() - was)
            exact = share in (0.0, 1.0) or skip == 1
            expected = was if skip == 1 else moved
            torch.testing.assert_close(average.double(), expected, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)


@pytest.fixture(params=["kernel", "PyTorch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the kernel, interpreted, or through PyTorch's fused steps."""
    monkeypatch.setattr(averages_op, "applies", lambda tensor: request.param == "kernel")


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shares", [[0.3], [0.01, 0.7, 1.0], [0.0, 0.1, 0.5, 0.001, 1.0]])
@pytest.mark.parametrize("skip", [None, 0.0, 1.0])
def test_averages_move(shares: list[float], skip: float | None) -> None:
    check("cpu", shares, skip)


@pytest.mark.usefixtures("path")
def test_autograd_sees_that_an_average_was_written() -> None:
    weights, (average,) = make("cpu", 1)
    factor = torch.randn(7, requires_grad=True)
    product = (factor * average[0]).sum()
    move_averages(weights, [average], [0.5])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_lists_that_do_not_fit_are_refused() -> None:
    weights, averages = make("cpu", 2)
    with pytest.raises(ValueError, match="2 averages need as many shares, got 1"):
        move_averages(weights, averages, [0.5])
    with pytest.raises(ValueError, match="as many tensors as there are weights"):
        move_averages(weights, [averages[0][1:]], [0.5])


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tvmatch.kernels.averages.triton import move_kernel

for skips in (False, True):
    types = dict(zip(move_kernel.arg_names, ["*i64", "*i32", "*i64", "*fp32"] + ["fp32"] * 4))
    constants = {"COUNT": 3, "SKIPS": skips, "BLOCK": 4096}
    source = ASTSource(move_kernel, types | dict.fromkeys(constants, "constexpr"), constants)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
"""


def test_the_kernel_compiles_for_a_gpu() -> None:
    """The interpreter accepts what the compiler does not; with `skip` is how training calls it."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment, timeout=200)


@pytest.mark.gpu
@pytest.mark.parametrize("shares", [[0.3], [0.01, 0.7, 1.0], [0.0, 0.1, 0.5, 0.001, 1.0]])
@pytest.mark.parametrize("skip", [None, 0.0, 1.0])
def test_averages_move_on_a_gpu(shares: list[float], skip: float | None) -> None:
    assert averages_op.applies(torch.ones(2, device="cuda"))
    check("cuda", shares, skip)
