"""What kernels of norms share: how rows and the modulation of a sample are read, and several sums in one reduction."""

import triton
import triton.language as tl


@triton.jit
def load_row(pointer, mask):
    """Numbers as float32, zero outside the mask."""
    return tl.load(pointer, mask, 0.0).to(tl.float32)


@triton.jit
def column_of(sums, ROWS: tl.constexpr):
    """Sums over rows [R] as a column [R, 1], or as a number where there is one row: a number has no layout, and a
    column has that of the part that it was summed over, to which the other part would be moved."""
    return tl.sum(sums, 0) if ROWS == 1 else sums[:, None]


@triton.jit
def add2(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


@triton.jit
def add5(a0, a1, a2, a3, a4, b0, b1, b2, b3, b4):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4


@triton.jit
def load_modulation(gate, tgate, scale, tscale, inside, ADD, PAIR):
    """1 + scale, tscale, gate and tgate of one part; what is not wanted is not read."""
    factor = 1.0 + load_row(scale, inside)
    tfactor = factor
    gate_row = factor
    tgate_row = factor
    if PAIR:
        tfactor = load_row(tscale, inside)
    if ADD:
        gate_row = load_row(gate, inside)
        if PAIR:
            tgate_row = load_row(tgate, inside)
    return factor, tfactor, gate_row, tgate_row
