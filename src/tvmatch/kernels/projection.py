"""The packed projection [B, N, 3 heads D] of queries, keys and values: what kernels that read it have in common."""

import torch
from torch import Tensor


def head_size(qkv: Tensor, heads: int) -> int:
    """D."""
    return qkv.shape[-1] // (3 * heads)


def like_projections(qkv: Tensor, tqkv: Tensor | None) -> list[Tensor]:
    """Memory for the gradient of the projection, and of its tangent where there is one."""
    return [torch.empty_like(qkv, memory_format=torch.contiguous_format) for _ in range(1 if tqkv is None else 2)]


def sums_of_programs(qkv: Tensor, programs: int, kinds: int, size: int) -> Tensor:
    """Memory for what each program of a kernel adds up, float32."""
    return qkv.new_empty((programs, kinds, size), dtype=torch.float32)
