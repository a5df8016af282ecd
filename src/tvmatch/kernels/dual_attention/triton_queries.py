"""dq and dtq in Triton: one program owns a block of queries and walks the keys."""

import triton
import triton.language as tl

from .triton_backward import product, tangent_product
from .triton_forward import LOG2E, head_start, load_tile, store_tile


@triton.jit
def queries_kernel(
    Q, K, V, TQ, TK, TV, DO, DTO, LSE, MU, D1_IN, D2_IN, DQ, DTQ, LENGTHS,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, tq_b, tq_h, tq_n, tk_b, tk_h, tk_n, tv_b, tv_h, tv_n,
    do_b, do_h, do_n, dto_b, dto_h, dto_n, dq_b, dq_h, dq_n, dtq_b, dtq_h, dtq_n,
    scale, H, N_Q, N_KV,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_TQ: tl.constexpr, HAS_TK: tl.constexpr, HAS_TV: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    CAUSAL: tl.constexpr, EVEN_KV: tl.constexpr, VEC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq and dtq of BM queries of one (sample, head)."""
    MOVES: tl.constexpr = HAS_TQ or HAS_TK
    W2: tl.constexpr = D2 if D2 > 0 else 16
    blocks = tl.cdiv(N_Q, BM)
    pid = tl.program_id(0)
    bh = pid // blocks
    block = blocks - 1 - pid % blocks if CAUSAL else pid % blocks
    b = (bh // H).to(tl.int64)
    h = (bh % H).to(tl.int64)
    K = head_start(K, b, h, k_b, k_h, VEC)
    V = head_start(V, b, h, v_b, v_h, VEC)
    Q = head_start(Q, b, h, q_b, q_h, VEC)
    DO = head_start(DO, b, h, do_b, do_h, VEC)
    DTO = head_start(DTO, b, h, dto_b, dto_h, VEC)
    rows = block * BM + tl.arange(0, BM)
    live = rows < N_Q
    row = bh.to(tl.int64) * N_Q + rows
    q1 = load_tile(Q, rows, q_n, live, 0, D1, D, VEC, True)
    do1 = load_tile(DO, rows, do_n, live, 0, D1, D, VEC, True)
    dto1 = load_tile(DTO, rows, dto_n, live, 0, D1, D, VEC, True)
    q2 = load_tile(Q, rows, q_n, live, D1, D2, D, VEC, True) if D2 > 0 else q1
    do2 = load_tile(DO, rows, do_n, live, D1, D2, D, VEC, True) if D2 > 0 else do1
    dto2 = load_tile(DTO, rows, dto_n, live, D1, D2, D, VEC, True) if D2 > 0 else dto1
    tq1 = q1
    tq2 = q2
    if HAS_TQ:
        TQ = head_start(TQ, b, h, tq_b, tq_h, VEC)
        tq1 = load_tile(TQ, rows, tq_n, live, 0, D1, D, VEC, True)
        if D2 > 0:
            tq2 = load_tile(TQ, rows, tq_n, live, D1, D2, D, VEC, True)
    if HAS_TK:
        TK = head_start(TK, b, h, tk_b, tk_h, VEC)
    if HAS_TV:
        TV = head_start(TV, b, h, tv_b, tv_h, VEC)
    lse = tl.load(LSE + row, mask=live, other=float("inf")) * LOG2E
    mu = tl.load(MU + row, mask=live, other=0.0)
    d1 = tl.load(D1_IN + row, mask=live, other=0.0)
    d2 = tl.load(D2_IN + row, mask=live, other=0.0)
    length = N_KV
    if HAS_LENGTHS:
        length = tl.load(LENGTHS + b).to(tl.int32)
    stop = tl.minimum(length, N_KV)
    if CAUSAL:
        stop = tl.minimum(stop, (block + 1) * BM)
    dq1 = tl.zeros([BM, D1], tl.float32)
    dtq1 = tl.zeros([BM, D1], tl.float32)
    dq2 = tl.zeros([BM, W2], tl.float32)
    dtq2 = tl.zeros([BM, W2], tl.float32)
    scale2 = scale * LOG2E
    MASKED: tl.constexpr = HAS_LENGTHS or CAUSAL or not EVEN_KV
    for n0 in range(0, stop, BN):
        keys = n0 + tl.arange(0, BN)
        seen = keys < stop
        k1 = load_tile(K, keys, k_n, seen, 0, D1, D, VEC, MASKED)
        k2 = load_tile(K, keys, k_n, seen, D1, D2, D, VEC, MASKED) if D2 > 0 else k1
        tk1 = k1
        tk2 = k2
        p = tl.exp2(product(q1, q2, k1, k2, D2, PRECISION) * scale2 - lse[:, None])
        if MASKED:
            p = tl.where(seen[None, :], p, 0.0)
        if CAUSAL:
            p = tl.where(keys[None, :] <= rows[:, None], p, 0.0)
        v1 = load_tile(V, keys, v_n, seen, 0, D1, D, VEC, MASKED)
        v2 = load_tile(V, keys, v_n, seen, D1, D2, D, VEC, MASKED) if D2 > 0 else v1
        if HAS_TV:
            tv1 = load_tile(TV, keys, tv_n, seen, 0, D1, D, VEC, MASKED)
            tv2 = load_tile(TV, keys, tv_n, seen, D1, D2, D, VEC, MASKED) if D2 > 0 else tv1
            dp = tangent_product(dto1, dto2, do1, do2, v1, v2, tv1, tv2, True, True, D2, PRECISION)
        else:
            dp = product(do1, do2, v1, v2, D2, PRECISION)
        dp = dp - d2[:, None]
        if MOVES:
            if HAS_TK:
                tk1 = load_tile(TK, keys, tk_n, seen, 0, D1, D, VEC, MASKED)
                if D2 > 0:
                    tk2 = load_tile(TK, keys, tk_n, seen, D1, D2, D, VEC, MASKED)
            ts = tangent_product(q1, q2, tq1, tq2, k1, k2, tk1, tk2, HAS_TQ, HAS_TK, D2, PRECISION)
            c = product(dto1, dto2, v1, v2, D2, PRECISION) - d1[:, None]
            dp = dp + (ts * scale - mu[:, None]) * c
            dts = (p * c).to(k1.dtype)
            if HAS_TQ:
                dtq1 = tl.dot(dts, k1, dtq1, input_precision=PRECISION)
                if D2 > 0:
                    dtq2 = tl.dot(dts, k2, dtq2, input_precision=PRECISION)
            if HAS_TK:
                dq1 = tl.dot(dts, tk1, dq1, input_precision=PRECISION)
                if D2 > 0:
                    dq2 = tl.dot(dts, tk2, dq2, input_precision=PRECISION)
        ds = (p * dp).to(k1.dtype)
        dq1 = tl.dot(ds, k1, dq1, input_precision=PRECISION)
        if D2 > 0:
            dq2 = tl.dot(ds, k2, dq2, input_precision=PRECISION)

    if HAS_LENGTHS:
        # As in the forward: a length out of range must not pass for a result.
        dq1 = tl.where((length < 1) | (length > N_KV), float("nan"), dq1)
    DQ = head_start(DQ, b, h, dq_b, dq_h, VEC)
    store_tile(DQ, rows, dq_n, live, dq1 * scale, 0, D1, D, VEC)
    if D2 > 0:
        store_tile(DQ, rows, dq_n, live, dq2 * scale, D1, D2, D, VEC)
    if HAS_TQ:
        DTQ = head_start(DTQ, b, h, dtq_b, dtq_h, VEC)
        store_tile(DTQ, rows, dtq_n, live, dtq1 * scale, 0, D1, D, VEC)
        if D2 > 0:
            store_tile(DTQ, rows, dtq_n, live, dtq2 * scale, D1, D2, D, VEC)
