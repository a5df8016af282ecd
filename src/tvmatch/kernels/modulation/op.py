"""The `torch.library` operators around the kernels, and their gradient.

A compiler would give back the gradients of the chunks as one tensor first, and look for each number in all of them: on
an H200, DiT-S/4 at batch 1024 spent 140 us a block where the traffic needs 15.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tvmatch.kernels.elementwise import define_operators, launches_triton
from tvmatch.kernels.tangents import refuse_dual_gradients

MAX_SIZE, MAX_CHUNKS = 8192, 8  # a chunk lives in the registers of one program; a pointer is handed over for each
# Of fewer samples the compiler's own kernels take some 20 us a block (DiT-XL/2 at batch 64), and the final layer's two
# chunks come once a step: neither is worth kernels that the first step must compile.
MIN_SAMPLES, MIN_CHUNKS = 256, 3


def applies(m: Tensor, count: int) -> bool:
    """Whether the kernels take this projection [B, count C]: on a GPU, float32 or 16 bits, 256 samples or more, 3 to 8
    chunks of C up to 8192."""
    return (
        launches_triton(m)
        and m.dim() == 2
        and m.shape[0] >= MIN_SAMPLES
        and MIN_CHUNKS <= count <= MAX_CHUNKS
        and m.shape[1] // count <= MAX_SIZE
    )


def normalised_chunks(m: Tensor, tm: Tensor | None, count: int, eps: float) -> tuple[Tensor, ...]:
    """The projection m [B, count C] as `count` RMS-normalised vectors [B, 1, C] in float32, each in memory of its own;
    with a tangent tm, the tangents of all of them follow.

    eps: added to the mean squares.
    """
    return _NormalisedChunks.apply(m, tm, count, eps)


class _NormalisedChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, m: Tensor, tm: Tensor | None, count: int, eps: float) -> tuple[Tensor, ...]:
        ctx.save_for_backward(m, tm)
        ctx.eps = eps
        return tuple(torch.ops.tvmatch.normalised_chunks(m, tm, count, eps))

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_dual_gradients(gradients, "the modulation")
        m, tm = ctx.saved_tensors
        results = torch.ops.tvmatch.normalised_chunks_backward(m, tm, list(gradients), ctx.eps)
        return results[0], None if tm is None else results[1], None, None


def _forward(m: Tensor, tm: Tensor | None, count: int, eps: float) -> list[Tensor]:
    from .triton import chunks_forward_kernel

    outputs = _forward_fake(m, tm, count, eps)
    m = m.contiguous()
    with torch.cuda.device_of(m):
        chunks_forward_kernel[(len(m),)](
            m, m if tm is None else tm.contiguous(), tuple(outputs[:count]), tuple(outputs[-count:]), eps,
            PAIR=tm is not None, **_tile(m, count),
        )  # fmt: skip
    return outputs


def _forward_fake(m: Tensor, tm: Tensor | None, count: int, eps: float) -> list[Tensor]:
    shape = (m.shape[0], 1, m.shape[1] // count)
    return [m.new_empty(shape, dtype=torch.float32) for _ in range(count if tm is None else 2 * count)]


def _backward(m: Tensor, tm: Tensor | None, gradients: list[Tensor], eps: float) -> list[Tensor]:
    from .triton import chunks_backward_kernel

    outputs = _backward_fake(m, tm, gradients, eps)
    m = m.contiguous()
    rows = [g.float() if g.stride(2) == 1 else g.float().contiguous() for g in gradients]
    count = len(rows) if tm is None else len(rows) // 2
    primals, tangents = tuple(rows[:count]), tuple(rows[-count:])
    with torch.cuda.device_of(m):
        chunks_backward_kernel[(len(m),)](
            m, m if tm is None else tm.contiguous(), primals, tangents,
            tuple(row.stride(0) for row in primals), tuple(row.stride(0) for row in tangents),
            outputs[0], outputs[-1], eps, PAIR=tm is not None, **_tile(m, count),
        )  # fmt: skip
    return outputs


def _backward_fake(m: Tensor, tm: Tensor | None, gradients: list[Tensor], eps: float) -> list[Tensor]:
    return [torch.empty_like(m, memory_format=torch.contiguous_format) for _ in range(1 if tm is None else 2)]


def _tile(m: Tensor, count: int) -> dict[str, int]:
    """What both kernels are compiled for: four numbers a thread and at least."""
    size = m.shape[1] // count
    block = 1 << (size - 1).bit_length()
    return {"COUNT": count, "SIZE": size, "BLOCK": block, "num_warps": min(8, max(1, block // 128))}


define_operators(
    normalised_chunks=(
        "(Tensor m, Tensor? tm, int count, float eps) -> Tensor[]",
        _forward,
        _forward_fake,
    ),
    normalised_chunks_backward=(
        "(Tensor m, Tensor? tm, Tensor[] gradients, float eps) -> Tensor[]",
        _backward,
        _backward_fake,
    ),
)
