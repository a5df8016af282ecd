"""The `torch.library` operators around the kernels, and their gradient.

`dual_attention` is made for long sequences: it reads normalised heads that another kernel has written, and its backward
is two kernels. Where all tokens of a sample fit into one tile, that traffic is most of its time.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tvmatch.kernels.elementwise import define_operators, launches_triton
from tvmatch.kernels.projection import head_size, like_projections, sums_of_programs
from tvmatch.kernels.tangents import refuse_dual_gradients

MAX_TOKENS = MAX_SIZE = 64  # of a tile: four of its size are held in registers at once
WARPS = 4
PAIR_BACKWARD_WARPS = 4  # 8 would take 232 registers and spill nothing, but leave one program to a multiprocessor
REGISTERS = 168  # of a thread, at most, in the backward without tangents: three programs then share a multiprocessor
PAIR_FORWARD_REGISTERS = 128  # and four in the forward with tangents, which would take 144


def applies(qkv: Tensor, heads: int) -> bool:
    """Whether the kernels take this packed projection [B, N, 3 heads D]: on a GPU in 16 bits, N and D up to 64."""
    return (
        launches_triton(qkv)
        and qkv.dtype != torch.float32
        and qkv.dim() == 3
        and qkv.shape[1] <= MAX_TOKENS
        and head_size(qkv, heads) <= MAX_SIZE
    )


def attention_of_qkv(
    qkv: Tensor, tqkv: Tensor | None, q_weight: Tensor, k_weight: Tensor, heads: int, eps: float
) -> tuple[Tensor, ...]:
    """Attention with RMS-normalised queries and keys: (o,), or with a tangent of the projection (o, to).

    Args:
        qkv, tqkv: packed projections [B, N, 3 heads D].
        q_weight, k_weight: [D], of the norm.
        eps: added to the mean squares.

    Returns:
        [B, N, heads D] each.
    """
    return _ShortAttention.apply(qkv, tqkv, q_weight, k_weight, heads, eps)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv: Tensor, tqkv: Tensor | None, *inputs: Tensor | int | float
    ) -> tuple[Tensor, ...]:
        *weights, heads, eps = inputs
        ctx.save_for_backward(qkv, tqkv, *weights)
        ctx.heads, ctx.eps = heads, eps
        return tuple(torch.ops.tvmatch.short_attention(qkv, tqkv, weights, heads, eps))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_dual_gradients(gradients, "attention")
        qkv, tqkv, *weights = ctx.saved_tensors
        *streams, sums = torch.ops.tvmatch.short_attention_backward(
            qkv, tqkv, weights, list(gradients), ctx.heads, ctx.eps
        )
        gtqkv = None if tqkv is None else streams[1]
        return streams[0], gtqkv, *sums.sum(dim=0).unbind(), None, None


def _launched(qkv: Tensor, heads: int, eps: float) -> tuple[tuple[int, float, float], dict[str, object]]:
    """What both kernels get last, and what they are compiled for."""
    size = head_size(qkv, heads)
    rows, block = (max(16, 1 << (n - 1).bit_length()) for n in (qkv.shape[1], size))
    # products of float32 would be rounded to 10 bits otherwise; only tests call the kernels with it
    exact = "ieee" if qkv.dtype == torch.float32 else "tf32"
    constants = {"HEADS": heads, "SIZE": size, "ROWS": rows, "BLOCK": block, "EXACT": exact}
    constants["FULL"] = qkv.shape[1] == rows  # no row of the tile is padding
    return (qkv.shape[1], eps, size**-0.5), constants


def _forward(qkv: Tensor, tqkv: Tensor | None, weights: list[Tensor], heads: int, eps: float) -> list[Tensor]:
    from .triton import short_forward_kernel

    outputs = _forward_fake(qkv, tqkv, weights, heads, eps)
    qkv, tangent = qkv.contiguous(), qkv if tqkv is None else tqkv.contiguous()
    numbers, constants = _launched(qkv, heads, eps)
    with torch.cuda.device_of(qkv):
        short_forward_kernel[(qkv.shape[0] * heads,)](
            qkv,
            tangent,
            *(weight.contiguous() for weight in weights),
            outputs[0],
            outputs[-1],
            *numbers,
            PAIR=tqkv is not None,
            num_warps=WARPS,
            **constants,
            **({} if tqkv is None else {"maxnreg": PAIR_FORWARD_REGISTERS}),
        )
    return outputs


def _forward_fake(qkv: Tensor, tqkv: Tensor | None, weights: list[Tensor], heads: int, eps: float) -> list[Tensor]:
    return [qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // 3)) for _ in range(1 if tqkv is None else 2)]


def _backward(
    qkv: Tensor, tqkv: Tensor | None, weights: list[Tensor], gradients: list[Tensor], heads: int, eps: float
) -> list[Tensor]:
    from .triton import short_backward_kernel

    outputs = _backward_fake(qkv, tqkv, weights, gradients, heads, eps)
    qkv, tangent = qkv.contiguous(), qkv if tqkv is None else tqkv.contiguous()
    gradients = [g.contiguous() for g in gradients]
    options = {"num_warps": WARPS, "maxnreg": REGISTERS} if tqkv is None else {"num_warps": PAIR_BACKWARD_WARPS}
    numbers, constants = _launched(qkv, heads, eps)
    with torch.cuda.device_of(qkv):
        short_backward_kernel[(qkv.shape[0] * heads,)](
            qkv, tangent, *(weight.contiguous() for weight in weights), gradients[0], gradients[-1],
            outputs[0], outputs[-2], outputs[-1],
            *numbers, PAIR=tqkv is not None, **constants, **options,
        )  # fmt: skip
    return outputs


def _backward_fake(
    qkv: Tensor, tqkv: Tensor | None, weights: list[Tensor], gradients: list[Tensor], heads: int, eps: float
) -> list[Tensor]:
    sums = sums_of_programs(qkv, qkv.shape[0] * heads, 2, head_size(qkv, heads))
    return [*like_projections(qkv, tqkv), sums]


define_operators(
    short_attention=(
        "(Tensor qkv, Tensor? tqkv, Tensor[] weights, int heads, float eps) -> Tensor[]",
        _forward,
        _forward_fake,
    ),
    short_attention_backward=(
        "(Tensor qkv, Tensor? tqkv, Tensor[] weights, Tensor[] gradients, int heads, float eps) -> Tensor[]",
        _backward,
        _backward_fake,
    ),
)
