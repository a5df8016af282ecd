"""Triton kernel of the gated residual, RMS norm and modulation: each tensor is read once and written once.

A program works on rows of one sample, so that the modulation of the sample is read once. A row is taken as two parts
whose widths are powers of two (1152 = 1024 + 128), for padding 1152 to 2048 would waste half the work. All sums over a
row go through one reduction, and the next rows are loaded under the present ones.

A thread takes four numbers in a row of every tensor (`max_contiguous`). The compiler would give it 16 bytes: four of
float32, eight of 16 bits, and move every part of a row from one layout to the other, through shared memory or by
shuffles, which is most of what these kernels then do.
"""

import triton
import triton.language as tl

from .triton_rows import add2, column_of, load_modulation, load_row


@triton.jit
def _forward_sum(x, tx, update, tupdate, gate, tgate, y, ty, mask, ADD, PAIR):
    """y = x + gate update of one part, written; with its tangent, sum(y^2) and sum(y ty)."""
    value = load_row(x, mask)
    tangent = value
    if PAIR:
        tangent = load_row(tx, mask)
    if ADD:
        step = load_row(update, mask)
        value += gate * step
        tl.store(y, value.to(y.dtype.element_ty), mask)
        if PAIR:
            tangent += gate * load_row(tupdate, mask) + tgate * step
            tl.store(ty, tangent.to(ty.dtype.element_ty), mask)
    if PAIR:
        square, dot = tl.reduce((value * value, value * tangent), 1, add2)
    else:
        square = tl.sum(value * value, 1)
        dot = square
    return value, tangent, square, dot


@triton.jit
def _forward_norm(value, tangent, r, m, shift, tshift, factor, tfactor, h, th, mask, PAIR):
    """h = u (1 + scale) + shift of one part, u = r y, and its tangent, written."""
    unit = value * r
    tl.store(h, (unit * factor + shift).to(h.dtype.element_ty), mask)
    if PAIR:
        slope = r * (tangent - m * unit) * factor + unit * tfactor + tshift
        tl.store(th, slope.to(th.dtype.element_ty), mask)


@triton.jit
def forward_kernel(
    x, tx, update, tupdate, gate, tgate, shift, tshift, scale, tscale, y, ty, h, th,
    gate_stride, tgate_stride, shift_stride, tshift_stride, scale_stride, tscale_stride,
    tokens, eps,
    SIZE: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
    STAGES: tl.constexpr, ADD: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """y = x + gate update, h = rms(y) (1 + scale) + shift, and their tangents; [B, tokens, SIZE]."""
    sample = tl.program_id(0).to(tl.int64)
    gate += sample * gate_stride
    tgate += sample * tgate_stride
    shift += sample * shift_stride
    tshift += sample * tshift_stride
    scale += sample * scale_stride
    tscale += sample * tscale_stride
    a = tl.arange(0, HEAD)[None, :]
    inside = a < SIZE
    factor, tfactor, gate_row, tgate_row = load_modulation(
        gate + a, tgate + a, scale + a, tscale + a, inside, ADD, PAIR
    )
    shift_row = load_row(shift + a, inside)
    tshift_row = shift_row
    if PAIR:
        tshift_row = load_row(tshift + a, inside)
    if TAIL > 0:
        b = HEAD + tl.arange(0, TAIL)[None, :]
        inside2 = b < SIZE
        factor2, tfactor2, gate_row2, tgate_row2 = load_modulation(
            gate + b, tgate + b, scale + b, tscale + b, inside2, ADD, PAIR
        )
        shift_row2 = load_row(shift + b, inside2)
        tshift_row2 = shift_row2
        if PAIR:
            tshift_row2 = load_row(tshift + b, inside2)
    for tile in tl.range(TILES, num_stages=STAGES):
        token = (tl.program_id(1) * TILES + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        row = (sample * tokens + token) * SIZE
        at = tl.max_contiguous(row + a, [1, 4])
        mask = inside & (token < tokens)
        value, tangent, square, dot = _forward_sum(
            x + at, tx + at, update + at, tupdate + at, gate_row, tgate_row, y + at, ty + at, mask, ADD, PAIR
        )
        square = column_of(square, ROWS)
        dot = column_of(dot, ROWS)
        if TAIL > 0:
            bt = tl.max_contiguous(row + b, [1, 4])
            mask2 = inside2 & (token < tokens)
            value2, tangent2, square2, dot2 = _forward_sum(
                x + bt, tx + bt, update + bt, tupdate + bt, gate_row2, tgate_row2, y + bt, ty + bt, mask2, ADD, PAIR
            )
            square += column_of(square2, ROWS)
            dot += column_of(dot2, ROWS)
        r = tl.rsqrt(square / SIZE + eps)
        m = r * dot / SIZE
        _forward_norm(
            value, tangent, r, m, shift_row, tshift_row, factor, tfactor, h + at, th + at, mask, PAIR
        )  # fmt: skip
        if TAIL > 0:
            _forward_norm(
                value2, tangent2, r, m, shift_row2, tshift_row2, factor2, tfactor2, h + bt, th + bt, mask2, PAIR
            )
