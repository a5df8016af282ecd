"""Triton kernels of GELU(h + bias) in its tanh approximation, and of its derivative along a tangent of h.

With u = SLOPE (x + CUBIC x^3), p = 1 / (1 + exp(-2 u)), which is (1 + tanh u) / 2, p' = p (1 - p) and d = 2 u':
    gelu = x p      gelu' = p + x d p'      gelu'' = p' (d (2 + (1 - 2 p) x d) + 2 x u'')
One power of 2 and one reciprocal root give all three: exp and a division are several instructions each for numbers
that do not occur here.
"""

import triton
import triton.language as tl

SLOPE = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)
RATE = tl.constexpr(-2.302208198144325)  # -2 SLOPE / log(2)


@triton.jit
def _shares(x, square):
    """p and 1 - p (see above). Near 1 the difference would have lost the digits that the second derivative needs."""
    power = tl.exp2(tl.minimum(x * (RATE + (RATE * CUBIC) * square), 126.0))
    root = tl.rsqrt(1.0 + power)
    share = root * root
    return share, power * share


@triton.jit
def _bias(bias, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    """The program's part of the bias, [1, COLUMNS]. Loaded as a vector: as a row its layout, of float32, would be that
    of half the arithmetic, and x be moved between the two."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return tl.load(bias + column, column < SIZE, 0.0).to(tl.float32)[None, :]


@triton.jit
def biased_gelu_forward_kernel(
    h, th, bias, g, tg, rows,
    SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """g = gelu(h + bias), tg = gelu'(h + bias) th; [rows, SIZE]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows) & (column < SIZE)
    at = row * SIZE + column
    x = tl.load(h + at, mask, 0.0).to(tl.float32) + _bias(bias, SIZE, COLUMNS)
    square = x * x
    share, rest = _shares(x, square)
    tl.store(g + at, (x * share).to(g.dtype.element_ty), mask)
    if PAIR:
        tx = tl.load(th + at, mask, 0.0).to(tl.float32)
        rise = 2.0 * SLOPE + (6.0 * SLOPE * CUBIC) * square
        slope = share + (x * rise) * (share * rest)
        tl.store(tg + at, (slope * tx).to(tg.dtype.element_ty), mask)


@triton.jit
def biased_gelu_backward_kernel(
    h, th, bias, gg, gtg, gh, gth, sums, rows,
    SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr, STAGES: tl.constexpr,
    PAIR: tl.constexpr,
):  # fmt: skip
    """gh = gelu' gg + gelu'' th gtg, gth = gelu' gtg; `sums` [programs, SIZE] gets the program's part of sum(gh)."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = column < SIZE
    offset = _bias(bias, SIZE, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in tl.range(TILES, num_stages=STAGES):
        row = (tl.program_id(0).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = inside & (row < rows)
        at = row * SIZE + column
        x = tl.load(h + at, mask, 0.0).to(tl.float32) + offset
        g = tl.load(gg + at, mask, 0.0).to(tl.float32)
        square = x * x
        share, rest = _shares(x, square)
        change = share * rest
        rise = 2.0 * SLOPE + (6.0 * SLOPE * CUBIC) * square
        along = x * rise
        slope = share + along * change
        g = slope * g
        if PAIR:
            tg = tl.load(gtg + at, mask, 0.0).to(tl.float32)
            tx = tl.load(th + at, mask, 0.0).to(tl.float32)
            tl.store(gth + at, (slope * tg).to(gth.dtype.element_ty), mask)
            # 2 d + 2 x u'', and the rest of the bracket times d
            bend = (4.0 * SLOPE + (24.0 * SLOPE * CUBIC) * square) + (along * rise) * (rest - share)
            g += (change * bend) * (tx * tg)
        tl.store(gh + at, g.to(gh.dtype.element_ty), mask)
        total += g
    tl.store(sums + tl.program_id(0) * SIZE + column, tl.sum(total, 0)[None, :], inside)
