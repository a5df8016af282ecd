"""The sum of 16-bit gradients in float32: by PyTorch each would be cast, and the casts added, each in a pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tvmatch.kernels.elementwise import launches_triton

MOST = 4  # parts that the kernel takes
BLOCK, WARPS = 2048, 4


def gradient_sum(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The sum of one tensor or more, of equal shape, computed and returned in `dtype`."""
    if len(parts) > 1 and applies(parts, dtype):
        return _launch(parts)
    first, *others = parts
    total = first.to(dtype)
    for part in others:
        total = total + part  # not in place: `to` may have returned the part itself
    return total


def applies(parts: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the kernel adds these: up to four on a GPU, in 16 bits and in one piece, to float32."""
    return (
        dtype == torch.float32
        and len(parts) <= MOST
        and all(launches_triton(p) and p.dtype == parts[0].dtype != torch.float32 for p in parts)
        and all(p.is_contiguous() and p.shape == parts[0].shape for p in parts)
    )


def _launch(parts: Sequence[Tensor]) -> Tensor:
    from .triton import sum_kernel

    total = torch.empty_like(parts[0], dtype=torch.float32)
    pointers = [*parts, *[parts[0]] * (MOST - len(parts))]
    with torch.cuda.device_of(total):
        sum_kernel[(-(-total.numel() // BLOCK),)](
            *pointers, total, total.numel(), COUNT=len(parts), BLOCK=BLOCK, num_warps=WARPS
        )
    return total
