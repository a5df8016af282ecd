"""Every layer's own tangent rule against torch.func.jvp of the same formula, float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tvmatch.kernels import linear_gelu
from tvmatch.networks.duals import push_forward
from tvmatch.networks.layers import (
    Attention,
    FeedForward,
    Linear,
    Modulation,
    RMSNorm,
    gelu,
    init_spectral_,
    largest_eigenvalue,
    layer_norm,
    modulate,
    rms_norm,
)


def plain_rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def plain_layer_norm(x: Tensor) -> Tensor:
    """Not `functional.layer_norm`: the gradient of its forward-mode derivative is wrong in PyTorch 2.13, as its saved
    mean and deviation are constants there."""
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt()


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (rms_norm, plain_rms),
        (layer_norm, plain_layer_norm),
        (gelu, lambda x: functional.gelu(x, approximate="tanh")),
    ],
)
def test_value_tangent_and_both_gradients(ours: Callable, plain: Callable) -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    tx = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    pair = push_forward(ours, (x,), (tx,), "ours")
    reference = torch.func.jvp(plain, (x,), (tx,))
    torch.testing.assert_close(pair, reference, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-12, atol=1e-12)
    weights = [torch.randn(3, 5, dtype=torch.float64) for _ in range(2)]
    gradients = [
        torch.autograd.grad(sum((w * r).sum() for w, r in zip(weights, result, strict=True)), (x, tx))
        for result in (pair, reference)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("module", [Linear(4, 4), RMSNorm(4), Attention(4, 2), FeedForward(4, 8)])
def test_modules_against_finite_differences(module: nn.Module) -> None:
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x, tx = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    y, ty = push_forward(module, (x,), (tx,), "module")
    torch.testing.assert_close(y, module(x))
    h = 1e-6
    torch.testing.assert_close(ty, (module(x + h * tx) - module(x - h * tx)) / (2 * h), rtol=1e-6, atol=1e-7)


def test_layer_norm_is_pytorchs() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer_norm(x), functional.layer_norm(x, (5,), eps=1e-6))


def test_linear_adds_the_bias_to_the_primal_only() -> None:
    linear = Linear(2, 3)
    nn.init.ones_(linear.bias)
    _, ty = push_forward(linear, (torch.zeros(1, 2),), (torch.zeros(1, 2),), "linear")
    assert not ty.any()


def test_rms_norm_is_finite_at_zero() -> None:
    x = torch.zeros(1, 4, requires_grad=True)
    rms_norm(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_modulation_chunks_are_normalised() -> None:
    modulation = Modulation(8, 6)
    nn.init.normal_(modulation.linear.weight)
    chunks = modulation(torch.randn(3, 8))
    assert [chunk.shape for chunk in chunks] == [(3, 1, 8)] * 6
    for chunk in chunks:
        torch.testing.assert_close(chunk.square().mean(-1), torch.ones(3, 1), rtol=1e-3, atol=0)
    plain = Modulation(8, 2, normalised=False)
    nn.init.constant_(plain.linear.weight, 5.0)
    assert plain(torch.ones(1, 8))[0].mean() > 10


def test_modulate() -> None:
    x, shift, scale = torch.randn(2, 3, 4), torch.randn(2, 1, 4), torch.randn(2, 1, 4)
    torch.testing.assert_close(modulate(x, shift, scale), x * (1 + scale) + shift)


@pytest.mark.parametrize("shape", [(8, 8), (96, 24), (24, 96), (1152, 1152)])
def test_spectral_initialisation(shape: tuple[int, int]) -> None:
    weight = torch.empty(shape)
    init_spectral_(weight)
    assert float(torch.linalg.matrix_norm(weight.double(), ord=2)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 7), (2, 3), (64, 64), (96, 384)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_largest_eigenvalue_by_squaring_is_that_of_the_decomposition(shape: tuple[int, int], size: float) -> None:
    matrix = size * torch.randn(shape, dtype=torch.float64)
    gram = matrix @ matrix.T
    torch.testing.assert_close(largest_eigenvalue(gram), torch.linalg.eigvalsh(gram)[-1], rtol=1e-12, atol=0)


def test_equal_eigenvalues_are_the_worst_for_squaring() -> None:
    found = float(largest_eigenvalue(3 * torch.eye(1000, dtype=torch.float64)))
    assert 3 < found < 3 * (1 + 1.01 * math.log(1000) / 2**21)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_spectral_initialisation_on_a_gpu(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)  # "high" as while training: TF32
    try:
        weight = torch.empty(384, 1152, device="cuda")
        init_spectral_(weight)
    finally:
        torch.set_float32_matmul_precision(before)
    assert float(torch.linalg.matrix_norm(weight.cpu().double(), 2)) == pytest.approx(1, abs=1e-6)


def test_heads_must_divide_the_size() -> None:
    with pytest.raises(ValueError, match="hidden size 10 is not a multiple of num_heads=4"):
        Attention(10, 4)


def test_compute_dtype_casts_and_casts_back(flow, inputs: dict) -> None:
    """In bfloat16 the blocks' products are 16-bit, the residual stream is not, and the numbers agree to 8 bits."""
    flow = flow.float()
    inputs = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
    exact = flow.terminal_velocity(**inputs)
    flow.network.set_compute_dtype(torch.bfloat16)
    seen = []
    flow.network.blocks[0].attention.proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    rounded = flow.terminal_velocity(**inputs)
    assert seen == [torch.bfloat16]
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32
        assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.05
    sum(value.square().mean() for value in rounded).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in flow.parameters())
    flow.network.set_compute_dtype(None)
    torch.testing.assert_close(flow.terminal_velocity(**inputs), exact)
    with pytest.raises(ValueError, match=r"compute dtype.*int8"):
        flow.network.set_compute_dtype(torch.int8)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gelu_inside_the_product_where_nothing_records_gradients(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    layer, x = FeedForward(6, 12), torch.randn(2, 3, 6)
    expected, calls = layer(x).detach(), []
    monkeypatch.setattr(linear_gelu, "applies", lambda x, dtype: not torch.is_grad_enabled())
    called = torch.compile(layer, fullgraph=True, backend=graph_keeper(calls)) if compiled else layer
    with torch.no_grad():
        torch.testing.assert_close(called(x), expected)
        layer.fc1.weight.data += 1  # the weights of now, not of the first call
        torch.testing.assert_close(called(x), layer.fc2(functional.gelu(layer.fc1(x), approximate="tanh")))
    assert layer(x).requires_grad  # with gradients it is two operations, as before
    y, ty = push_forward(layer, (x,), (torch.ones_like(x),), "with a tangent")
    assert (y.requires_grad, ty.requires_grad) == (True, True)
    if compiled:
        assert any("linear_gelu" in call for call in calls)


def graph_keeper(calls: list[str]) -> Callable:
    """A compiler that changes nothing and notes the operations of each graph."""

    def keep(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        calls.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    return keep
