"""Launching the Hopper kernels: which problems they take, and how their shared memory is divided."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .rest import as_pairs, empty_rest

try:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from .hopper_forward import hopper_forward_kernel
    from .hopper_keys import keys_kernel
    from .hopper_queries import queries_kernel

    AVAILABLE = True
except ImportError:  # a Triton without Gluon's Hopper dialect: the plain kernels do everything
    AVAILABLE = False

HEADS = range(48, 129, 8)


class Plan(NamedTuple):
    """How the three kernels divide 227 KB of shared memory, and the registers, for one pair of tile widths."""

    stages: int  # forward: stages of (k, tk, v, tv)
    overlap: bool  # forward: the scores of the next keys run under the products of these
    held: bool  # forward: q and tq stay in registers (always with overlap)
    slots: int  # queries kernel: slots of (k, tk) or (v, tv)
    buffers: int  # queries kernel: 2 loads the next queries under this tile
    query_held: bool  # queries kernel: q and dto stay in registers
    key_stages: int  # keys kernel: stages of (q, tq, do, dto)
    key_buffers: int  # keys kernel: 2 loads the next keys under this block
    key_held: bool  # keys kernel: k, tk, v, tv stay in registers
    key_ahead: bool  # keys kernel: C of the next queries runs under the products of these; needs key_held


PLANS = {
    (64, 0): Plan(4, True, True, 5, 2, True, 3, 2, True, True),
    (64, 16): Plan(4, False, True, 3, 2, False, 2, 2, True, False),
    (64, 32): Plan(3, False, False, 5, 1, False, 2, 2, False, False),
    (128, 0): Plan(2, False, False, 3, 1, False, 2, 1, False, False),
}


def split_head(D: int) -> tuple[int, int]:
    """Tile widths of a head of D columns; the copy engine fills the rest with zeros."""
    return next(widths for widths in PLANS if sum(widths) >= D)


@functools.cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _is_hopper(device: int) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


def _copyable(x: Tensor) -> bool:
    """The bulk copy engine wants 16-byte aligned rows and no expanded dimension."""
    aligned = all(s > 0 and s % 8 == 0 for s, n in zip(x.stride()[:3], x.shape, strict=False) if n > 1)
    return aligned and x.data_ptr() % 16 == 0


def takes(tensors: tuple[Tensor | None, ...], kv_lengths: Tensor | None, causal: bool) -> bool:
    """Whether `forward` or `backward` can run and pays: no masks, all tangents, 16 bits, aligned rows."""
    if not AVAILABLE or causal or kv_lengths is not None or os.environ.get("TVMATCH_HOPPER", "1") == "0":
        return False
    q = tensors[0]
    return (
        q.is_cuda
        and _is_hopper(q.device.index)
        and q.shape[3] in HEADS
        and q.dtype in (torch.bfloat16, torch.float16)
        and all(x is not None and _copyable(x) for x in tensors)
    )


@functools.cache
def _window(width: int, dtype: torch.dtype) -> tuple[list[int], object]:
    """Block shape and shared-memory layout of a tile; cached, because building them takes longer than the launch."""
    block = [1, 1, 64, width]
    return block, gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16 if dtype == torch.bfloat16 else gl.float16)


@functools.cache
def _row_layout() -> object:
    return gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)


def _descriptors(*tensors: Tensor) -> list[TensorDescriptor | None]:
    """For each [B, H, N, D] tensor windows of 64 rows and of the two tile widths; rows beyond N read as zeros."""
    found = []
    for x in tensors:
        # The stride of a dimension of one element means nothing and may be unaligned.
        strides = [8 if n == 1 else s for s, n in zip(x.stride()[:3], x.shape[:3], strict=True)]
        for width in split_head(x.shape[3]):
            window = _window(width, x.dtype) if width else None
            found.append(window and TensorDescriptor(x, list(x.shape), [*strides, 1], *window))
    return found


def _blocks(tiles: int, x: Tensor) -> tuple[int]:
    """Grid of a persistent kernel."""
    return (min(tiles, _multiprocessors(x.device.index)),)


def forward(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor, scale: float,
    keep_rest: bool, plan: Plan | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """o, to, logsumexp, mu, rest: the contract of `reference.dual_attention_forward` without masks."""
    B, H, n_q, D = q.shape
    n_kv = k.shape[2]
    d1, d2 = split_head(D)
    plan = plan or PLANS[d1, d2]
    o, to = torch.empty_like(q), torch.empty_like(q)
    lse = torch.empty((B, H, n_q), device=q.device, dtype=torch.float32)
    mu, rest = torch.empty_like(lse), empty_rest(o, keep_rest)
    hopper_forward_kernel[_blocks(B * H * triton.cdiv(n_q, 128), q)](
        *_descriptors(q, k, v, tq, tk, tv), o, to, lse, mu, as_pairs(rest), *(s // 8 for s in o.stride()[:3]), scale,
        B, H, n_q, n_kv, HEAD=D, D1=d1, D2=d2, STAGES=plan.stages, EVEN=n_kv % 64 == 0, OVERLAP=plan.overlap,
        HELD=plan.held, HAS_REST=rest.shape[3] > 0, num_warps=4,
    )  # fmt: skip
    return o, to, lse, mu, rest


def backward(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor, o: Tensor, to: Tensor, lse: Tensor,
    mu: Tensor, rest: Tensor, do: Tensor, dto: Tensor, scale: float, plan: Plan | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dq, dk, dv, dtq, dtk, dtv: the contract of `reference.dual_attention_backward` without masks."""
    B, H, n_q, D = q.shape
    n_kv = k.shape[2]
    d1, d2 = split_head(D)
    plan = plan or PLANS[d1, d2]
    dq, dk, dv, dtq, dtk, dtv = (torch.empty_like(x) for x in (q, k, v, tq, tk, tv))
    if o.stride() != to.stride():
        o, to = o.contiguous(), to.contiguous()
    padded = triton.cdiv(n_q, 64) * 64
    plane = B * H * padded
    stats = torch.empty((4, B * H, padded), device=q.device, dtype=torch.float32)
    inputs = _descriptors(q, k, v, tq, tk, tv, do, dto)
    sizes = (scale, B, H, n_q, n_kv, padded, plane)
    queries_kernel[_blocks(2 * B * H * triton.cdiv(n_q, 128), q)](
        *inputs, *_descriptors(dq, dtq), o, to, lse, mu, as_pairs(rest), stats, *(s // 8 for s in o.stride()[:3]),
        *sizes, HEAD=D, D1=d1, D2=d2, SLOTS=plan.slots, BUFFERS=plan.buffers, EVEN=n_kv % 64 == 0,
        HELD=plan.query_held, HAS_REST=rest.shape[3] > 0, num_warps=4,
    )  # fmt: skip
    rows = TensorDescriptor(stats, [4 * plane], [1], [64], _row_layout())
    keys_kernel[_blocks(B * H * triton.cdiv(n_kv, 64), q)](
        *inputs, *_descriptors(dk, dv, dtk, dtv), rows, *sizes, D1=d1, D2=d2, STAGES=plan.key_stages,
        KEY_BUFFERS=plan.key_buffers, EVEN=n_kv % 64 == 0, HELD=plan.key_held,
        AHEAD=plan.key_ahead, num_warps=4,
    )  # fmt: skip
    return dq, dk, dv, dtq, dtk, dtv
