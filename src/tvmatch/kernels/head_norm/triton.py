"""Triton kernels between a packed projection [B, N, 3, H, D] and heads [B, N, H, D]; a row is one head of one token."""

import triton
import triton.language as tl


@triton.jit
def _normalise(qkv, tqkv, weight, result, tresult, row, column, mask, inside, size, eps, PAIR):
    """y = w r x, r = 1 / sqrt(mean(x^2) + eps), and its tangent."""
    x = tl.load(qkv, mask, 0.0).to(tl.float32)
    w = tl.load(weight + column, inside, 0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(x * x, 1)[:, None] / size + eps)
    unit = x * r
    tl.store(result + row * size + column, (w * unit).to(result.dtype.element_ty), mask)
    if PAIR:
        tx = tl.load(tqkv, mask, 0.0).to(tl.float32)
        m = tl.sum(unit * tx, 1)[:, None] / size
        tangent = w * (r * (tx - m * unit))
        tl.store(tresult + row * size + column, tangent.to(tresult.dtype.element_ty), mask)


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
    """Gradient of `_normalise` (the formulas of `modulated_norm.triton.backward_kernel`); returns the sum for w."""
    x = tl.load(qkv, mask, 0.0).to(tl.float32)
    g = tl.load(gradient, mask, 0.0).to(tl.float32)
    w = tl.load(weight + column, inside, 0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(x * x, 1)[:, None] / size + eps)
    unit = x * r
    total += tl.sum(g * unit, 0)[None, :]
    g = g * w
    along = tl.sum(g * unit, 1)[:, None] / size
    if PAIR:
        tx = tl.load(tqkv, mask, 0.0).to(tl.float32)
        tg = tl.load(tgradient, mask, 0.0).to(tl.float32)
        m = tl.sum(unit * tx, 1)[:, None] / size
        total += tl.sum(tg * (r * (tx - m * unit)), 0)[None, :]
        tg = tg * w
        q = tl.sum(tg * unit, 1)[:, None] / size
        p = tl.sum(tg * tx, 1)[:, None] / size
        along += r * (p - 3.0 * m * q)
        g -= r * (m * tg + q * tx)
        tl.store(gtqkv, (r * (tg - q * unit)).to(gtqkv.dtype.element_ty), mask)
    tl.store(gqkv, (r * (g - along * unit)).to(gqkv.dtype.element_ty), mask)
    return total


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
