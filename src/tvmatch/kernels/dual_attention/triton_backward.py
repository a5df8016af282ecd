"""The fused joint backward in Triton, for every head size, mask and dtype: two kernels without atomics.

`keys_kernel` owns a block of keys and walks the queries (dk, dv, dtk, dtv); `queries_kernel` owns a block of queries
and walks the keys (dq, dtq). Each recomputes the scores from the saved statistics: 21 matrix products where one pass
needs 15, in exchange for results that do not depend on the order in which blocks run, and no sums over blocks. On
Hopper GPUs `hopper_queries.py` and `hopper_keys.py` do the same.

Both use one fact: ``(S, tS)`` and ``(C + d1, dP)`` are the same dual product ``(x y^T, tx y^T + x ty^T)``, of
(q, tq) with (k, tk) and of (dto, do) with (v, tv).
"""

import triton
import triton.language as tl

from .triton_forward import REST_SCALE, head_start, load_tile


@triton.jit
def deltas_kernel(
    O, TO, REST, DO, DTO, D1_OUT, D2_OUT,
    o_b, o_h, o_n, to_b, to_h, to_n, do_b, do_h, do_n, dto_b, dto_h, dto_n,
    H, N_Q, D: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, VEC: tl.constexpr,
    HAS_REST: tl.constexpr,
):  # fmt: skip
    """d1 = rowsum(dto * o) and d2 = rowsum(do * o) + rowsum(dto * to) for BM rows of one (sample, head)."""
    blocks = tl.cdiv(N_Q, BM)
    bh = tl.program_id(0) // blocks
    b = (bh // H).to(tl.int64)
    h = (bh % H).to(tl.int64)
    rows = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    live = rows < N_Q
    o = load_tile(head_start(O, b, h, o_b, o_h, VEC), rows, o_n, live, 0, WIDTH, D, VEC, True).to(tl.float32)
    to = load_tile(head_start(TO, b, h, to_b, to_h, VEC), rows, to_n, live, 0, WIDTH, D, VEC, True).to(tl.float32)
    do = load_tile(head_start(DO, b, h, do_b, do_h, VEC), rows, do_n, live, 0, WIDTH, D, VEC, True).to(tl.float32)
    dto = load_tile(head_start(DTO, b, h, dto_b, dto_h, VEC), rows, dto_n, live, 0, WIDTH, D, VEC, True).to(tl.float32)
    row = bh.to(tl.int64) * N_Q + rows
    if HAS_REST:
        columns = tl.arange(0, WIDTH)
        inside = live[:, None] & (columns[None, :] < D)
        rest = REST + row[:, None] * (2 * D) + columns[None, :] * 2
        o += tl.load(rest, mask=inside, other=0.0).to(tl.float32) * (1 / REST_SCALE)
        to += tl.load(rest + 1, mask=inside, other=0.0).to(tl.float32) * (1 / REST_SCALE)
    tl.store(D1_OUT + row, tl.sum(dto * o, 1), mask=live)
    tl.store(D2_OUT + row, tl.sum(do * o, 1) + tl.sum(dto * to, 1), mask=live)


@triton.jit
def product(x1, x2, y1, y2, D2: tl.constexpr, PRECISION: tl.constexpr):
    """x y^T over both parts of the head."""
    out = tl.dot(x1, tl.trans(y1), input_precision=PRECISION)
    if D2 > 0:
        out = tl.dot(x2, tl.trans(y2), out, input_precision=PRECISION)
    return out


@triton.jit
def tangent_product(
    x1, x2, tx1, tx2, y1, y2, ty1, ty2, HAS_TX: tl.constexpr, HAS_TY: tl.constexpr, D2: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """tx y^T + x ty^T, at least one tangent present."""
    if HAS_TX:
        out = product(tx1, tx2, y1, y2, D2, PRECISION)
        if HAS_TY:
            out = tl.dot(x1, tl.trans(ty1), out, input_precision=PRECISION)
            if D2 > 0:
                out = tl.dot(x2, tl.trans(ty2), out, input_precision=PRECISION)
        return out
    return product(x1, x2, ty1, ty2, D2, PRECISION)
