"""Triton kernels of GELU(h + bias) in its tanh approximation, and of its derivative along a tangent of h.

With u = SLOPE (x + CUBIC x^3) and p = 1 / (1 + exp(-2 u)), which is (1 + tanh u) / 2, and p' = p (1 - p):
    gelu = x p      gelu' = p + 2 x p' u'      gelu'' = 4 p' u' + x p' (4 (1 - 2 p) u'^2 + 2 u'')
One exponential gives all three.
"""

import triton
import triton.language as tl

SLOPE = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)


@triton.jit
def _share(x):
    """p and u' (see above)."""
    square = x * x
    u = SLOPE * x * (1.0 + CUBIC * square)
    return 1.0 / (1.0 + tl.exp(-2.0 * u)), SLOPE * (1.0 + 3.0 * CUBIC * square)


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
    x = tl.load(h + at, mask, 0.0).to(tl.float32) + tl.load(bias + column, column < SIZE, 0.0).to(tl.float32)
    share, rise = _share(x)
    tl.store(g + at, (x * share).to(g.dtype.element_ty), mask)
    if PAIR:
        tx = tl.load(th + at, mask, 0.0).to(tl.float32)
        slope = share + 2.0 * x * share * (1.0 - share) * rise
        tl.store(tg + at, (slope * tx).to(tg.dtype.element_ty), mask)


@triton.jit
def biased_gelu_backward_kernel(
    h, th, bias, gg, gtg, gh, gth, sums, rows,
    SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """gh = gelu' gg + gelu'' th gtg, gth = gelu' gtg; `sums` [programs, SIZE] gets the program's part of sum(gh)."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = column < SIZE
    offset = tl.load(bias + column, inside, 0.0).to(tl.float32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(TILES):
        row = (tl.program_id(0).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = inside & (row < rows)
        at = row * SIZE + column
        x = tl.load(h + at, mask, 0.0).to(tl.float32) + offset
        g = tl.load(gg + at, mask, 0.0).to(tl.float32)
        share, rise = _share(x)
        change = share * (1.0 - share)
        slope = share + 2.0 * x * change * rise
        g = slope * g
        if PAIR:
            tg = tl.load(gtg + at, mask, 0.0).to(tl.float32)
            tx = tl.load(th + at, mask, 0.0).to(tl.float32)
            tl.store(gth + at, (slope * tg).to(gth.dtype.element_ty), mask)
            bend = 4.0 * (1.0 - 2.0 * share) * rise * rise + (12.0 * SLOPE * CUBIC) * x
            g += change * (4.0 * rise + x * bend) * tx * tg
        tl.store(gh + at, g.to(gh.dtype.element_ty), mask)
        total += g
    tl.store(sums + tl.program_id(0) * SIZE + column, tl.sum(total, 0)[None, :], inside)
