"""Triton kernels of attention over sequences that fit into one tile: a program is one head of one sample.

Everything between the packed projection [B, N, 3, H, D] and the heads' outputs [B, N, H, D] stays on the chip: the norm
of queries and keys, the scores and their softmax. The backward computes all of it again, and so needs nothing but the
projection and the gradients of the outputs. The equations are those of `dual_attention.reference` and `networks.pairs`;
as all keys are there at once, row sums need no running correction. Both kernels wait for arithmetic more than for
memory, so the scale of the scores is taken into the weight of the queries' norm, once a column: q here is scale q
there.
"""

import triton
import triton.language as tl

from tvmatch.kernels.head_norm.triton import moments, norm_gradient, normalised
from tvmatch.kernels.modulated_norm.triton_rows import load_row

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scores(q, k, tq, tk, visible, FULL: tl.constexpr, PAIR: tl.constexpr, EXACT: tl.constexpr):
    """P = softmax(S), S = q k^T, and B = tS - mu, tS = tq k^T + q tk^T, mu = rowsum(P tS)."""
    s = tl.dot(q, tl.trans(k), input_precision=EXACT)
    if not FULL:
        s = tl.where(visible, s, float("-inf"))
    p = tl.exp2(s * LOG2_E - (tl.max(s, 1) * LOG2_E)[:, None])
    p *= (1.0 / tl.sum(p, 1))[:, None]
    b = p
    if PAIR:
        b = tl.dot(tq, tl.trans(k), input_precision=EXACT)
        b = tl.dot(q, tl.trans(tk), b, input_precision=EXACT)
        b -= tl.sum(p * b, 1)[:, None]
    return p, b


@triton.jit
def _place(tokens, HEADS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """What this program's head is in memory: rows, columns, both as one mask, and the offsets of a tile of q in the
    projection and of the outputs."""
    sample = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    row = tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    token = sample * tokens + row[:, None]
    mask = (column < SIZE) & (row[:, None] < tokens)
    return (
        row,
        column,
        mask,
        token * (3 * HEADS * SIZE) + head * SIZE + column,
        token * (HEADS * SIZE) + head * SIZE + column,
    )


@triton.jit
def _tiles(source, at, mask, WIDTH: tl.constexpr):
    """Queries, keys and values of a packed projection."""
    q = tl.load(source + at, mask, 0.0)
    k = tl.load(source + at + WIDTH, mask, 0.0)
    return q, k, tl.load(source + at + 2 * WIDTH, mask, 0.0)


@triton.jit
def _normalised_heads(
    q, k, tq, tk, q_weight, k_weight, column, eps, scale, SIZE: tl.constexpr, PAIR: tl.constexpr
):  # fmt: skip
    """Normalised q and k with their tangents, those of q times `scale`, in the dtype of the projection; and the moments
    of q and of k, which the gradient of their norm needs again."""
    dtype = q.dtype
    inside = column < SIZE
    wq = load_row(q_weight + column, inside) * scale
    wk = load_row(k_weight + column, inside)
    x, tx = q.to(tl.float32), tq.to(tl.float32)
    rq, mq = moments(x, tx, SIZE, eps, PAIR)
    q, tq = normalised(x, tx, wq, rq, mq, PAIR)
    x, tx = k.to(tl.float32), tk.to(tl.float32)
    rk, mk = moments(x, tx, SIZE, eps, PAIR)
    k, tk = normalised(x, tx, wk, rk, mk, PAIR)
    return q.to(dtype), tq.to(dtype), k.to(dtype), tk.to(dtype), rq, mq, rk, mk


@triton.jit
def short_forward_kernel(
    qkv, tqkv, q_weight, k_weight, o, to, tokens, eps, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
    PAIR: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """o = P v, to = (P B) v + P tv, [B, tokens, HEADS, SIZE] (see `_scores`)."""
    width: tl.constexpr = HEADS * SIZE
    row, column, mask, at, out = _place(tokens, HEADS, SIZE, ROWS, BLOCK)
    q, k, v = _tiles(qkv, at, mask, width)
    tq, tk, tv = q, k, v
    if PAIR:
        tq, tk, tv = _tiles(tqkv, at, mask, width)
    q, tq, k, tk, _, _, _, _ = _normalised_heads(
        q, k, tq, tk, q_weight, k_weight, column, eps, scale, SIZE, PAIR
    )  # fmt: skip
    p, b = _scores(q, k, tq, tk, (row < tokens)[None, :], FULL, PAIR, EXACT)
    low = p.to(v.dtype)
    result = tl.dot(low, v, input_precision=EXACT)
    tl.store(o + out, result.to(o.dtype.element_ty), mask)
    if PAIR:
        slope = tl.dot(low, tv, input_precision=EXACT)
        slope = tl.dot((p * b).to(v.dtype), v, slope, input_precision=EXACT)
        tl.store(to + out, slope.to(to.dtype.element_ty), mask)


@triton.jit
def short_backward_kernel(
    qkv, tqkv, q_weight, k_weight, do, dto, gqkv, gtqkv, sums, tokens, eps, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
    PAIR: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradients of `short_forward_kernel` by the packed projection and its tangent; `sums` [programs, 2, SIZE] gets
    what the program adds up for the two weights.

    With C = dto v^T - rowsum(P dto v^T) and Y = do v^T + dto tv^T + B C:
        dtS = P C   dS = P (Y - rowsum(P Y))   dv = P^T do + (P B)^T dto   dtv = P^T dto
        dq = dS k + dtS tk   dtq = dtS k   dk = dS^T q + dtS^T tq   dtk = dtS^T q
    """
    width: tl.constexpr = HEADS * SIZE
    row, column, mask, at, out = _place(tokens, HEADS, SIZE, ROWS, BLOCK)
    q, k, v = _tiles(qkv, at, mask, width)
    g = tl.load(do + out, mask, 0.0)
    tq, tk, tv, tg = q, k, v, g
    if PAIR:
        tq, tk, tv = _tiles(tqkv, at, mask, width)
        tg = tl.load(dto + out, mask, 0.0)
    q, tq, k, tk, rq, mq, rk, mk = _normalised_heads(
        q, k, tq, tk, q_weight, k_weight, column, eps, scale, SIZE, PAIR
    )  # fmt: skip
    p, b = _scores(q, k, tq, tk, (row < tokens)[None, :], FULL, PAIR, EXACT)
    dtype = v.dtype
    y = tl.dot(g, tl.trans(v), input_precision=EXACT)
    low = p.to(dtype)
    gv = tl.dot(tl.trans(low), g, input_precision=EXACT)
    ds_t = low
    if PAIR:
        c = tl.dot(tg, tl.trans(v), input_precision=EXACT)
        c -= tl.sum(p * c, 1)[:, None]
        y = tl.dot(tg, tl.trans(tv), y, input_precision=EXACT) + b * c
        gv = tl.dot(tl.trans((p * b).to(dtype)), tg, gv, input_precision=EXACT)
        gtv = tl.dot(tl.trans(low), tg, input_precision=EXACT)
        tl.store(gtqkv + at + 2 * width, gtv.to(gtqkv.dtype.element_ty), mask)
        ds_t = (p * c).to(dtype)
    tl.store(gqkv + at + 2 * width, gv.to(gqkv.dtype.element_ty), mask)
    ds = (p * (y - tl.sum(p * y, 1)[:, None])).to(dtype)

    # what is read again below was written over in registers long ago, and still lies in the cache
    inside = column < SIZE
    gq = tl.dot(ds, k, input_precision=EXACT)
    gtq = gq
    tx = gq
    if PAIR:
        gq = tl.dot(ds_t, tk, gq, input_precision=EXACT)
        gtq = tl.dot(ds_t, k, input_precision=EXACT)
        tx = load_row(tqkv + at, mask)
    x = load_row(qkv + at, mask)
    wq = load_row(q_weight + column, inside) * scale
    gq, gtq, q_total = norm_gradient(x, tx, wq, gq, gtq, rq, mq, SIZE, PAIR)
    tl.store(gqkv + at, gq.to(gqkv.dtype.element_ty), mask)
    if PAIR:
        tl.store(gtqkv + at, gtq.to(gtqkv.dtype.element_ty), mask)
    sums += tl.program_id(0) * (2 * SIZE) + column
    tl.store(sums, (q_total * scale)[None, :], inside)

    gk = tl.dot(tl.trans(ds), q, input_precision=EXACT)
    gtk = gk
    if PAIR:
        gk = tl.dot(tl.trans(ds_t), tq, gk, input_precision=EXACT)
        gtk = tl.dot(tl.trans(ds_t), q, input_precision=EXACT)
        tx = load_row(tqkv + at + width, mask)
    x = load_row(qkv + at + width, mask)
    wk = load_row(k_weight + column, inside)
    gk, gtk, k_total = norm_gradient(x, tx, wk, gk, gtk, rk, mk, SIZE, PAIR)
    tl.store(gqkv + at + width, gk.to(gqkv.dtype.element_ty), mask)
    if PAIR:
        tl.store(gtqkv + at + width, gtk.to(gtqkv.dtype.element_ty), mask)
    tl.store(sums + SIZE, k_total[None, :], inside)
