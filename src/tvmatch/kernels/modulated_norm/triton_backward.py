"""Triton kernel of the gradient of the gated residual, RMS norm and modulation (rows, layout: `triton_forward`).

It adds up the gradients of the modulation over its rows in registers, in a fixed order, and writes one sum a program.
"""

import triton
import triton.language as tl

from .triton_rows import add2, add5, column_of, load_modulation, load_row


@triton.jit
def _backward_read(y, ty, gh, gth, gy, gty, update, tupdate, mask, factor, tfactor, gate_row, ADD, PAIR, ONWARD, AGAIN):
    """One part of the rows, with the five sums that the gradient of the norm needs (see `backward_kernel`). AGAIN (not
    with PAIR): y is what there was before the update, which is added here as in the forward."""
    value = load_row(y, mask)
    g_h = load_row(gh, mask)
    g_y = tl.zeros_like(value)
    if ONWARD:
        g_y = load_row(gy, mask)
    tangent = value
    g_th = g_h
    g_ty = g_y
    step = value
    tstep = value
    if PAIR:
        tangent = load_row(ty, mask)
        g_th = load_row(gth, mask)
        if ONWARD:
            g_ty = load_row(gty, mask)
    if ADD:
        step = load_row(update, mask)
        if PAIR:
            tstep = load_row(tupdate, mask)
    if AGAIN:
        value += gate_row * step
    g_unit = g_h * factor
    if PAIR:
        g_unit += g_th * tfactor
        g_tunit = g_th * factor
        square, m, q, p, dot = tl.reduce(
            (value * value, value * tangent, g_tunit * value, g_tunit * tangent, g_unit * value), 1, add5
        )
    else:
        square, dot = tl.reduce((value * value, g_unit * value), 1, add2)
        m = square
        q = square
        p = square
    return value, tangent, g_h, g_th, g_y, g_ty, step, tstep, square, m, q, p, dot


@triton.jit
def _backward_write(
    value, tangent, g_h, g_th, g_y, g_ty, step, tstep, r, m, q, along,
    sum_shift, sum_tshift, sum_scale, sum_tscale, sum_gate, sum_tgate,
    factor, tfactor, gate_row, tgate_row, gx, gtx, gupdate, gtupdate, mask, ADD, PAIR,
):  # fmt: skip
    """Gradients of one part, written, and the running sums for the modulation."""
    unit = value * r
    g_unit = g_h * factor
    sum_shift += g_h
    sum_scale += g_h * unit
    if PAIR:
        g_tunit = g_th * factor
        g_unit += g_th * tfactor - r * (m * g_tunit + q * tangent)
        sum_tshift += g_th
        sum_tscale += g_th * unit
        sum_scale += g_th * (r * (tangent - m * unit))
        g_ty += r * (g_tunit - q * unit)
        tl.store(gtx, g_ty.to(gtx.dtype.element_ty), mask)
    g_y += r * (g_unit - along * unit)
    tl.store(gx, g_y.to(gx.dtype.element_ty), mask)
    if ADD:
        sum_gate += g_y * step
        g_update = g_y * gate_row
        if PAIR:
            sum_gate += g_ty * tstep
            sum_tgate += g_ty * step
            g_update += g_ty * tgate_row
            tl.store(gtupdate, (g_ty * gate_row).to(gtupdate.dtype.element_ty), mask)
        tl.store(gupdate, g_update.to(gupdate.dtype.element_ty), mask)
    return sum_shift, sum_tshift, sum_scale, sum_tscale, sum_gate, sum_tgate


@triton.jit
def _store_sums(line, kind, inside, sum_shift, sum_tshift, sum_scale, sum_tscale, sum_gate, sum_tgate, ADD, PAIR):
    """Sums over the rows of a program, `kind` numbers apart: shift, scale, gate, and then those of the tangents."""
    tl.store(line, tl.sum(sum_shift, 0)[None, :], inside)
    tl.store(line + kind, tl.sum(sum_scale, 0)[None, :], inside)
    if ADD:
        tl.store(line + 2 * kind, tl.sum(sum_gate, 0)[None, :], inside)
    if PAIR:
        line += (3 if ADD else 2) * kind
        tl.store(line, tl.sum(sum_tshift, 0)[None, :], inside)
        tl.store(line + kind, tl.sum(sum_tscale, 0)[None, :], inside)
        if ADD:
            tl.store(line + 2 * kind, tl.sum(sum_tgate, 0)[None, :], inside)


@triton.jit
def backward_kernel(
    y, ty, update, tupdate, gate, tgate, scale, tscale, gy, gty, gh, gth,
    gx, gtx, gupdate, gtupdate, sums,
    gate_stride, tgate_stride, scale_stride, tscale_stride,
    tokens, eps,
    SIZE: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
    STAGES: tl.constexpr, ADD: tl.constexpr, PAIR: tl.constexpr, ONWARD: tl.constexpr,
    AGAIN: tl.constexpr,
):  # fmt: skip
    """Gradients of `forward_kernel`; gy, gty are those that reach the residual stream behind it, where it goes on.
    With AGAIN y is given as x, to which the update is added first; not with PAIR.

    With u = r y = rms(y), m = mean(u ty), q = mean(g_tu u), p = mean(g_tu ty):
        g_ty += r (g_tu - q u),   g_y += r (g_u - r m g_tu - r q ty - (mean(g_u u) + r p - 3 r m q) u).
    `sums` [kinds, B, chunks, SIZE] gets what the program adds up for shift, scale (and gate), then for their tangents.
    """
    sample = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    gate += sample * gate_stride
    tgate += sample * tgate_stride
    scale += sample * scale_stride
    tscale += sample * tscale_stride
    a = tl.arange(0, HEAD)[None, :]
    inside = a < SIZE
    factor, tfactor, gate_row, tgate_row = load_modulation(
        gate + a, tgate + a, scale + a, tscale + a, inside, ADD, PAIR
    )
    a1 = tl.zeros([ROWS, HEAD], tl.float32)
    a2 = a1
    a3 = a1
    a4 = a1
    a5 = a1
    a6 = a1
    if TAIL > 0:
        b = HEAD + tl.arange(0, TAIL)[None, :]
        inside2 = b < SIZE
        factor2, tfactor2, gate_row2, tgate_row2 = load_modulation(
            gate + b, tgate + b, scale + b, tscale + b, inside2, ADD, PAIR
        )
        b1 = tl.zeros([ROWS, TAIL], tl.float32)
        b2 = b1
        b3 = b1
        b4 = b1
        b5 = b1
        b6 = b1
    for tile in tl.range(TILES, num_stages=STAGES):
        token = (chunk * TILES + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        row = (sample * tokens + token) * SIZE
        at = tl.max_contiguous(row + a, [1, 4])
        mask = inside & (token < tokens)
        value, tangent, g_h, g_th, g_y, g_ty, step, tstep, square, m, q, p, dot = _backward_read(
            y + at, ty + at, gh + at, gth + at, gy + at, gty + at, update + at, tupdate + at,
            mask, factor, tfactor, gate_row, ADD, PAIR, ONWARD, AGAIN,
        )  # fmt: skip
        square = column_of(square, ROWS)
        m = column_of(m, ROWS)
        q = column_of(q, ROWS)
        p = column_of(p, ROWS)
        dot = column_of(dot, ROWS)
        if TAIL > 0:
            bt = tl.max_contiguous(row + b, [1, 4])
            mask2 = inside2 & (token < tokens)
            value2, tangent2, g_h2, g_th2, g_y2, g_ty2, step2, tstep2, square2, m2, q2, p2, dot2 = _backward_read(
                y + bt, ty + bt, gh + bt, gth + bt, gy + bt, gty + bt, update + bt, tupdate + bt,
                mask2, factor2, tfactor2, gate_row2, ADD, PAIR, ONWARD, AGAIN,
            )  # fmt: skip
            square += column_of(square2, ROWS)
            m += column_of(m2, ROWS)
            q += column_of(q2, ROWS)
            p += column_of(p2, ROWS)
            dot += column_of(dot2, ROWS)
        r = tl.rsqrt(square / SIZE + eps)
        m = r * m / SIZE
        q = r * q / SIZE
        along = r * dot / SIZE
        if PAIR:
            along += r * (p / SIZE - 3.0 * m * q)
        a1, a2, a3, a4, a5, a6 = _backward_write(
            value, tangent, g_h, g_th, g_y, g_ty, step, tstep, r, m, q, along, a1, a2, a3, a4, a5, a6,
            factor, tfactor, gate_row, tgate_row,
            gx + at, gtx + at, gupdate + at, gtupdate + at, mask, ADD, PAIR,
        )  # fmt: skip
        if TAIL > 0:
            b1, b2, b3, b4, b5, b6 = _backward_write(
                value2, tangent2, g_h2, g_th2, g_y2, g_ty2, step2, tstep2, r, m, q, along, b1, b2, b3, b4, b5, b6,
                factor2, tfactor2, gate_row2, tgate_row2,
                gx + bt, gtx + bt, gupdate + bt, gtupdate + bt, mask2, ADD, PAIR,
            )  # fmt: skip
    kind = tl.num_programs(0).to(tl.int64) * tl.num_programs(1) * SIZE
    line = sums + (sample * tl.num_programs(1) + chunk) * SIZE
    _store_sums(line + a, kind, inside, a1, a2, a3, a4, a5, a6, ADD, PAIR)
    if TAIL > 0:
        _store_sums(line + b, kind, inside2, b1, b2, b3, b4, b5, b6, ADD, PAIR)
