"""Launching the Hopper kernels: which problems they take and how their scratch memory is laid out."""

from __future__ import annotations

import functools
import os

import torch
import triton
from torch import Tensor

try:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from .hopper_backward import hopper_backward_kernel
    from .hopper_forward import hopper_forward_kernel
    from .hopper_sums import statistics_kernel

    AVAILABLE = True
except ImportError:  # a Triton without Gluon's Hopper dialect: the plain kernels do everything
    AVAILABLE = False

# Padded head size -> (keys per stage, stages, queries in registers, overlapped steps, alternating warpgroups).
FORWARD = {64: (64, 4, True, True, False), 128: (64, 2, False, False, False)}
# Padded head size -> (stages, lag). `lag`: how many tiles a block should find the one before it ahead; it sets how
# many heads are in flight.
BACKWARD = {64: (3, 3.0), 128: (2, 2.0)}


def padded_head(D: int) -> int:
    """Width of the tile that holds a head of D columns: the copy engine fills the rest with zeros."""
    return 64 if D <= 64 else 128


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


def _takes(tensors: tuple[Tensor | None, ...], kv_lengths: Tensor | None, causal: bool, heads: range) -> bool:
    if not AVAILABLE or causal or kv_lengths is not None or os.environ.get("TVMATCH_HOPPER", "1") == "0":
        return False
    q = tensors[0]
    return (
        q.is_cuda
        and _is_hopper(q.device.index)
        and q.shape[3] in heads
        and q.dtype in (torch.bfloat16, torch.float16)
        and all(x is not None and _copyable(x) for x in tensors)
    )


def takes_forward(tensors: tuple[Tensor | None, ...], kv_lengths: Tensor | None, causal: bool) -> bool:
    """Whether `forward` can run and pays: no masks, all tangents, 16 bits, aligned rows, a head that fills its tile."""
    D = tensors[0].shape[3]
    return _takes(tensors, kv_lengths, causal, range(104, 129, 8) if D > 64 else range(48, 65, 8))


def takes_backward(tensors: tuple[Tensor | None, ...], kv_lengths: Tensor | None, causal: bool) -> bool:
    """Whether `backward` can run and pays."""
    return takes_forward(tensors, kv_lengths, causal)


@functools.cache
def _window(rows: int, D: int, dtype: torch.dtype) -> tuple[list[int], object]:
    """Block shape and shared-memory layout of a tile; cached, because building them takes longer than the launch."""
    block = [1, 1, rows, padded_head(D)]
    return block, gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16 if dtype == torch.bfloat16 else gl.float16)


@functools.cache
def _row_layout() -> object:
    return gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)


def _descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """A [1, 1, rows, D] window on a [B, H, N, D] tensor; rows beyond N read as zeros."""
    block, layout = _window(rows, x.shape[3], x.dtype)
    # The stride of a dimension of one element means nothing and may be unaligned.
    strides = [8 if n == 1 else s for s, n in zip(x.stride()[:3], x.shape[:3], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], block, layout)


def forward(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor, scale: float,
    config: tuple[int, int, bool, bool, bool] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """o, to, logsumexp, mu: the contract of `reference.dual_attention_forward` without masks."""
    B, H, n_q, D = q.shape
    n_kv = k.shape[2]
    padded = padded_head(D)
    keys, stages, in_registers, overlap, alternate = config or FORWARD[padded]
    o, to = torch.empty_like(q), torch.empty_like(q)
    lse = torch.empty((B, H, n_q), device=q.device, dtype=torch.float32)
    mu = torch.empty_like(lse)
    tiles = B * H * triton.cdiv(n_q, 128)
    hopper_forward_kernel[(min(tiles, _multiprocessors(q.device.index)),)](
        _descriptor(q, 64), _descriptor(k, keys), _descriptor(v, keys),
        _descriptor(tq, 64), _descriptor(tk, keys), _descriptor(tv, keys),
        o, to, lse, mu, *(s // 8 for s in o.stride()[:3]), scale, B, H, n_q, n_kv,
        HEAD=D, BN=keys, D=padded, STAGES=stages, EVEN=n_kv % keys == 0, Q_REGS=in_registers, OVERLAP=overlap,
        PINGPONG=alternate, num_warps=4,
    )  # fmt: skip
    return o, to, lse, mu


def backward(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor, o: Tensor, to: Tensor, lse: Tensor,
    mu: Tensor, do: Tensor, dto: Tensor, scale: float, config: tuple[int, float] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dq, dk, dv, dtq, dtk, dtv: the contract of `reference.dual_attention_backward` without masks."""
    B, H, n_q, D = q.shape
    n_kv = k.shape[2]
    width = padded_head(D)
    stages, lag = config or BACKWARD[width]
    grads = tuple(torch.empty_like(x) for x in (q, k, v, tq, tk, tv))
    dq, dk, dv, dtq, dtk, dtv = grads
    tiles = triton.cdiv(n_q, 64)
    padded = tiles * 64
    plane = B * H * padded
    stats = torch.empty((4, B * H, padded), device=q.device, dtype=torch.float32)
    statistics_kernel[(B * H * tiles,)](
        o, to, do, dto, lse, mu, stats, *(s // 8 for x in (o, do, dto) for s in x.stride()[:3]), H, n_q,
        padded, plane, HEAD=D, D=width,
    )  # fmt: skip
    positions = triton.cdiv(n_kv, 64)
    # Blocks that start together should belong to different heads, so many heads that a position starts when the one
    # before it is `lag` tiles ahead. One head's blocks alone would wait for each other.
    # A quarter of the heads is 6% of the memory of inputs, results and gradients: no more, unless heads are few.
    group = min(int(lag * _multiprocessors(q.device.index) / tiles) + 1, max(8, B * H // 4), B * H)
    counters = torch.zeros(1 + 2 * group * tiles, device=q.device, dtype=torch.int32)
    partials = torch.empty(2 * group * padded * width if positions > 1 else 1, device=q.device, dtype=torch.float32)
    rows = TensorDescriptor(stats, [4 * plane], [1], [64], _row_layout())
    hopper_backward_kernel[(B * H * positions,)](
        _descriptor(q, 64), _descriptor(k, 64), _descriptor(v, 64),
        _descriptor(tq, 64), _descriptor(tk, 64), _descriptor(tv, 64),
        _descriptor(do, 64), _descriptor(dto, 64), rows, dq, dk, dv, dtq, dtk, dtv,
        *(s for x in grads for s in x.stride()[:3]), partials, counters, scale, B, H, n_q, n_kv, padded, plane, group,
        HEAD=D, D=width, STAGES=stages, EVEN=n_kv % 64 == 0, num_warps=4,
    )  # fmt: skip
    return grads
