"""Triton kernels between a packed projection [B, N, 3, H, D] and heads [B, N, H, D]; a row is one head of one token."""

import triton
import triton.language as tl

from tvmatch.kernels.modulated_norm.triton_rows import load_row


@triton.jit
def moments(x, tx, size, eps, PAIR: tl.constexpr):
    """r = 1 / sqrt(mean(x^2) + eps) of rows, and m = r mean(x tx), as columns."""
    r = tl.rsqrt(tl.sum(x * x, 1)[:, None] / size + eps)
    m = r
    if PAIR:
        m = r * (tl.sum(x * tx, 1)[:, None] / size)
    return r, m


@triton.jit
def normalised(x, tx, weight, r, m, PAIR: tl.constexpr):
    """y = w r x and its tangent, rows at a time; r and m: `moments`."""
    unit = x * r
    y = weight * unit
    ty = y
    if PAIR:
        ty = weight * (r * (tx - m * unit))
    return y, ty


@triton.jit
def norm_gradient(x, tx, weight, g, tg, r, m, size, PAIR: tl.constexpr):
    """Gradients of `normalised` by x and tx, and the sum for the weight (formulas: `modulated_norm`'s backward, where
    u = r x). x meets the gradients before the columns r and m: gradients that come from products have another layout,
    and x is moved to it as it was loaded, in 16 bits."""
    part = (g - (m * r) * tg) * x + tg * tx if PAIR else g * x
    total = tl.sum(part * r, 0)  # one sum over rows, which the warps of a program share: it is the dearest line here
    g = g * weight
    along = r * (tl.sum(g * x, 1)[:, None] / size)
    gtx = g
    if PAIR:
        tg = tg * weight
        q = r * (tl.sum(tg * x, 1)[:, None] / size)
        p = tl.sum(tg * tx, 1)[:, None] / size
        along += r * (p - 3.0 * m * q)
        g -= (r * m) * tg + (r * q) * tx
        gtx = r * (tg - (r * q) * x)
    return r * (g - (r * along) * x), gtx, total


@triton.jit
def _normalise(qkv, tqkv, weight, result, tresult, row, column, mask, inside, size, eps, PAIR):
    """`normalised` from one place in memory to another."""
    x = load_row(qkv, mask)
    tx = x
    if PAIR:
        tx = load_row(tqkv, mask)
    r, m = moments(x, tx, size, eps, PAIR)
    y, ty = normalised(x, tx, load_row(weight + column, inside), r, m, PAIR)
    tl.store(result + row * size + column, y.to(result.dtype.element_ty), mask)
    if PAIR:
        tl.store(tresult + row * size + column, ty.to(tresult.dtype.element_ty), mask)


@triton.jit
def forward_kernel(
    qkv, tqkv, q_weight, k_weight, q, k, tq, tk, rows, eps,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """Normalised q and k, [B, N, H, D] each."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < SIZE
    mask = inside & (row < rows)
    source = (row // HEADS * 3 * HEADS + row % HEADS) * SIZE + column
    part: tl.constexpr = HEADS * SIZE
    _normalise(qkv + source, tqkv + source, q_weight, q, tq, row, column, mask, inside, SIZE, eps, PAIR)
    source += part
    _normalise(qkv + source, tqkv + source, k_weight, k, tk, row, column, mask, inside, SIZE, eps, PAIR)


@triton.jit
def _normalise_backward(
    qkv, tqkv, weight, gradient, tgradient, gqkv, gtqkv, column, mask, inside, total, size, eps, PAIR
):
    """`norm_gradient` from memory to memory; returns the running sum for the weight."""
    x = load_row(qkv, mask)
    g = load_row(gradient, mask)
    tx = x
    tg = g
    if PAIR:
        tx = load_row(tqkv, mask)
        tg = load_row(tgradient, mask)
    r, m = moments(x, tx, size, eps, PAIR)
    gx, gtx, added = norm_gradient(x, tx, load_row(weight + column, inside), g, tg, r, m, size, PAIR)
    tl.store(gqkv, gx.to(gqkv.dtype.element_ty), mask)
    if PAIR:
        tl.store(gtqkv, gtx.to(gtqkv.dtype.element_ty), mask)
    return total + added[None, :]


@triton.jit
def backward_kernel(
    qkv, tqkv, q_weight, k_weight, gq, gk, gv, gtq, gtk, gtv, gqkv, gtqkv, sums,
    gq_b, gq_h, gq_n, gk_b, gk_h, gk_n, gv_b, gv_h, gv_n,
    gtq_b, gtq_h, gtq_n, gtk_b, gtk_h, gtk_n, gtv_b, gtv_h, gtv_n,
    rows, tokens, eps,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
    STAGES: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k, v [B, H, N, D] in any order of memory -> the packed gradient; sums [programs, 2, D] for the
    two weights."""
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < SIZE
    part: tl.constexpr = HEADS * SIZE
    q_total = tl.zeros([1, BLOCK], tl.float32)
    k_total = tl.zeros([1, BLOCK], tl.float32)
    for tile in tl.range(TILES, num_stages=STAGES):
        row = (tl.program_id(0).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = inside & (row < rows)
        h = row % HEADS
        n = row // HEADS % tokens
        b = row // HEADS // tokens
        at = (row // HEADS * 3 * HEADS + h) * SIZE + column
        q_total = _normalise_backward(
            qkv + at, tqkv + at, q_weight,
            gq + b * gq_b + h * gq_h + n * gq_n + column, gtq + b * gtq_b + h * gtq_h + n * gtq_n + column,
            gqkv + at, gtqkv + at, column, mask, inside, q_total, SIZE, eps, PAIR,
        )  # fmt: skip
        at += part
        k_total = _normalise_backward(
            qkv + at, tqkv + at, k_weight,
            gk + b * gk_b + h * gk_h + n * gk_n + column, gtk + b * gtk_b + h * gtk_h + n * gtk_n + column,
            gqkv + at, gtqkv + at, column, mask, inside, k_total, SIZE, eps, PAIR,
        )  # fmt: skip
        at += part
        tl.store(gqkv + at, tl.load(gv + b * gv_b + h * gv_h + n * gv_n + column, mask, 0.0), mask)
        if PAIR:
            tl.store(gtqkv + at, tl.load(gtv + b * gtv_b + h * gtv_h + n * gtv_n + column, mask, 0.0), mask)
    line = sums + tl.program_id(0) * 2 * SIZE + column
    tl.store(line, q_total, inside)
    tl.store(line + SIZE, k_total, inside)
