"""The joint backward for Hopper GPUs in one pass over the scores (15 products), in Gluon.

A block owns 64 keys of one head and walks the queries, 64 at a time, with the scores transposed, [keys, queries]. Four
accumulators of a head of 128 would fill the registers of a warpgroup, so the work is split by *role*:

- the first warpgroup computes S, tS and P, keeps dv and dtv in registers, and turns dS and dtS into dq;
- the second computes C and dP, gets P and B = tS - mu through shared memory, keeps dk and dtk, and makes dtq;
- one warp loads tiles with the bulk copy engine, two more keep the order of the additions.

P, dS and dtS are left operands straight from the registers in which they were computed.

**Determinism.** dq and dtq add up over the key blocks of a head, in the order of the blocks: a counter per (head, 64
queries) says whose turn it is. Blocks take numbered tickets when they start, and a ticket only ever waits for smaller
ones, so nothing can lock up. Tickets run over a group of heads position by position: blocks that start together belong
to different heads, and by the time that a position starts, the one before it is two tiles ahead.

**Memory.** The float32 sums exist only for the heads in flight (`GROUP` of them), not for all; the last position of a
head writes the 16-bit result.

Ordered accumulation follows the deterministic mode of FlashAttention-2/3 in spirit, warp roles FlashAttention-3; the
split by role, tickets over groups of heads and the ring of partial sums are ours.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .hopper_sums import LOG2E, hand_over, keep_order, store_keys, sync_threads


@gluon.jit
def _produce(
    q_desc, k_desc, v_desc, tq_desc, tk_desc, tv_desc, do_desc, dto_desc, stats_desc, kv_smem, q_smem, stats_smem,
    kv_ready, ready, empty, b, h, bh, n0, steps, PADDED, PLANE, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    mbarrier.expect(kv_ready, 4 * 64 * D * 2)
    tma.async_copy_global_to_shared(k_desc, [b, h, n0, 0], kv_ready, kv_smem.index(0))
    tma.async_copy_global_to_shared(tk_desc, [b, h, n0, 0], kv_ready, kv_smem.index(1))
    tma.async_copy_global_to_shared(v_desc, [b, h, n0, 0], kv_ready, kv_smem.index(2))
    tma.async_copy_global_to_shared(tv_desc, [b, h, n0, 0], kv_ready, kv_smem.index(3))
    for step in range(steps):
        stage = step % STAGES
        mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
        bar = ready.index(stage)
        m0 = step * 64
        mbarrier.expect(bar, 4 * 64 * D * 2 + 4 * 64 * 4)
        tma.async_copy_global_to_shared(q_desc, [b, h, m0, 0], bar, q_smem.index(4 * stage))
        tma.async_copy_global_to_shared(tq_desc, [b, h, m0, 0], bar, q_smem.index(4 * stage + 1))
        tma.async_copy_global_to_shared(do_desc, [b, h, m0, 0], bar, q_smem.index(4 * stage + 2))
        tma.async_copy_global_to_shared(dto_desc, [b, h, m0, 0], bar, q_smem.index(4 * stage + 3))
        for i in gl.static_range(4):
            tma.async_copy_global_to_shared(
                stats_desc, [i * PLANE + bh * PADDED + m0], bar, stats_smem.index(4 * stage + i)
            )


@gluon.jit
def _make_dq(dsT, dtsT, k, tk, ds_ready, ds_empty, step, scale, D: gl.constexpr):
    """dq of one tile: scale (dS k + dtS tk)."""
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    zero = gl.full([64, D], 0.0, gl.float32, wide)
    mbarrier.wait(ds_ready, step & 1)
    token = warpgroup_mma(dsT, k, zero, use_acc=False, is_async=True)
    token = warpgroup_mma(dtsT, tk, token, is_async=True)
    x = warpgroup_mma_wait(0, [token]) * scale
    sync_threads()
    mbarrier.arrive(ds_empty, count=1)
    return x


@gluon.jit
def _probabilities(
    DQ, DV, DTV, dq_n, dv_n, dtv_n, partials, kv_smem, q_smem, stats_smem, p_smem, ds_smem,
    kv_ready, ready, empty, p_ready, p_empty, ds_ready, ds_empty, go, done,
    scale, n0, steps, position, last, N_Q, N_KV,
    HEAD: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, EVEN: gl.constexpr,
):  # fmt: skip
    """First role: P = softmax(S), B = tS - mu; dv = P^T do + (P*B)^T dto, dtv = P^T dto; dq of the tile before."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, wide, 2)
    column: gl.constexpr = gl.SliceLayout(0, layout)
    dtype: gl.constexpr = DQ.dtype.element_ty
    scale2 = scale * LOG2E
    k = kv_smem.index(0).reshape([64, D])
    tk = kv_smem.index(1).reshape([64, D])
    dsT = ds_smem.index(0).permute((1, 0))
    dtsT = ds_smem.index(1).permute((1, 0))
    zero = gl.full([64, 64], 0.0, gl.float32, layout)
    dv = gl.full([64, D], 0.0, gl.float32, wide)
    dtv = gl.full([64, D], 0.0, gl.float32, wide)
    mbarrier.wait(kv_ready, 0)
    for step in range(steps):
        stage = step % STAGES
        mbarrier.wait(ready.index(stage), (step // STAGES) & 1)
        qT = q_smem.index(4 * stage).reshape([64, D]).permute((1, 0))
        tqT = q_smem.index(4 * stage + 1).reshape([64, D]).permute((1, 0))
        do = q_smem.index(4 * stage + 2).reshape([64, D])
        dto = q_smem.index(4 * stage + 3).reshape([64, D])
        s_token = warpgroup_mma(k, qT, zero, use_acc=False, is_async=True)
        ts_token = warpgroup_mma(k, tqT, zero, use_acc=False, is_async=True)
        ts_token = warpgroup_mma(tk, qT, ts_token, is_async=True)
        s = warpgroup_mma_wait(2, [s_token])
        p = gl.exp2(s * scale2 - stats_smem.index(4 * stage).load(column)[None, :])
        if not EVEN:
            keys = n0 + gl.arange(0, 64, gl.SliceLayout(1, layout))
            p = gl.where(keys[:, None] < N_KV, p, 0.0)
        p16 = p.to(dtype)
        ts = warpgroup_mma_wait(0, [ts_token])
        centred = ts * scale - stats_smem.index(4 * stage + 1).load(column)[None, :]
        tp_left = gl.convert_layout((p * centred).to(dtype), left)
        p_left = gl.convert_layout(p16, left)
        dtv_token = warpgroup_mma(p_left, dto, dtv, is_async=True)
        dv_token = warpgroup_mma(p_left, do, dv, is_async=True)
        dv_token = warpgroup_mma(tp_left, dto, dv_token, is_async=True)
        mbarrier.wait(p_empty, (step & 1) ^ 1)
        p_smem.index(0).store(p16)
        p_smem.index(1).store(centred.to(dtype))
        sync_threads()
        mbarrier.arrive(p_ready, count=1)
        dtv, dv = warpgroup_mma_wait(0, [dtv_token, dv_token])
        sync_threads()
        mbarrier.arrive(empty.index(stage), count=1)
        if step > 0:
            x = _make_dq(dsT, dtsT, k, tk, ds_ready, ds_empty, step - 1, scale, D)
            hand_over(x, DQ, dq_n, step - 1, N_Q, partials, go, done, position, last, HEAD)
    x = _make_dq(dsT, dtsT, k, tk, ds_ready, ds_empty, steps - 1, scale, D)
    hand_over(x, DQ, dq_n, steps - 1, N_Q, partials, go, done, position, last, HEAD)
    store_keys(DV, dv, n0, dv_n, N_KV, HEAD)
    store_keys(DTV, dtv, n0, dtv_n, N_KV, HEAD)


@gluon.jit
def _gradients(
    DTQ, DK, DTK, dtq_n, dk_n, dtk_n, partials, kv_smem, q_smem, stats_smem, p_smem, ds_smem,
    kv_ready, ready, empty, p_ready, p_empty, ds_ready, ds_empty, go, done,
    scale, n0, steps, position, last, N_Q, N_KV,
    HEAD: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Second role: C, dP -> dtS = P*C, dS = P*(dP - d2 + B*C); dk = dS^T q + dtS^T tq, dtk = dtS^T q, dtq = dtS k."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, wide, 2)
    column: gl.constexpr = gl.SliceLayout(0, layout)
    dtype: gl.constexpr = DTQ.dtype.element_ty
    k = kv_smem.index(0).reshape([64, D])
    v = kv_smem.index(2).reshape([64, D])
    tv = kv_smem.index(3).reshape([64, D])
    dtsT = ds_smem.index(1).permute((1, 0))
    zero = gl.full([64, 64], 0.0, gl.float32, layout)
    wide_zero = gl.full([64, D], 0.0, gl.float32, wide)
    dk = gl.full([64, D], 0.0, gl.float32, wide)
    dtk = gl.full([64, D], 0.0, gl.float32, wide)
    mbarrier.wait(kv_ready, 0)
    for step in range(steps):
        stage = step % STAGES
        mbarrier.wait(ready.index(stage), (step // STAGES) & 1)
        q = q_smem.index(4 * stage).reshape([64, D])
        tq = q_smem.index(4 * stage + 1).reshape([64, D])
        doT = q_smem.index(4 * stage + 2).reshape([64, D]).permute((1, 0))
        dtoT = q_smem.index(4 * stage + 3).reshape([64, D]).permute((1, 0))
        c_token = warpgroup_mma(v, dtoT, zero, use_acc=False, is_async=True)
        dp_token = warpgroup_mma(v, doT, zero, use_acc=False, is_async=True)
        dp_token = warpgroup_mma(tv, dtoT, dp_token, is_async=True)
        mbarrier.wait(p_ready, step & 1)
        p = p_smem.index(0).load(layout)
        centred = p_smem.index(1).load(layout)
        sync_threads()
        mbarrier.arrive(p_empty, count=1)
        c = warpgroup_mma_wait(2, [c_token]) - stats_smem.index(4 * stage + 2).load(column)[None, :]
        dts16 = (p.to(gl.float32) * c).to(dtype)
        shift = centred.to(gl.float32) * c - stats_smem.index(4 * stage + 3).load(column)[None, :]
        dp = warpgroup_mma_wait(0, [dp_token]) + shift
        ds16 = (p.to(gl.float32) * dp).to(dtype)
        dts_left = gl.convert_layout(dts16, left)
        dtk_token = warpgroup_mma(dts_left, q, dtk, is_async=True)
        dk_token = warpgroup_mma(dts_left, tq, dk, is_async=True)
        dk_token = warpgroup_mma(gl.convert_layout(ds16, left), q, dk_token, is_async=True)
        mbarrier.wait(ds_empty, (step & 1) ^ 1)
        ds_smem.index(0).store(ds16)
        ds_smem.index(1).store(dts16)
        hopper.fence_async_shared()
        sync_threads()
        mbarrier.arrive(ds_ready, count=1)
        dtk, dk = warpgroup_mma_wait(0, [dtk_token, dk_token])
        sync_threads()
        mbarrier.arrive(empty.index(stage), count=1)
        token = warpgroup_mma(dtsT, k, wide_zero, use_acc=False, is_async=True)
        x = warpgroup_mma_wait(0, [token]) * scale
        hand_over(x, DTQ, dtq_n, step, N_Q, partials, go, done, position, last, HEAD)
    store_keys(DK, dk * scale, n0, dk_n, N_KV, HEAD)
    store_keys(DTK, dtk * scale, n0, dtk_n, N_KV, HEAD)


@gluon.jit(do_not_specialize=["B", "H", "N_Q", "N_KV", "PADDED", "PLANE", "GROUP"])
def hopper_backward_kernel(
    q_desc, k_desc, v_desc, tq_desc, tk_desc, tv_desc, do_desc, dto_desc, stats_desc,
    DQ, DK, DV, DTQ, DTK, DTV,
    dq_b, dq_h, dq_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n, dtq_b, dtq_h, dtq_n, dtk_b, dtk_h, dtk_n,
    dtv_b, dtv_h, dtv_n, PARTIALS, COUNTERS, scale, B, H, N_Q, N_KV, PADDED, PLANE, GROUP,
    HEAD: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, EVEN: gl.constexpr,
):  # fmt: skip
    """One block: 64 keys of one head of HEAD columns, padded to D.

    COUNTERS [1 + 2 * GROUP * tiles] must be zero: the ticket, then whose turn each tile of dq and of dtq is.
    PARTIALS [2, GROUP, PADDED, D]: the sums of the heads in flight.
    """
    dtype: gl.constexpr = DQ.dtype.element_ty
    ticket = gl.atomic_add(COUNTERS, 1, sem="relaxed", scope="gpu")
    steps = PADDED // 64
    positions = gl.cdiv(N_KV, 64)
    group = ticket // (GROUP * positions)
    inside = ticket % (GROUP * positions)
    size = gl.minimum(GROUP, B * H - group * GROUP)
    position = inside // size
    slot = inside % size
    bh = group * GROUP + slot
    b = bh // H
    h = bh % H
    n0 = position * 64
    kv_smem = gl.allocate_shared_memory(dtype, [4, 1, 1, 64, D], k_desc.layout)
    q_smem = gl.allocate_shared_memory(dtype, [4 * STAGES, 1, 1, 64, D], q_desc.layout)
    stats_smem = gl.allocate_shared_memory(gl.float32, [4 * STAGES, 64], stats_desc.layout)
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, 64], dtype)
    p_smem = gl.allocate_shared_memory(dtype, [2, 64, 64], square)
    ds_smem = gl.allocate_shared_memory(dtype, [2, 64, 64], square)
    bars = gl.allocate_shared_memory(gl.int64, [9, 1], mbarrier.MBarrierLayout())
    kv_ready = bars.index(0)
    p_ready = bars.index(1)
    p_empty = bars.index(2)
    ds_ready = bars.index(3)
    ds_empty = bars.index(4)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(9):
        mbarrier.init(bars.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    hopper.fence_async_shared()
    sync_threads()
    lb = b.to(gl.int64)
    lh = h.to(gl.int64)
    DQ += lb * dq_b + lh * dq_h
    DK += lb * dk_b + lh * dk_h
    DV += lb * dv_b + lh * dv_h
    DTQ += lb * dtq_b + lh * dtq_h
    DTK += lb * dtk_b + lh * dtk_h
    DTV += lb * dtv_b + lh * dtv_h
    last = positions - 1
    # dq and dtq have their own sums and counters.
    dq_sums = PARTIALS + slot.to(gl.int64) * PADDED * D
    dtq_sums = PARTIALS + (GROUP + slot).to(gl.int64) * PADDED * D
    dq_turns = COUNTERS + 1 + slot * steps
    dtq_turns = COUNTERS + 1 + (GROUP + slot) * steps
    turn = group * positions + position
    gl.warp_specialize(
        [
            (_probabilities, (DQ, DV, DTV, dq_n, dv_n, dtv_n, dq_sums, kv_smem, q_smem, stats_smem, p_smem, ds_smem,
                              kv_ready, ready, empty, p_ready, p_empty, ds_ready, ds_empty, bars.index(5),
                              bars.index(6), scale, n0, steps, position, last, N_Q, N_KV, HEAD, D, STAGES,
                              EVEN)),
            (_gradients, (DTQ, DK, DTK, dtq_n, dk_n, dtk_n, dtq_sums, kv_smem, q_smem, stats_smem, p_smem, ds_smem,
                          kv_ready, ready, empty, p_ready, p_empty, ds_ready, ds_empty, bars.index(7), bars.index(8),
                          scale, n0, steps, position, last, N_Q, N_KV, HEAD, D, STAGES)),
            (_produce, (q_desc, k_desc, v_desc, tq_desc, tk_desc, tv_desc, do_desc, dto_desc, stats_desc, kv_smem,
                        q_smem, stats_smem, kv_ready, ready, empty, b, h, bh, n0, steps, PADDED, PLANE, D, STAGES)),
            (keep_order, (dq_turns, turn, bars.index(5), bars.index(6), steps)),
            (keep_order, (dtq_turns, turn, bars.index(7), bars.index(8), steps)),
        ],
        [4, 1, 1, 1],
        [240, 24, 24, 24],
    )  # fmt: skip
