"""Launching the fused kernels: which problems they take, with which block sizes, on which path.

``TVMATCH_AUTOTUNE=0`` takes the first entry of the tables below without timing anything. Otherwise the first call of a
kind of problem times the few entries of its table (about 0.5-3 s of compilation each) and keeps the fastest for the
process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import hopper
from .rest import as_float8, empty_rest
from .triton_backward import deltas_kernel
from .triton_forward import forward_kernel
from .triton_keys import keys_kernel
from .triton_queries import queries_kernel

REACH = 2**31 - 1  # elements from a head's first: offsets within one have 32 bits
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


class Config(NamedTuple):
    """Block sizes of one launch: BM queries by BN keys."""

    BM: int
    BN: int
    num_warps: int
    num_stages: int


# Per kernel: padded head size -> configurations for 16-bit inputs, the default first. Every entry is checked against
# float64 by the GPU tests: Triton 3.6 miscompiled some others (num_stages=1 with a head in two parts).
_FORWARD = {
    32: [Config(128, 64, 4, 2), Config(64, 64, 4, 3)],
    64: [Config(64, 64, 4, 3), Config(64, 64, 4, 2), Config(128, 64, 8, 3)],
    96: [Config(64, 64, 4, 2), Config(64, 32, 4, 3)],
    128: [Config(128, 64, 8, 2), Config(64, 64, 4, 3)],
    256: [Config(64, 32, 8, 2)],
}
_KEYS = {
    32: [Config(32, 64, 4, 2)],
    64: [Config(32, 64, 4, 2), Config(32, 128, 8, 2)],
    96: [Config(32, 64, 4, 2)],
    128: [Config(32, 32, 4, 2)],
    256: [Config(32, 32, 8, 1)],
}
_QUERIES = {
    32: [Config(64, 64, 4, 2)],
    64: [Config(64, 64, 4, 2), Config(128, 64, 8, 2)],
    96: [Config(64, 32, 4, 3), Config(64, 32, 4, 2)],
    128: [Config(64, 32, 4, 2)],
    256: [Config(32, 32, 8, 1)],
}
# float32 has twice the bytes and no fast matrix unit unless tf32 is allowed: small blocks everywhere.
_FLOAT32 = {
    32: [Config(64, 32, 4, 2)],
    64: [Config(32, 32, 4, 1)],
    128: [Config(32, 16, 4, 1)],
    256: [Config(16, 16, 4, 1)],
}


def split_head(D: int) -> tuple[int, int]:
    """D as the sum of two tile widths: the largest power of two below it, and the padded rest (0 if none)."""
    first = 1 << (D.bit_length() - 1)
    rest = D - first
    return first, 0 if rest == 0 else max(16, triton.next_power_of_2(rest))


def unsupported(q: Tensor, k: Tensor) -> str | None:
    """Why the fused kernel cannot take this problem, or None if it can."""
    if not (q.is_cuda or INTERPRETED):
        return f"q is on {q.device}, and the fused kernel needs a CUDA device (or TRITON_INTERPRET=1)"
    if q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"q has dtype {q.dtype}, and the fused kernel takes bfloat16, float16 and float32"
    if INTERPRETED and q.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly (it takes the bits for integers)"
    D = q.shape[3]
    if D % 8 or not 16 <= D <= 256:
        return f"the head size is {D}, and the fused kernel takes multiples of 8 from 16 to 256"
    largest = max(x[0].numel() for x in (q, k))
    if largest > REACH:
        return f"a sample has {largest} numbers, and the fused kernel reaches {REACH}"
    return None


def _reachable(x: Tensor | None) -> Tensor | None:
    """A copy of what lies too far apart in memory, as a view of a very long packed projection can."""
    far = x is not None and (x.shape[2] - 1) * x.stride(2) + x.shape[3] > REACH
    return x.contiguous() if far else x


def _precision(q: Tensor) -> str:
    """Full float32 products unless the user allowed tf32 (``torch.set_float32_matmul_precision``)."""
    return "tf32" if q.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


def _strides(vec: int, *tensors: Tensor | None) -> list[int]:
    """(batch, head, token) strides of each tensor in units of `vec` elements; zeros for an absent one."""
    return [s // vec for x in tensors for s in ((0, 0, 0) if x is None else x.stride()[:3])]


def _vec(*tensors: Tensor | None) -> int:
    """Elements of which every stride is a multiple, at most 8: enough for 16-byte loads of 16-bit numbers."""
    step = 8
    for x in tensors:
        if x is not None:
            for s, n in zip(x.stride()[:3], x.shape, strict=False):
                while n > 1 and s % step:
                    step //= 2
    return step


_chosen: dict[tuple, Config] = {}


def _choose(key: tuple, table: dict[int, list[Config]], width: int, launch: Callable[[Config], None]) -> Config:
    """The configuration of a problem: from the cache, the table's first, or the fastest of the table."""
    if key in _chosen:
        return _chosen[key]
    candidates = table[next(w for w in table if width <= w)]
    skip = INTERPRETED or os.environ.get("TVMATCH_AUTOTUNE", "1") == "0" or torch.cuda.is_current_stream_capturing()
    if skip or len(candidates) == 1:
        return candidates[0]
    timed = []
    for config in candidates:
        try:
            launch(config)
            torch.cuda.synchronize()
        except triton.runtime.errors.OutOfResources:
            continue
        times = []
        for _ in range(3):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            launch(config)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        timed.append((min(times), config))
    _chosen[key] = min(timed)[1] if timed else candidates[0]
    return _chosen[key]


def _round_up_log(n: int) -> int:
    return (max(n, 1) - 1).bit_length()


def forward(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None,
    kv_lengths: Tensor | None, scale: float, causal: bool, keep_rest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """o, to, logsumexp, mu, rest: the same contract as `reference.dual_attention_forward`."""
    q, k, v, tq, tk, tv = (_reachable(x) for x in (q, k, v, tq, tk, tv))
    kv_lengths = None if kv_lengths is None else kv_lengths.contiguous()  # of it a kernel knows no stride
    if hopper.takes((q, k, v, tq, tk, tv), kv_lengths, causal):
        return hopper.forward(q, k, v, tq, tk, tv, scale, keep_rest)
    B, H, n_q, D = q.shape
    n_kv = k.shape[2]
    o, to = torch.empty_like(q), torch.empty_like(q)
    lse = torch.empty((B, H, n_q), device=q.device, dtype=torch.float32)
    mu, rest = torch.empty_like(lse), empty_rest(o, keep_rest)
    d1, d2 = split_head(D)
    tensors = (q, k, v, tq, tk, tv, o, to)
    vec, precision = _vec(*tensors), _precision(q)

    def launch(c: Config) -> None:
        forward_kernel[(triton.cdiv(n_q, c.BM) * B * H,)](
            q, k, v, tq, tk, tv, o, to, lse, mu, as_float8(rest), kv_lengths, *_strides(vec, *tensors), scale, H, n_q,
            n_kv,
            D=D, D1=d1, D2=d2, BM=c.BM, BN=c.BN, HAS_TQ=tq is not None, HAS_TK=tk is not None,
            HAS_TV=tv is not None, HAS_LENGTHS=kv_lengths is not None, CAUSAL=causal, EVEN_KV=n_kv % c.BN == 0,
            VEC=vec, PRECISION=precision, HAS_REST=rest.shape[3] > 0, num_warps=c.num_warps, num_stages=c.num_stages,
        )  # fmt: skip

    table = _FLOAT32 if q.dtype == torch.float32 else _FORWARD
    launch(_choose(("forward", *_problem(q, k, tq, tk, tv, causal)), table, d1 + d2, launch))
    return o, to, lse, mu, rest


def _problem(q: Tensor, k: Tensor, tq, tk, tv, causal: bool) -> tuple:
    """What the best configuration depends on. Lengths to the next power of two: not one tuning per length."""
    return (
        q.device.index, q.dtype, q.shape[3], _round_up_log(q.shape[2]), _round_up_log(k.shape[2]),
        _round_up_log(q.shape[0] * q.shape[1]), tq is None, tk is None, tv is None, causal,
    )  # fmt: skip


def backward(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None,
    kv_lengths: Tensor | None, o: Tensor, to: Tensor, lse: Tensor, mu: Tensor, rest: Tensor, do: Tensor,
    dto: Tensor, scale: float, causal: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """dq, dk, dv, dtq, dtk, dtv: the same contract as `reference.dual_attention_backward`."""
    q, k, v, tq, tk, tv, do, dto = (_reachable(x) for x in (q, k, v, tq, tk, tv, do, dto))
    kv_lengths = None if kv_lengths is None else kv_lengths.contiguous()  # of these a kernel knows no stride, and a
    lse, mu, rest = (x.contiguous() for x in (lse, mu, rest))  # vmap gives views with one of 0
    if hopper.takes((q, k, v, tq, tk, tv, o, to, do, dto), kv_lengths, causal):
        return hopper.backward(q, k, v, tq, tk, tv, o, to, lse, mu, rest, do, dto, scale)
    B, H, n_q, D = q.shape
    n_kv = k.shape[2]
    grads = tuple(None if x is None else torch.empty_like(x) for x in (q, k, v, tq, tk, tv))
    dq, dk, dv, dtq, dtk, dtv = grads
    row_d1, row_d2 = torch.empty_like(lse), torch.empty_like(lse)
    d1, d2 = split_head(D)
    inputs = (q, k, v, tq, tk, tv, do, dto)
    vec, precision = _vec(*inputs, *grads, o, to), _precision(q)
    deltas_kernel[(triton.cdiv(n_q, 64) * B * H,)](
        o, to, as_float8(rest), do, dto, row_d1, row_d2, *_strides(vec, o, to, do, dto), H, n_q,
        D=D, WIDTH=triton.next_power_of_2(D), BM=64, VEC=vec, HAS_REST=rest.shape[3] > 0,
    )  # fmt: skip
    flags = {
        "D": D, "D1": d1, "D2": d2, "HAS_TQ": tq is not None, "HAS_TK": tk is not None, "HAS_TV": tv is not None,
        "HAS_LENGTHS": kv_lengths is not None, "CAUSAL": causal, "VEC": vec, "PRECISION": precision,
    }  # fmt: skip

    def launch_keys(c: Config) -> None:
        keys_kernel[(triton.cdiv(n_kv, c.BN) * B * H,)](
            *inputs, lse, mu, row_d1, row_d2, dk, dv, dtk, dtv, kv_lengths,
            *_strides(vec, *inputs, dk, dv, dtk, dtv), scale, H, n_q, n_kv, BM=c.BM, BN=c.BN, **flags,
            EVEN_Q=n_q % c.BM == 0, EVEN_KV=n_kv % c.BN == 0, num_warps=c.num_warps, num_stages=c.num_stages,
        )  # fmt: skip

    def launch_queries(c: Config) -> None:
        queries_kernel[(triton.cdiv(n_q, c.BM) * B * H,)](
            *inputs, lse, mu, row_d1, row_d2, dq, dtq, kv_lengths,
            *_strides(vec, *inputs, dq, dtq), scale, H, n_q, n_kv, BM=c.BM, BN=c.BN, **flags,
            EVEN_KV=n_kv % c.BN == 0, num_warps=c.num_warps, num_stages=c.num_stages,
        )  # fmt: skip

    half = q.dtype != torch.float32
    problem = _problem(q, k, tq, tk, tv, causal)
    launch_keys(_choose(("keys", *problem), _KEYS if half else _FLOAT32, d1 + d2, launch_keys))
    launch_queries(_choose(("queries", *problem), _QUERIES if half else _FLOAT32, d1 + d2, launch_queries))
    return grads
