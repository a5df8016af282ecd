"""One step of the forward for Hopper GPUs: scores, running softmax, products with the values."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from .hopper_tiles import LOG2E, part1, part2, round16, widen


@gluon.jit
def scores(q, tq, q2, tq2, kv_smem, kv_smem2, stage, D1: gl.constexpr, D2: gl.constexpr):
    """Start S = q k^T and tS = tq k^T + q tk^T of one stage, without the scale."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    zero = gl.full([64, 64], 0.0, gl.float32, layout)
    kT = part1(kv_smem, 4 * stage, D1).permute((1, 0))
    tkT = part1(kv_smem, 4 * stage + 1, D1).permute((1, 0))
    s = warpgroup_mma(q, kT, zero, use_acc=False, is_async=True)
    if D2 > 0:
        k2T = part2(kv_smem2, 4 * stage, D2).permute((1, 0))
        tk2T = part2(kv_smem2, 4 * stage + 1, D2).permute((1, 0))
        s = warpgroup_mma(q2, k2T, s, is_async=True)
    ts = warpgroup_mma(tq, kT, zero, use_acc=False, is_async=True)
    ts = warpgroup_mma(q, tkT, ts, is_async=True)
    if D2 > 0:
        ts = warpgroup_mma(tq2, k2T, ts, is_async=True)
        ts = warpgroup_mma(q2, tk2T, ts, is_async=True)
    return s, ts


@gluon.jit
def outputs(p16, w16, kv_smem, kv_smem2, stage, acc, tacc, acc2, tacc2, D1: gl.constexpr, D2: gl.constexpr):
    """Start acc += P v and tacc += P tv + W v of one stage."""
    v = part1(kv_smem, 4 * stage + 2, D1)
    acc = warpgroup_mma(p16, v, acc, is_async=True)
    tacc = warpgroup_mma(p16, part1(kv_smem, 4 * stage + 3, D1), tacc, is_async=True)
    tacc = warpgroup_mma(w16, v, tacc, is_async=True)
    if D2 > 0:
        left: gl.constexpr = gl.DotOperandLayout(0, acc2.type.layout, 2)
        v2 = part2(kv_smem2, 4 * stage + 2, D2)
        p2 = gl.convert_layout(p16, left)
        acc2 = warpgroup_mma(p2, v2, acc2, is_async=True)
        tacc2 = warpgroup_mma(p2, part2(kv_smem2, 4 * stage + 3, D2), tacc2, is_async=True)
        tacc2 = warpgroup_mma(gl.convert_layout(w16, left), v2, tacc2, is_async=True)
    return acc, tacc, acc2, tacc2


@gluon.jit
def finish(acc, tacc, acc2, tacc2, D2: gl.constexpr):
    """Wait for the products of `outputs`."""
    if D2 > 0:
        acc, tacc, acc2, tacc2 = warpgroup_mma_wait(0, [acc, tacc, acc2, tacc2])
    else:
        acc, tacc = warpgroup_mma_wait(0, [acc, tacc])
    return acc, tacc, acc2, tacc2


@gluon.jit
def shrink_sums(acc, tacc, acc2, tacc2, shrink, D2: gl.constexpr):
    """Scale what has been summed to a new row maximum."""
    factor = gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))
    acc = acc * factor[:, None]
    tacc = tacc * factor[:, None]
    if D2 > 0:
        factor2 = gl.convert_layout(shrink, gl.SliceLayout(1, acc2.type.layout))
        acc2 = acc2 * factor2[:, None]
        tacc2 = tacc2 * factor2[:, None]
    return acc, tacc, acc2, tacc2


@gluon.jit
def lane_sums(x):
    """[64, 64] -> [64, 4]: a sum for each of the four lanes of a row, so that steps exchange nothing between them."""
    return gl.sum(gl.sum(x.reshape([64, 8, 4, 2]), 3), 1)


@gluon.jit
def softmax(
    s, ts, m, l, mu, mu_rounded, scale, n0, N_KV, EVEN: gl.constexpr, dtype: gl.constexpr,
    p_layout: gl.constexpr,
):  # fmt: skip
    """One step of the running softmax: statistics, the factor for what has been summed, and P and W = P * tS."""
    layout: gl.constexpr = s.type.layout
    if not EVEN:
        columns = n0 + gl.arange(0, 64, gl.SliceLayout(0, layout))
        s = gl.where(columns[None, :] < N_KV, s, float("-inf"))
    scale2 = scale * LOG2E
    m_new = gl.maximum(m, gl.max(s, 1) * scale2)
    p = gl.exp2(s * scale2 - m_new[:, None])
    shrink = gl.exp2(m - m_new)
    fall = gl.convert_layout(shrink, gl.SliceLayout(1, l.type.layout))[:, None]
    l = l * fall + lane_sums(p)
    w = p * (ts * scale)
    w16 = round16(w, dtype)
    mu = mu * fall + lane_sums(w)
    # See triton_forward.py: the mean of the rounded weights is what cancels in `to`.
    mu_rounded = mu_rounded * fall + lane_sums(widen(w16))
    return (
        m_new, l, mu, mu_rounded, shrink,
        gl.convert_layout(round16(p, dtype), p_layout), gl.convert_layout(w16, p_layout),
    )  # fmt: skip
