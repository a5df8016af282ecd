"""The `torch.library` operators around the kernels, and their gradient.

`dual_attention` is made for long sequences: it reads normalised heads that another kernel has written, and its backward
is two kernels. Where all tokens of a sample fit into one tile, that traffic is most of its time.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tvmatch.kernels.elementwise import launches_triton, refuse_double_backward

_library = torch.library.Library("tvmatch", "FRAGMENT")
_library.define(
    "short_attention(Tensor qkv, Tensor? tqkv, Tensor q_weight, Tensor k_weight, int heads, float eps) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "short_attention_backward(Tensor qkv, Tensor? tqkv, Tensor q_weight, Tensor k_weight, Tensor[] gradients, "
    "int heads, float eps) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)

MAX_TOKENS = MAX_SIZE = 64  # of a tile: four of its size are held in registers at once
WARPS = 4


def applies(qkv: Tensor, heads: int) -> bool:
    """Whether the kernels take this packed projection [B, N, 3 heads D]: on a GPU in 16 bits, N and D up to 64."""
    return (
        launches_triton(qkv)
        and qkv.dtype != torch.float32
        and qkv.dim() == 3
        and qkv.shape[1] <= MAX_TOKENS
        and qkv.shape[2] // (3 * heads) <= MAX_SIZE
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
        ctx: FunctionCtx,
        qkv: Tensor,
        tqkv: Tensor | None,
        q_weight: Tensor,
        k_weight: Tensor,
        heads: int,
        eps: float,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(qkv, tqkv, q_weight, k_weight)
        ctx.heads, ctx.eps = heads, eps
        return tuple(torch.ops.tvmatch.short_attention(qkv, tqkv, q_weight, k_weight, heads, eps))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, tqkv, q_weight, k_weight = ctx.saved_tensors
        *streams, sums = torch.ops.tvmatch.short_attention_backward(
            qkv, tqkv, q_weight, k_weight, list(gradients), ctx.heads, ctx.eps
        )
        gtqkv = None if tqkv is None else streams[1]
        return streams[0], gtqkv, *sums.sum(dim=0).unbind(), None, None


def _tile(qkv: Tensor, heads: int) -> dict[str, object]:
    """What both kernels are compiled for."""
    size = qkv.shape[2] // (3 * heads)
    rows, block = (max(16, 1 << (n - 1).bit_length()) for n in (qkv.shape[1], size))
    # products of float32 would be rounded to 10 bits otherwise; only tests call the kernels with it
    exact = "ieee" if qkv.dtype == torch.float32 else "tf32"
    return {"HEADS": heads, "SIZE": size, "ROWS": rows, "BLOCK": block, "EXACT": exact, "num_warps": WARPS}


def _forward(
    qkv: Tensor, tqkv: Tensor | None, q_weight: Tensor, k_weight: Tensor, heads: int, eps: float
) -> list[Tensor]:
    from .triton import short_forward_kernel

    outputs = _forward_fake(qkv, tqkv, q_weight, k_weight, heads, eps)
    pair = tqkv is not None
    qkv = qkv.contiguous()
    size = qkv.shape[2] // (3 * heads)
    with torch.cuda.device_of(qkv):
        short_forward_kernel[(qkv.shape[0] * heads,)](
            qkv, tqkv.contiguous() if pair else qkv, q_weight, k_weight, outputs[0], outputs[-1],
            qkv.shape[1], eps, size**-0.5, PAIR=pair, **_tile(qkv, heads),
        )  # fmt: skip
    return outputs


def _forward_fake(
    qkv: Tensor, tqkv: Tensor | None, q_weight: Tensor, k_weight: Tensor, heads: int, eps: float
) -> list[Tensor]:
    return [qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // 3)) for _ in range(1 if tqkv is None else 2)]


def _backward(
    qkv: Tensor,
    tqkv: Tensor | None,
    q_weight: Tensor,
    k_weight: Tensor,
    gradients: list[Tensor],
    heads: int,
    eps: float,
) -> list[Tensor]:
    from .triton import short_backward_kernel

    outputs = _backward_fake(qkv, tqkv, q_weight, k_weight, gradients, heads, eps)
    pair = tqkv is not None
    qkv = qkv.contiguous()
    gradients = [g.contiguous() for g in gradients]
    size = qkv.shape[2] // (3 * heads)
    with torch.cuda.device_of(qkv):
        short_backward_kernel[(qkv.shape[0] * heads,)](
            qkv, tqkv.contiguous() if pair else qkv, q_weight, k_weight, gradients[0], gradients[-1],
            outputs[0], outputs[-2], outputs[-1], qkv.shape[1], eps, size**-0.5, PAIR=pair, **_tile(qkv, heads),
        )  # fmt: skip
    return outputs


def _backward_fake(
    qkv: Tensor,
    tqkv: Tensor | None,
    q_weight: Tensor,
    k_weight: Tensor,
    gradients: list[Tensor],
    heads: int,
    eps: float,
) -> list[Tensor]:
    streams = [torch.empty_like(qkv, memory_format=torch.contiguous_format) for _ in range(1 if tqkv is None else 2)]
    size = qkv.shape[2] // (3 * heads)
    return [*streams, q_weight.new_empty((qkv.shape[0] * heads, 2, size), dtype=torch.float32)]


for _name, _real, _fake in (
    ("short_attention", _forward, _forward_fake),
    ("short_attention_backward", _backward, _backward_fake),
):
    _library.impl(_name, _real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tvmatch::{_name}", _fake, lib=_library)
refuse_double_backward(_library, ("short_attention", "short_attention_backward"))
