"""Attention's inputs from the packed projection, and its gradient back into it, without a copy between.

Two Functions stand on two operators: `normalised_heads` for plain tensors, and `dual_attention_of_qkv`, which keeps
only the packed projection and computes the normalised heads again in its backward (a twentieth of its time, and a
third of what would have to be kept).
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

import tvmatch.kernels.dual_attention  # noqa: F401  (defines the attention operators)
from tvmatch.kernels.elementwise import define_operators, launches_triton
from tvmatch.kernels.projection import head_size, like_projections, sums_of_programs
from tvmatch.kernels.tangents import refuse_dual_gradients

TILE_ELEMENTS, BACKWARD_TILES = 2048, 4  # measured on an H200 (benchmarks/fused_layers.py)
MAX_SIZE = 512
WARPS, STAGES = 4, 2


def applies(qkv: Tensor, heads: int) -> bool:
    """Whether the fused kernels take this packed projection [B, N, 3 heads D]."""
    return launches_triton(qkv) and qkv.dim() == 3 and head_size(qkv, heads) <= MAX_SIZE


def normalised_heads(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed projection [B, N, 3 heads D] -> q, k, v [B, heads, N, D], q and k RMS-normalised with weights [D]; v is a
    view of the projection."""
    return _NormalisedHeads.apply(qkv, q_weight, k_weight, heads, eps)


def dual_attention_of_qkv(
    qkv: Tensor, tqkv: Tensor, q_weight: Tensor, k_weight: Tensor, heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Attention over the normalised heads and its tangent, [B, N, heads D] each, from projections [B, N, 3 heads D]."""
    return _DualAttentionOfQkv.apply(qkv, tqkv, q_weight, k_weight, heads, eps)


class _NormalisedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, heads: int, eps: float
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(qkv, q_weight, k_weight)
        ctx.heads, ctx.eps = heads, eps
        return *_normalised(qkv, None, [q_weight, k_weight], heads, eps), _values(qkv, heads)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_dual_gradients(gradients, "the norm of queries and keys")
        qkv, *weights = ctx.saved_tensors
        gqkv, sums = torch.ops.tvmatch.head_norm_backward(qkv, None, weights, list(gradients), ctx.heads, ctx.eps)
        return gqkv, *sums.sum(dim=0).unbind(), None, None


class _DualAttentionOfQkv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv: Tensor, tqkv: Tensor, q_weight: Tensor, k_weight: Tensor, heads: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        q, k, tq, tk = _normalised(qkv, tqkv, [q_weight, k_weight], heads, eps)
        o, to, *statistics = torch.ops.tvmatch.dual_attention(
            q, k, _values(qkv, heads), tq, tk, _values(tqkv, heads), None, q.shape[-1] ** -0.5, False, "auto"
        )
        ctx.save_for_backward(qkv, tqkv, q_weight, k_weight, o, to, *statistics)
        ctx.heads, ctx.eps = heads, eps
        return _merge(o), _merge(to)

    @staticmethod
    def backward(ctx: FunctionCtx, do: Tensor, dto: Tensor) -> tuple[Tensor | None, ...]:
        refuse_dual_gradients((do, dto), "attention")
        qkv, tqkv, q_weight, k_weight, *results = ctx.saved_tensors
        gqkv, gtqkv, sums = torch.ops.tvmatch.qkv_attention_backward(
            qkv, tqkv, [q_weight, k_weight], results, [do, dto], ctx.heads, ctx.eps
        )
        return gqkv, gtqkv, *sums.sum(dim=0).unbind(), None, None


def _normalised(qkv: Tensor, tqkv: Tensor | None, weights: list[Tensor], heads: int, eps: float) -> list[Tensor]:
    parts = torch.ops.tvmatch.head_norm(qkv, tqkv, weights, heads, eps)
    return [part.transpose(1, 2) for part in parts]


def _values(qkv: Tensor, heads: int) -> Tensor:
    """v [B, heads, N, D] as a view of the packed projection."""
    return qkv.view(*qkv.shape[:2], 3, heads, -1)[:, :, 2].transpose(1, 2)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _forward(qkv: Tensor, tqkv: Tensor | None, weights: list[Tensor], heads: int, eps: float) -> list[Tensor]:
    from .triton import forward_kernel

    outputs = _forward_fake(qkv, tqkv, weights, heads, eps)
    pair = tqkv is not None
    primal, tangent = outputs[:2], outputs[2:] or outputs[:2]
    qkv = qkv.contiguous()
    size = head_size(qkv, heads)
    block, rows_of_tile, rows = _tile(qkv, heads, size)
    with torch.cuda.device_of(qkv):
        forward_kernel[(-(-rows // rows_of_tile),)](
            qkv, tqkv.contiguous() if pair else qkv, *(weight.contiguous() for weight in weights),
            *primal, *tangent, rows, eps,
            HEADS=heads, SIZE=size, BLOCK=block, ROWS=rows_of_tile, PAIR=pair, num_warps=WARPS,
        )  # fmt: skip
    return outputs


def _forward_fake(qkv: Tensor, tqkv: Tensor | None, weights: list[Tensor], heads: int, eps: float) -> list[Tensor]:
    shape = (*qkv.shape[:2], heads, head_size(qkv, heads))
    return [qkv.new_empty(shape) for _ in range(2 if tqkv is None else 4)]


def _backward(
    qkv: Tensor, tqkv: Tensor | None, weights: list[Tensor], gradients: list[Tensor], heads: int, eps: float
) -> list[Tensor]:
    from .triton import backward_kernel

    outputs = _backward_fake(qkv, tqkv, weights, gradients, heads, eps)
    pair = tqkv is not None
    qkv = qkv.contiguous()
    size = head_size(qkv, heads)
    block, rows_of_tile, rows = _tile(qkv, heads, size)
    gradients = [g if g.stride(-1) == 1 else g.contiguous() for g in gradients]
    six = gradients if pair else gradients * 2
    with torch.cuda.device_of(qkv):
        backward_kernel[(outputs[-1].shape[0],)](
            qkv, tqkv.contiguous() if pair else qkv, *(weight.contiguous() for weight in weights), *six,
            outputs[0], outputs[1] if pair else outputs[0], outputs[-1],
            *(g.stride(axis) for g in six for axis in (0, 1, 2)), rows, qkv.shape[1], eps,
            HEADS=heads, SIZE=size, BLOCK=block, ROWS=rows_of_tile, TILES=BACKWARD_TILES, STAGES=STAGES,
            PAIR=pair, num_warps=WARPS,
        )  # fmt: skip
    return outputs


def _backward_fake(
    qkv: Tensor, tqkv: Tensor | None, weights: list[Tensor], gradients: list[Tensor], heads: int, eps: float
) -> list[Tensor]:
    size = head_size(qkv, heads)
    _, rows_of_tile, rows = _tile(qkv, heads, size)
    return [*like_projections(qkv, tqkv), sums_of_programs(qkv, -(-rows // (rows_of_tile * BACKWARD_TILES)), 2, size)]


def _attention_backward(
    qkv: Tensor,
    tqkv: Tensor,
    weights: list[Tensor],
    results: list[Tensor],
    gradients: list[Tensor],
    heads: int,
    eps: float,
) -> list[Tensor]:
    """The normalised heads again, the gradient of attention, and that of the norm. One operator: a compiler that saw
    the first step would keep its results from the forward instead."""
    q, k, tq, tk = _normalised(qkv, tqkv, weights, heads, eps)
    parts = torch.ops.tvmatch.dual_attention_backward(
        q, k, _values(qkv, heads), tq, tk, _values(tqkv, heads), None, *results,
        *(_split(gradient, heads) for gradient in gradients), q.shape[-1] ** -0.5, False, "auto",
    )  # fmt: skip
    return torch.ops.tvmatch.head_norm_backward(qkv, tqkv, weights, parts, heads, eps)


def _attention_backward_fake(
    qkv: Tensor, tqkv: Tensor, weights: list[Tensor], results: list[Tensor], *rest: object
) -> list[Tensor]:
    return _backward_fake(qkv, tqkv, weights, *rest)


def _tile(qkv: Tensor, heads: int, size: int) -> tuple[int, int, int]:
    """Padded width of a head, rows of a tile, and the number of rows."""
    block = 1 << (size - 1).bit_length()
    return block, max(1, TILE_ELEMENTS // block), qkv.shape[0] * qkv.shape[1] * heads


define_operators(
    head_norm=(
        "(Tensor qkv, Tensor? tqkv, Tensor[] weights, int heads, float eps) -> Tensor[]",
        _forward,
        _forward_fake,
    ),
    head_norm_backward=(
        "(Tensor qkv, Tensor? tqkv, Tensor[] weights, Tensor[] gradients, int heads, float eps) -> Tensor[]",
        _backward,
        _backward_fake,
    ),
    qkv_attention_backward=(
        "(Tensor qkv, Tensor tqkv, Tensor[] weights, Tensor[] results, Tensor[] gradients, int heads, float eps) "
        "-> Tensor[]",
        _attention_backward,
        _attention_backward_fake,
    ),
)
