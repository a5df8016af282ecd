"""Triton kernel of `gradient_sum`."""

import triton
import triton.language as tl

from tvmatch.kernels.modulated_norm.triton_rows import load_row


@triton.jit
def sum_kernel(a, b, c, d, total, size, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """total = the sum of the first COUNT of a, b, c, d, in this order, as float32."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    result = load_row(a + at, inside)
    if COUNT > 1:
        result += load_row(b + at, inside)
    if COUNT > 2:
        result += load_row(c + at, inside)
    if COUNT > 3:
        result += load_row(d + at, inside)
    tl.store(total + at, result, inside)
