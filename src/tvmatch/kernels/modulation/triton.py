"""Triton kernels of `normalised_chunks`: a program takes all chunks of one sample, one reduction each."""

import triton
import triton.language as tl

from tvmatch.kernels.modulated_norm.triton_rows import add2, add5, load_row


@triton.jit
def chunks_forward_kernel(
    m, tm, chunks, tchunks, eps,
    COUNT: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """m, tm [B, COUNT, SIZE] -> y = rms(m) and its tangent r (tm - mean(y tm) y), a tensor [B, SIZE] for each chunk."""
    sample = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    for number in tl.static_range(COUNT):
        at = (sample * COUNT + number) * SIZE + column
        x = load_row(m + at, inside)
        tx = x
        if PAIR:
            tx = load_row(tm + at, inside)
            square, dot = tl.reduce((x * x, x * tx), 0, add2)
        else:
            square = tl.sum(x * x)
            dot = square
        r = tl.rsqrt(square / SIZE + eps)
        unit = x * r
        tl.store(chunks[number] + sample * SIZE + column, unit, inside)
        if PAIR:
            tl.store(tchunks[number] + sample * SIZE + column, r * (tx - r * dot / SIZE * unit), inside)


@triton.jit
def chunks_backward_kernel(
    m, tm, gradients, tgradients, strides, tstrides, gm, gtm, eps,
    COUNT: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """Gradients of the chunks, each with a stride between samples of its own -> those of m and tm.

    With r = 1 / sqrt(mean(x^2) + eps), y = r x, m = mean(y tx), q = mean(gty y) and p = mean(gty tx):
        gtx = r (gty - q y),   gx = r (gy - r m gty - r q tx - (mean(gy y) + r p - 3 r m q) y).
    """
    sample = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    for number in tl.static_range(COUNT):
        at = (sample * COUNT + number) * SIZE + column
        x = load_row(m + at, inside)
        g = load_row(gradients[number] + sample * strides[number] + column, inside)
        if PAIR:
            tx = load_row(tm + at, inside)
            tg = load_row(tgradients[number] + sample * tstrides[number] + column, inside)
            square, mean, q, p, dot = tl.reduce((x * x, x * tx, tg * x, tg * tx, g * x), 0, add5)
            r = tl.rsqrt(square / SIZE + eps)
            mean = r * mean / SIZE
            q = r * q / SIZE
            along = r * dot / SIZE + r * (p / SIZE - 3.0 * mean * q)
            g -= r * (mean * tg + q * tx)
            tl.store(gtm + at, (r * (tg - q * r * x)).to(gtm.dtype.element_ty), inside)
        else:
            square, dot = tl.reduce((x * x, g * x), 0, add2)
            r = tl.rsqrt(square / SIZE + eps)
            along = r * dot / SIZE
        tl.store(gm + at, (r * (g - along * r * x)).to(gm.dtype.element_ty), inside)
