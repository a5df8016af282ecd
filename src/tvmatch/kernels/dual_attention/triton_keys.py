"""dk, dv, dtk, dtv in Triton: one program owns a block of keys and walks the queries."""

import triton
import triton.language as tl

from .triton_backward import product, tangent_product
from .triton_forward import LOG2E, head_start, load_tile, store_tile


@triton.jit
def keys_kernel(
    Q, K, V, TQ, TK, TV, DO, DTO, LSE, MU, D1_IN, D2_IN, DK, DV, DTK, DTV, LENGTHS,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, tq_b, tq_h, tq_n, tk_b, tk_h, tk_n, tv_b, tv_h, tv_n,
    do_b, do_h, do_n, dto_b, dto_h, dto_n,
    dk_b, dk_h, dk_n, dv_b, dv_h, dv_n, dtk_b, dtk_h, dtk_n, dtv_b, dtv_h, dtv_n,
    scale, H, N_Q, N_KV,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_TQ: tl.constexpr, HAS_TK: tl.constexpr, HAS_TV: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    CAUSAL: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_KV: tl.constexpr, VEC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk, dv, dtk, dtv of BN keys of one (sample, head). Scores are kept transposed, [keys, queries]."""
    MOVES: tl.constexpr = HAS_TQ or HAS_TK
    W2: tl.constexpr = D2 if D2 > 0 else 16
    blocks = tl.cdiv(N_KV, BN)
    block = tl.program_id(0) % blocks
    bh = tl.program_id(0) // blocks
    b = (bh // H).to(tl.int64)
    h = (bh % H).to(tl.int64)
    Q = head_start(Q, b, h, q_b, q_h, VEC)
    DO = head_start(DO, b, h, do_b, do_h, VEC)
    DTO = head_start(DTO, b, h, dto_b, dto_h, VEC)
    row0 = bh.to(tl.int64) * N_Q
    keys = block * BN + tl.arange(0, BN)
    live = keys < N_KV
    length = N_KV
    if HAS_LENGTHS:
        length = tl.load(LENGTHS + b).to(tl.int32)
    seen = keys < tl.minimum(length, N_KV)
    KEYS_MASKED: tl.constexpr = HAS_LENGTHS or not EVEN_KV
    K = head_start(K, b, h, k_b, k_h, VEC)
    V = head_start(V, b, h, v_b, v_h, VEC)
    k1 = load_tile(K, keys, k_n, seen, 0, D1, D, VEC, KEYS_MASKED)
    v1 = load_tile(V, keys, v_n, seen, 0, D1, D, VEC, KEYS_MASKED)
    k2 = load_tile(K, keys, k_n, seen, D1, D2, D, VEC, KEYS_MASKED) if D2 > 0 else k1
    v2 = load_tile(V, keys, v_n, seen, D1, D2, D, VEC, KEYS_MASKED) if D2 > 0 else v1
    tk1 = k1
    tk2 = k2
    tv1 = v1
    tv2 = v2
    if HAS_TK:
        TK = head_start(TK, b, h, tk_b, tk_h, VEC)
        tk1 = load_tile(TK, keys, tk_n, seen, 0, D1, D, VEC, KEYS_MASKED)
        if D2 > 0:
            tk2 = load_tile(TK, keys, tk_n, seen, D1, D2, D, VEC, KEYS_MASKED)
    if HAS_TV:
        TV = head_start(TV, b, h, tv_b, tv_h, VEC)
        tv1 = load_tile(TV, keys, tv_n, seen, 0, D1, D, VEC, KEYS_MASKED)
        if D2 > 0:
            tv2 = load_tile(TV, keys, tv_n, seen, D1, D2, D, VEC, KEYS_MASKED)
    if HAS_TQ:
        TQ = head_start(TQ, b, h, tq_b, tq_h, VEC)
    dk1 = tl.zeros([BN, D1], tl.float32)
    dv1 = tl.zeros([BN, D1], tl.float32)
    dtk1 = tl.zeros([BN, D1], tl.float32)
    dtv1 = tl.zeros([BN, D1], tl.float32)
    dk2 = tl.zeros([BN, W2], tl.float32)
    dv2 = tl.zeros([BN, W2], tl.float32)
    dtk2 = tl.zeros([BN, W2], tl.float32)
    dtv2 = tl.zeros([BN, W2], tl.float32)
    scale2 = scale * LOG2E
    start = 0
    if CAUSAL:
        start = block * BN // BM * BM
    for m0 in range(start, N_Q, BM):
        rows = m0 + tl.arange(0, BM)
        valid = rows < N_Q
        # Beyond the last query logsumexp is +inf, so that every probability there is zero.
        lse = tl.load(LSE + row0 + rows, mask=valid, other=float("inf"))
        q1 = load_tile(Q, rows, q_n, valid, 0, D1, D, VEC, not EVEN_Q)
        q2 = load_tile(Q, rows, q_n, valid, D1, D2, D, VEC, not EVEN_Q) if D2 > 0 else q1
        tq1 = q1
        tq2 = q2
        p = tl.exp2(product(k1, k2, q1, q2, D2, PRECISION) * scale2 - (lse * LOG2E)[None, :])
        if KEYS_MASKED:
            p = tl.where(seen[:, None], p, 0.0)
        if CAUSAL:
            p = tl.where(keys[:, None] <= rows[None, :], p, 0.0)
        do1 = load_tile(DO, rows, do_n, valid, 0, D1, D, VEC, not EVEN_Q)
        do2 = load_tile(DO, rows, do_n, valid, D1, D2, D, VEC, not EVEN_Q) if D2 > 0 else do1
        dto1 = load_tile(DTO, rows, dto_n, valid, 0, D1, D, VEC, not EVEN_Q)
        dto2 = load_tile(DTO, rows, dto_n, valid, D1, D2, D, VEC, not EVEN_Q) if D2 > 0 else dto1
        p16 = p.to(q1.dtype)
        dv1 = tl.dot(p16, do1, dv1, input_precision=PRECISION)
        if D2 > 0:
            dv2 = tl.dot(p16, do2, dv2, input_precision=PRECISION)
        if HAS_TV:
            dtv1 = tl.dot(p16, dto1, dtv1, input_precision=PRECISION)
            if D2 > 0:
                dtv2 = tl.dot(p16, dto2, dtv2, input_precision=PRECISION)
            dp = tangent_product(v1, v2, tv1, tv2, dto1, dto2, do1, do2, True, True, D2, PRECISION)
        else:
            dp = product(v1, v2, do1, do2, D2, PRECISION)
        d2 = tl.load(D2_IN + row0 + rows, mask=valid, other=0.0)
        dp = dp - d2[None, :]
        if MOVES:
            if HAS_TQ:
                tq1 = load_tile(TQ, rows, tq_n, valid, 0, D1, D, VEC, not EVEN_Q)
                if D2 > 0:
                    tq2 = load_tile(TQ, rows, tq_n, valid, D1, D2, D, VEC, not EVEN_Q)
            ts = tangent_product(k1, k2, tk1, tk2, q1, q2, tq1, tq2, HAS_TK, HAS_TQ, D2, PRECISION)
            mu = tl.load(MU + row0 + rows, mask=valid, other=0.0)
            centred = ts * scale - mu[None, :]
            d1 = tl.load(D1_IN + row0 + rows, mask=valid, other=0.0)
            c = product(v1, v2, dto1, dto2, D2, PRECISION) - d1[None, :]
            tp16 = (p * centred).to(q1.dtype)
            dv1 = tl.dot(tp16, dto1, dv1, input_precision=PRECISION)
            if D2 > 0:
                dv2 = tl.dot(tp16, dto2, dv2, input_precision=PRECISION)
            dp = dp + centred * c
            dts = (p * c).to(q1.dtype)
            if HAS_TK:
                dtk1 = tl.dot(dts, q1, dtk1, input_precision=PRECISION)
                if D2 > 0:
                    dtk2 = tl.dot(dts, q2, dtk2, input_precision=PRECISION)
            if HAS_TQ:
                dk1 = tl.dot(dts, tq1, dk1, input_precision=PRECISION)
                if D2 > 0:
                    dk2 = tl.dot(dts, tq2, dk2, input_precision=PRECISION)
        ds = (p * dp).to(q1.dtype)
        dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION)
        if D2 > 0:
            dk2 = tl.dot(ds, q2, dk2, input_precision=PRECISION)

    DK = head_start(DK, b, h, dk_b, dk_h, VEC)
    DV = head_start(DV, b, h, dv_b, dv_h, VEC)
    store_tile(DK, keys, dk_n, live, dk1 * scale, 0, D1, D, VEC)
    store_tile(DV, keys, dv_n, live, dv1, 0, D1, D, VEC)
    if D2 > 0:
        store_tile(DK, keys, dk_n, live, dk2 * scale, D1, D2, D, VEC)
        store_tile(DV, keys, dv_n, live, dv2, D1, D2, D, VEC)
    if HAS_TK:
        DTK = head_start(DTK, b, h, dtk_b, dtk_h, VEC)
        store_tile(DTK, keys, dtk_n, live, dtk1 * scale, 0, D1, D, VEC)
        if D2 > 0:
            store_tile(DTK, keys, dtk_n, live, dtk2 * scale, D1, D2, D, VEC)
    if HAS_TV:
        DTV = head_start(DTV, b, h, dtv_b, dtv_h, VEC)
        store_tile(DTV, keys, dtv_n, live, dtv1, 0, D1, D, VEC)
        if D2 > 0:
            store_tile(DTV, keys, dtv_n, live, dtv2, D1, D2, D, VEC)
