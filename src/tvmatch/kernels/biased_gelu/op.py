"""The `torch.library` operators around the kernels, and their gradient.

The bias is added here and not by the product before, so that its gradient, a sum over all rows of what the backward
writes anyway, needs no pass of its own.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tvmatch.kernels.elementwise import define_operators, launches_triton
from tvmatch.kernels.tangents import refuse_dual_gradients

# Of a tile, 16 numbers a thread; in the backward a program takes so many tiles, the next two on their way while one is
# computed. Measured on an H200 (benchmarks/fused_layers.py).
ROWS, COLUMNS, TILES, WARPS, STAGES = 4, 512, 16, 4, 3


def applies(h: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels take what a product in `dtype` gives for this input: on a GPU in 16 bits."""
    return launches_triton(h) and dtype in (torch.bfloat16, torch.float16)


def biased_gelu(h: Tensor, th: Tensor | None, bias: Tensor) -> tuple[Tensor, ...]:
    """GELU in its tanh approximation: (gelu(h + bias),), or with a tangent of h also gelu'(h + bias) th.

    h, th: [..., C]; bias: [C], its dtype may be another.
    """
    return _BiasedGelu.apply(h, th, bias)


class _BiasedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, h: Tensor, th: Tensor | None, bias: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(h, th, bias)
        return tuple(torch.ops.tvmatch.biased_gelu(h, th, bias))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_dual_gradients(gradients, "gelu")
        h, th, bias = ctx.saved_tensors
        gh, *gth, sums = torch.ops.tvmatch.biased_gelu_backward(h, th, bias, list(gradients))
        return gh, gth[0] if gth else None, sums.sum(dim=0).to(bias.dtype)


def _forward(h: Tensor, th: Tensor | None, bias: Tensor) -> list[Tensor]:
    from .triton import biased_gelu_forward_kernel

    outputs = _forward_fake(h, th, bias)
    h = h.contiguous()
    size = h.shape[-1]
    rows = h.numel() // size
    with torch.cuda.device_of(h):
        biased_gelu_forward_kernel[(-(-rows // ROWS), -(-size // COLUMNS))](
            h, h if th is None else th.contiguous(), bias.contiguous(), outputs[0], outputs[-1], rows,
            SIZE=size, ROWS=ROWS, COLUMNS=COLUMNS, PAIR=th is not None, num_warps=WARPS,
        )  # fmt: skip
    return outputs


def _forward_fake(h: Tensor, th: Tensor | None, bias: Tensor) -> list[Tensor]:
    return [torch.empty_like(h, memory_format=torch.contiguous_format) for _ in range(1 if th is None else 2)]


def _backward(h: Tensor, th: Tensor | None, bias: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    from .triton import biased_gelu_backward_kernel

    outputs = _backward_fake(h, th, bias, gradients)
    h = h.contiguous()
    gradients = [g.contiguous() for g in gradients]
    size = h.shape[-1]
    rows = h.numel() // size
    with torch.cuda.device_of(h):
        biased_gelu_backward_kernel[(len(outputs[-1]), -(-size // COLUMNS))](
            h, h if th is None else th.contiguous(), bias.contiguous(), gradients[0], gradients[-1],
            outputs[0], outputs[-2], outputs[-1], rows,
            SIZE=size, ROWS=ROWS, COLUMNS=COLUMNS, TILES=TILES, STAGES=STAGES, PAIR=th is not None, num_warps=WARPS,
        )  # fmt: skip
    return outputs


def _backward_fake(h: Tensor, th: Tensor | None, bias: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    size = h.shape[-1]
    programs = -(-(h.numel() // size) // (ROWS * TILES))
    return [*_forward_fake(h, th, bias), h.new_empty((programs, size), dtype=torch.float32)]


define_operators(
    biased_gelu=(
        "(Tensor h, Tensor? th, Tensor bias) -> Tensor[]",
        _forward,
        _forward_fake,
    ),
    biased_gelu_backward=(
        "(Tensor h, Tensor? th, Tensor bias, Tensor[] gradients) -> Tensor[]",
        _backward,
        _backward_fake,
    ),
)
