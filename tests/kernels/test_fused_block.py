"""A whole block with the fused kernels and without, in Triton's interpreter and on a GPU: results and all gradients."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tvmatch.kernels import biased_gelu, short_attention
from tvmatch.kernels.head_norm import op as head_norm_op
from tvmatch.kernels.modulated_norm import op as modulated_norm_op
from tvmatch.kernels.modulation import op as modulation_op
from tvmatch.networks.dit import Block, DiTConfig
from tvmatch.networks.duals import push_forward
from tvmatch.networks.layers import add_norm_modulate, set_compute_dtype

from .layer_cases import relative_errors


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let the layers go to the kernels (in the interpreter) or not."""

    def choose(yes: bool, short: bool = False) -> None:
        monkeypatch.setattr(short_attention, "applies", lambda qkv, heads: yes and short)
        monkeypatch.setattr(biased_gelu, "applies", lambda h, dtype: yes)
        monkeypatch.setattr(modulation_op, "MIN_SAMPLES", 1)
        for module in (head_norm_op, modulated_norm_op, modulation_op):
            monkeypatch.setattr(module, "launches_triton", lambda x: yes and x.dtype in (torch.float32, torch.bfloat16))

    return choose


@pytest.fixture
def interpreted_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's interpreter treat bfloat16 as a GPU does. By itself it cuts float32 off instead of rounding it, and
    multiplies the bits of matrices as whole numbers."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    tl = pytest.importorskip("triton.language")
    convert = interpreter._convert_float

    def widen(bits: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(bits).view(np.uint16).astype(np.uint32) << 16

    def converted(data: np.ndarray, source: object, target: object, rounding: object) -> np.ndarray:
        if (source, target) == (tl.float32, tl.bfloat16):
            numbers = torch.from_numpy(np.ascontiguousarray(data).view(np.float32))
            return numbers.bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(data.shape)
        if (source, target) == (tl.bfloat16, tl.float32):
            return widen(data).reshape(data.shape)
        return convert(data, source, target, rounding)

    def dot(builder: object, a: object, b: object, d: object, *options: object) -> object:
        factors = [widen(x.data).view(np.float32) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b)]
        return interpreter.TensorHandle(np.matmul(*factors, dtype=d.data.dtype) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter, "_convert_float", converted)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


def stream_and_conditioning(batch: int, tokens: int, size: int) -> list[Tensor]:
    """Inputs of a block, (x, gate, update, c), and then their tangents."""
    return [torch.randn(s) for s in ((batch, tokens, size), (batch, 1, size), (batch, tokens, size), (batch, size)) * 2]


def results_and_gradients(block: Block, inputs: list[Tensor]) -> dict[str, Tensor]:
    """What a block gives as a pair and plainly, and the gradients of all inputs and weights, in float64."""
    inputs = [i.clone().requires_grad_() for i in inputs]
    block.zero_grad()  # what an earlier call left behind would be added to
    (primals, tangents), plain = block(*inputs[:4], tangents=inputs[4:]), block(*inputs[:4])
    names = [f"{name} {kind}" for kind in ("primal", "tangent", "plain") for name in ("x", "gate", "update")]
    results = dict(zip(names, (*primals, *tangents, *plain), strict=True))
    sum(r.sum() + r.square().sum() for r in results.values()).backward()
    results |= {f"gradient of {name}": p.grad for name, p in block.named_parameters()}
    names = [f"{kind}{name}" for kind in ("", "tangent of ") for name in ("x", "gate", "update", "c")]
    results |= {f"gradient of {name}": i.grad for name, i in zip(names, inputs, strict=True)}
    return {name: r.detach().double() for name, r in results.items()}


def relative_errors_by_name(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    assert ours.keys() == exact.keys()
    return dict(zip(ours, relative_errors(tuple(ours.values()), tuple(exact.values())), strict=True))


@pytest.mark.parametrize("short", [False, True])
def test_a_block_is_the_same_with_and_without_the_kernels(fused: Callable[..., None], short: bool) -> None:
    block = Block(DiTConfig(image_size=4, channels=2, patch_size=2, hidden_size=48, num_heads=3))
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = stream_and_conditioning(2, 4, 48)
    results = {}
    for yes in (False, True):
        fused(yes, short)
        results[yes] = results_and_gradients(block, inputs)
    errors = relative_errors_by_name(results[True], results[False])
    assert max(errors.values()) < 1e-5, errors
    assert any(errors.values()), "one path ran twice"


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "heads"), [(1152, 18), (384, 6), (1024, 16)])  # attention compiled once
def test_on_a_gpu_a_block_agrees_with_the_formulas(fused: Callable[..., None], size: int, heads: int) -> None:
    block = Block(DiTConfig(image_size=4, channels=2, patch_size=2, hidden_size=size, num_heads=heads)).cuda()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=size**-0.5)
    inputs = [part.cuda() for part in stream_and_conditioning(3, 50, size)]
    results = []
    for yes in (False, True):
        fused(yes)
        results.append(results_and_gradients(block, inputs))
    errors = relative_errors_by_name(*results)
    assert max(errors.values()) < 1e-3, errors  # attention's own float32 products differ between its two forms


def less_exact(choose: Callable[..., None], block: Block, inputs: list[Tensor], short: bool) -> dict[str, tuple]:
    """Which results of a block in 16 bits are half as wrong again with the kernels as without: (without, with)."""
    choose(False)
    exact = results_and_gradients(copy.deepcopy(block).double(), [part.double() for part in inputs])
    set_compute_dtype(block, torch.bfloat16)
    errors = []
    for yes in (False, True):
        choose(yes, short)
        errors.append(relative_errors_by_name(results_and_gradients(block, inputs), exact))
    plain, ours = errors
    return {name: (plain[name], ours[name]) for name in ours if not ours[name] < 1.5 * max(plain[name], 2e-3)}


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "heads", "tokens", "short"), [(1152, 18, 50, False), (384, 6, 64, True)])
def test_on_a_gpu_a_block_in_16_bits_is_as_exact_as_without_the_kernels(
    fused: Callable[..., None], size: int, heads: int, tokens: int, short: bool
) -> None:
    block = Block(DiTConfig(image_size=4, channels=2, patch_size=2, hidden_size=size, num_heads=heads)).cuda()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=size**-0.5)
    assert not less_exact(fused, block, [part.cuda() for part in stream_and_conditioning(3, tokens, size)], short)


@pytest.mark.parametrize("short", [False, True])
def test_a_block_in_16_bits_is_as_exact_as_without_the_kernels(
    fused: Callable[..., None], interpreted_16_bits: None, short: bool
) -> None:
    block = Block(DiTConfig(image_size=4, channels=2, patch_size=2, hidden_size=96, num_heads=3))
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=96**-0.5)
    assert not less_exact(fused, block, stream_and_conditioning(2, 8, 96), short)


def test_where_a_tangent_is_missing_zeros_stand_in(fused: Callable[..., None]) -> None:
    x, tx, update = (torch.randn(2, 4, 48) for _ in range(3))
    shift, scale, gate = (torch.randn(2, 1, 48) for _ in range(3))
    slopes = []
    for yes in (False, True):
        fused(yes)
        normalised = push_forward(
            lambda x: add_norm_modulate(x, shift, scale, gate, update)[1], (x,), (tx,), "normalised"
        )
        slopes.append(normalised[1])
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)
