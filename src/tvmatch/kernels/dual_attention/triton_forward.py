"""The fused forward in Triton: o, to, logsumexp and mu in one pass over the keys.

Head sizes that are no power of two are split in two parts (72 = 64 + 8 padded to 16), because a Triton tile has
power-of-two sides and padding 72 to 128 would nearly double the work. The second part is absent (`D2 == 0`) otherwise.

Why `mu` is summed twice: ``to = sum_j w_j v_j / l - mu o`` with ``w = P * tS`` cancels where one key dominates. The
rounding of `w` to 16 bits would survive the subtraction unless the subtracted mean is that of the rounded weights. The
exact mean goes to the backward, the rounded one into the subtraction.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
REST_SCALE = tl.constexpr(256.0)  # see rest.py


@triton.jit
def head_start(base, b, h, stride_b, stride_h, VEC: tl.constexpr):
    """First element of (sample b, head h). All strides come divided by VEC.

    Multiplying them back here tells the compiler what they are a multiple of, which a hint on an argument does not,
    and 16-byte loads and asynchronous copies depend on it.
    """
    return base + (b * stride_b + h * stride_h) * VEC


@triton.jit
def tile_offsets(rows, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, VEC: tl.constexpr):
    """Offsets of a [rows, columns FIRST..FIRST+WIDTH) tile; `stride` comes divided by VEC."""
    columns = FIRST + tl.arange(0, WIDTH)
    return rows[:, None] * (stride * VEC) + columns[None, :]


@triton.jit
def load_tile(
    base, rows, stride, valid, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, VEC: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """[rows, WIDTH] columns of a tensor from column FIRST on; zero outside the valid rows and beyond column D."""
    pointers = base + tile_offsets(rows, stride, FIRST, WIDTH, VEC)
    if D < FIRST + WIDTH:
        inside = (FIRST + tl.arange(0, WIDTH))[None, :] < D
        if MASKED:
            inside = inside & valid[:, None]
        return tl.load(pointers, mask=inside, other=0.0)
    if MASKED:
        return tl.load(pointers, mask=valid[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def store_tile(
    base, rows, stride, valid, x, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Store [rows, WIDTH] into the columns from FIRST on, where the row is valid and the column below D."""
    inside = valid[:, None] & ((FIRST + tl.arange(0, WIDTH))[None, :] < D)
    tl.store(base + tile_offsets(rows, stride, FIRST, WIDTH, VEC), x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def store_rest(
    REST, row, valid, x, y, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """What rounding o and to to `dtype` drops, the two of a column side by side."""
    columns = FIRST + tl.arange(0, WIDTH)
    inside = valid[:, None] & (columns[None, :] < D)
    at = REST + row[:, None] * (2 * D) + columns[None, :] * 2
    tl.store(at, ((x - x.to(dtype).to(tl.float32)) * REST_SCALE).to(tl.float8e5), mask=inside)
    tl.store(at + 1, ((y - y.to(dtype).to(tl.float32)) * REST_SCALE).to(tl.float8e5), mask=inside)


@triton.jit
def forward_kernel(
    Q, K, V, TQ, TK, TV, O, TO, LSE, MU, REST, LENGTHS,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, tq_b, tq_h, tq_n, tk_b, tk_h, tk_n, tv_b, tv_h, tv_n,
    o_b, o_h, o_n, to_b, to_h, to_n,
    scale, H, N_Q, N_KV,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_TQ: tl.constexpr, HAS_TK: tl.constexpr, HAS_TV: tl.constexpr, HAS_LENGTHS: tl.constexpr,
    CAUSAL: tl.constexpr, EVEN_KV: tl.constexpr, VEC: tl.constexpr, PRECISION: tl.constexpr, HAS_REST: tl.constexpr,
):  # fmt: skip
    """One program: BM queries of one (sample, head) against all keys that they see."""
    MOVES: tl.constexpr = HAS_TQ or HAS_TK  # the scores have a tangent
    blocks = tl.cdiv(N_Q, BM)
    pid = tl.program_id(0)
    bh = pid // blocks
    # The last rows of a causal problem see most keys: start them first.
    block = blocks - 1 - pid % blocks if CAUSAL else pid % blocks
    b = (bh // H).to(tl.int64)
    h = (bh % H).to(tl.int64)
    Q = head_start(Q, b, h, q_b, q_h, VEC)
    K = head_start(K, b, h, k_b, k_h, VEC)
    V = head_start(V, b, h, v_b, v_h, VEC)
    rows = block * BM + tl.arange(0, BM)
    live = rows < N_Q
    q1 = load_tile(Q, rows, q_n, live, 0, D1, D, VEC, True)
    q2 = load_tile(Q, rows, q_n, live, D1, D2, D, VEC, True) if D2 > 0 else q1
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

    length = N_KV
    if HAS_LENGTHS:
        length = tl.load(LENGTHS + b).to(tl.int32)
    stop = tl.minimum(length, N_KV)
    if CAUSAL:
        stop = tl.minimum(stop, (block + 1) * BM)

    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    mu = tl.zeros([BM], tl.float32)
    mu_rounded = tl.zeros([BM], tl.float32)
    acc1 = tl.zeros([BM, D1], tl.float32)
    tacc1 = tl.zeros([BM, D1], tl.float32)
    acc2 = tl.zeros([BM, D2 if D2 > 0 else 16], tl.float32)
    tacc2 = tl.zeros([BM, D2 if D2 > 0 else 16], tl.float32)
    scale2 = scale * LOG2E
    MASKED: tl.constexpr = HAS_LENGTHS or CAUSAL or not EVEN_KV
    for n0 in range(0, stop, BN):
        keys = n0 + tl.arange(0, BN)
        seen = keys < stop
        k1 = load_tile(K, keys, k_n, seen, 0, D1, D, VEC, MASKED)
        s = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        k2 = k1
        if D2 > 0:
            k2 = load_tile(K, keys, k_n, seen, D1, D2, D, VEC, MASKED)
            s = tl.dot(q2, tl.trans(k2), s, input_precision=PRECISION)
        ts = s
        if HAS_TQ:
            ts = tl.dot(tq1, tl.trans(k1), input_precision=PRECISION)
            if D2 > 0:
                ts = tl.dot(tq2, tl.trans(k2), ts, input_precision=PRECISION)
        if HAS_TK:
            tk1 = load_tile(TK, keys, tk_n, seen, 0, D1, D, VEC, MASKED)
            if HAS_TQ:
                ts = tl.dot(q1, tl.trans(tk1), ts, input_precision=PRECISION)
            else:
                ts = tl.dot(q1, tl.trans(tk1), input_precision=PRECISION)
            if D2 > 0:
                tk2 = load_tile(TK, keys, tk_n, seen, D1, D2, D, VEC, MASKED)
                ts = tl.dot(q2, tl.trans(tk2), ts, input_precision=PRECISION)
        if MASKED:
            s = tl.where(seen[None, :], s, float("-inf"))
        if CAUSAL:
            s = tl.where(keys[None, :] <= rows[:, None], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * scale2)
        # A row may have seen nothing but -inf so far: keep exp2(-inf - -inf) from becoming NaN.
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s * scale2 - m_safe[:, None])
        shrink = tl.exp2(m - m_safe)
        m = m_new
        l = l * shrink + tl.sum(p, 1)
        acc1 = acc1 * shrink[:, None]
        tacc1 = tacc1 * shrink[:, None]
        if D2 > 0:
            acc2 = acc2 * shrink[:, None]
            tacc2 = tacc2 * shrink[:, None]
        v1 = load_tile(V, keys, v_n, seen, 0, D1, D, VEC, MASKED)
        v2 = load_tile(V, keys, v_n, seen, D1, D2, D, VEC, MASKED) if D2 > 0 else v1
        p16 = p.to(v1.dtype)
        acc1 = tl.dot(p16, v1, acc1, input_precision=PRECISION)
        if D2 > 0:
            acc2 = tl.dot(p16, v2, acc2, input_precision=PRECISION)
        if MOVES:
            w = p * (ts * scale)
            w16 = w.to(v1.dtype)
            mu = mu * shrink + tl.sum(w, 1)
            mu_rounded = mu_rounded * shrink + tl.sum(w16.to(tl.float32), 1)
            tacc1 = tl.dot(w16, v1, tacc1, input_precision=PRECISION)
            if D2 > 0:
                tacc2 = tl.dot(w16, v2, tacc2, input_precision=PRECISION)
        if HAS_TV:
            tv1 = load_tile(TV, keys, tv_n, seen, 0, D1, D, VEC, MASKED)
            tacc1 = tl.dot(p16, tv1, tacc1, input_precision=PRECISION)
            if D2 > 0:
                tv2 = load_tile(TV, keys, tv_n, seen, D1, D2, D, VEC, MASKED)
                tacc2 = tl.dot(p16, tv2, tacc2, input_precision=PRECISION)

    inverse = 1.0 / l
    if HAS_LENGTHS:
        # A length out of range poisons its own sample: the host cannot look at it without a synchronisation.
        inverse = tl.where((length < 1) | (length > N_KV), float("nan"), inverse)
    mu = mu * inverse
    mu_rounded = mu_rounded * inverse
    O = head_start(O, b, h, o_b, o_h, VEC)
    TO = head_start(TO, b, h, to_b, to_h, VEC)
    row = bh.to(tl.int64) * N_Q + rows
    o1 = acc1 * inverse[:, None]
    to1 = tacc1 * inverse[:, None] - mu_rounded[:, None] * o1
    store_tile(O, rows, o_n, live, o1, 0, D1, D, VEC)
    store_tile(TO, rows, to_n, live, to1, 0, D1, D, VEC)
    if HAS_REST:
        store_rest(REST, row, live, o1, to1, 0, D1, D, O.dtype.element_ty)
    if D2 > 0:
        o2 = acc2 * inverse[:, None]
        to2 = tacc2 * inverse[:, None] - mu_rounded[:, None] * o2
        store_tile(O, rows, o_n, live, o2, D1, D2, D, VEC)
        store_tile(TO, rows, to_n, live, to2, D1, D2, D, VEC)
        if HAS_REST:
            store_rest(REST, row, live, o2, to2, D1, D2, D, O.dtype.element_ty)
    tl.store(LSE + row, (m + tl.log2(l)) * LN2, mask=live)
    tl.store(MU + row, mu, mask=live)
