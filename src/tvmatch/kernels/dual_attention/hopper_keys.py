"""dk, dv, dtk and dtv for Hopper GPUs, in Gluon: 12 of the products of the joint backward.

Persistent blocks own 64 keys and walk the queries, 64 at a time, with the scores transposed, [keys, queries]. Four
accumulators of a head of 128 would fill the registers of a warpgroup, so the work is split by *role*:

- the first warpgroup computes S, tS and P, and keeps dv and dtv;
- the second computes C and dP, gets P and B = tS - mu through shared memory, and keeps dk and dtk;
- one warp loads the keys, another the queries, with the bulk copy engine.

P, P*B, dS and dtS are left operands straight from the registers in which they were computed. Warp roles follow
FlashAttention-3 (Shah et al., 2024) in spirit; this split is ours.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .hopper_key_loads import produce_keys, produce_queries
from .hopper_tiles import (
    LOG2E,
    part1,
    part2,
    product,
    put_parts,
    release,
    round16,
    store_parts,
    sync_threads,
    widen,
)  # fmt: skip


@gluon.jit
def _probabilities(
    dv_desc, dv2_desc, dtv_desc, dtv2_desc, kv_smem, kv_smem2, q_smem, q_smem2, stats_smem, p_smem, kv_ready, kv_empty,
    ready, empty, p_ready, p_empty, scale, units, H, positions, steps, N_KV,
    D1: gl.constexpr, D2: gl.constexpr, STAGES: gl.constexpr, KEY_BUFFERS: gl.constexpr, EVEN: gl.constexpr,
    HELD: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """First role: P = softmax(S), B = tS - mu; dv = P^T do + (P*B)^T dto, dtv = P^T dto."""
    W2: gl.constexpr = D2 if D2 > 0 else 16
    SPLIT: gl.constexpr = 2 if D2 > 0 else 1
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    wide1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D1, 16])
    wide2: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, W2, 16])
    left1: gl.constexpr = gl.DotOperandLayout(0, wide1, 2)
    left2: gl.constexpr = gl.DotOperandLayout(0, wide2, 2)
    column: gl.constexpr = gl.SliceLayout(0, layout)
    dtype: gl.constexpr = p_smem.dtype
    zero = gl.full([64, 64], 0.0, gl.float32, layout)
    count = 0
    turn = 0
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        bh = unit // positions
        n0 = unit % positions * 64
        key_buffer = turn % KEY_BUFFERS
        at = 4 * key_buffer
        dv1 = gl.full([64, D1], 0.0, gl.float32, wide1)
        dtv1 = gl.full([64, D1], 0.0, gl.float32, wide1)
        dv2 = gl.full([64, W2], 0.0, gl.float32, wide2)
        dtv2 = gl.full([64, W2], 0.0, gl.float32, wide2)
        mbarrier.wait(kv_ready.index(key_buffer), (turn // KEY_BUFFERS) & 1)
        held: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
        k1 = part1(kv_smem, at, D1)
        tk1 = part1(kv_smem, at + 1, D1)
        if HELD:
            k1 = k1.load(held)
            tk1 = tk1.load(held)
        if KEY_BUFFERS == 2:
            release(kv_empty.index(key_buffer ^ 1), turn > 0)  # the results of the keys before leave through it
        for _ in range(steps):
            stage = count % STAGES
            buffer = count & 1
            mbarrier.wait(ready.index(stage), (count // STAGES) & 1)
            s = product(k1, kv_smem2, at, q_smem, q_smem2, 4 * stage, zero, True, D1, D2)
            ts = product(k1, kv_smem2, at, q_smem, q_smem2, 4 * stage + 1, zero, True, D1, D2)
            ts = product(tk1, kv_smem2, at + 1, q_smem, q_smem2, 4 * stage, ts, False, D1, D2)
            s = warpgroup_mma_wait(2 * SPLIT, [s])
            p = gl.exp2(s * (scale * LOG2E) - stats_smem.index(4 * stage).load(column)[None, :])
            if not EVEN:
                keys = n0 + gl.arange(0, 64, gl.SliceLayout(1, layout))
                p = gl.where(keys[:, None] < N_KV, p, 0.0)
            p16 = round16(p, dtype)
            p_left = gl.convert_layout(p16, left1)
            dto1 = part1(q_smem, 4 * stage + 2, D1)
            do1 = part1(q_smem, 4 * stage + 3, D1)
            if D2 > 0:
                dto2 = part2(q_smem2, 4 * stage + 2, D2)
                do2 = part2(q_smem2, 4 * stage + 3, D2)
                p_left2 = gl.convert_layout(p16, left2)
            ts = warpgroup_mma_wait(0, [ts])
            b = ts * scale - stats_smem.index(4 * stage + 1).load(column)[None, :]
            tp16 = round16(p * b, dtype)
            dtv1 = warpgroup_mma(p_left, dto1, dtv1, is_async=True)
            dv1 = warpgroup_mma(p_left, do1, dv1, is_async=True)
            dv1 = warpgroup_mma(gl.convert_layout(tp16, left1), dto1, dv1, is_async=True)
            if D2 > 0:
                dtv2 = warpgroup_mma(p_left2, dto2, dtv2, is_async=True)
                dv2 = warpgroup_mma(p_left2, do2, dv2, is_async=True)
                dv2 = warpgroup_mma(gl.convert_layout(tp16, left2), dto2, dv2, is_async=True)
            mbarrier.wait(p_empty.index(buffer), ((count >> 1) & 1) ^ 1)
            p_smem.index(2 * buffer).store(p16)
            p_smem.index(2 * buffer + 1).store(round16(b, dtype))
            sync_threads()
            mbarrier.arrive(p_ready.index(buffer), count=1)
            if D2 > 0:
                dtv2, dv2 = warpgroup_mma_wait(0, [dtv2, dv2])
            # Operands that stay in registers are named here, or the assembler gives their registers away (it did).
            if HELD:
                dtv1, dv1, k1, tk1 = warpgroup_mma_wait(0, [dtv1, dv1, k1, tk1])
            else:
                dtv1, dv1 = warpgroup_mma_wait(0, [dtv1, dv1])
            sync_threads()
            mbarrier.arrive(empty.index(stage), count=1)
            count += 1
        # This role alone reads k and tk, and it is done with them: the results leave through their tiles.
        put_parts(dv1, dv2, kv_smem, kv_smem2, at, D1, D2)
        put_parts(dtv1, dtv2, kv_smem, kv_smem2, at + 1, D1, D2)
        hopper.fence_async_shared()
        sync_threads()
        store_parts(dv_desc, dv2_desc, bh // H, bh % H, n0, kv_smem, kv_smem2, at, D1, D2)
        store_parts(dtv_desc, dtv2_desc, bh // H, bh % H, n0, kv_smem, kv_smem2, at + 1, D1, D2)
        if KEY_BUFFERS == 1:
            release(kv_empty.index(0), True)
        turn += 1  # noqa: SIM113
    tma.store_wait(0)


@gluon.jit
def _start_c(
    v1, kv_smem2, at, q_smem, q_smem2, ready, count, zero, D1: gl.constexpr, D2: gl.constexpr, STAGES: gl.constexpr
):
    """Wait for tile `count` of the queries and start dto v^T of it."""
    stage = count % STAGES
    mbarrier.wait(ready.index(stage), (count // STAGES) & 1)
    return product(v1, kv_smem2, at, q_smem, q_smem2, 4 * stage + 2, zero, True, D1, D2)


@gluon.jit
def _gradients(
    dk_desc, dk2_desc, dtk_desc, dtk2_desc, kv_smem, kv_smem2, q_smem, q_smem2, stats_smem, p_smem, kv_ready, kv_empty,
    ready, empty, p_ready, p_empty, scale, units, H, positions, steps,
    D1: gl.constexpr, D2: gl.constexpr, STAGES: gl.constexpr, KEY_BUFFERS: gl.constexpr, HELD: gl.constexpr,
    AHEAD: gl.constexpr,
):  # fmt: skip
    """Second role: C, dP -> dtS = P*C, dS = P*(dP - d2 + B*C); dk = dS^T q + dtS^T tq, dtk = dtS^T q."""
    W2: gl.constexpr = D2 if D2 > 0 else 16
    SPLIT: gl.constexpr = 2 if D2 > 0 else 1
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    wide1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D1, 16])
    wide2: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, W2, 16])
    left1: gl.constexpr = gl.DotOperandLayout(0, wide1, 2)
    left2: gl.constexpr = gl.DotOperandLayout(0, wide2, 2)
    column: gl.constexpr = gl.SliceLayout(0, layout)
    dtype: gl.constexpr = p_smem.dtype
    zero = gl.full([64, 64], 0.0, gl.float32, layout)
    count = 0
    turn = 0
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        bh = unit // positions
        n0 = unit % positions * 64
        key_buffer = turn % KEY_BUFFERS
        at = 4 * key_buffer + 2
        dk1 = gl.full([64, D1], 0.0, gl.float32, wide1)
        dtk1 = gl.full([64, D1], 0.0, gl.float32, wide1)
        dk2 = gl.full([64, W2], 0.0, gl.float32, wide2)
        dtk2 = gl.full([64, W2], 0.0, gl.float32, wide2)
        mbarrier.wait(kv_ready.index(key_buffer), (turn // KEY_BUFFERS) & 1)
        held: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
        v1 = part1(kv_smem, at, D1)
        tv1 = part1(kv_smem, at + 1, D1)
        if HELD:
            v1 = v1.load(held)
            tv1 = tv1.load(held)
        if KEY_BUFFERS == 2:
            release(kv_empty.index(key_buffer ^ 1), turn > 0)  # the results of the keys before leave through it
        if AHEAD:
            c = _start_c(v1, kv_smem2, at, q_smem, q_smem2, ready, count, zero, D1, D2, STAGES)
            c = warpgroup_mma_wait(0, [c])
        for step in range(steps):
            stage = count % STAGES
            buffer = count & 1
            if not AHEAD:
                c = _start_c(v1, kv_smem2, at, q_smem, q_smem2, ready, count, zero, D1, D2, STAGES)
            mbarrier.wait(p_ready.index(buffer), (count >> 1) & 1)
            p = p_smem.index(2 * buffer).load(layout)
            b = p_smem.index(2 * buffer + 1).load(layout)
            sync_threads()
            mbarrier.arrive(p_empty.index(buffer), count=1)
            if not AHEAD:
                c = warpgroup_mma_wait(0, [c])
            c = c - stats_smem.index(4 * stage + 2).load(column)[None, :]
            dts16 = round16(widen(p) * c, dtype)
            # dP starts from B*C - d2, and runs beside the products of dtS, which do not need it.
            dp = widen(b) * c - stats_smem.index(4 * stage + 3).load(column)[None, :]
            dp = product(v1, kv_smem2, at, q_smem, q_smem2, 4 * stage + 3, dp, False, D1, D2)
            dp = product(tv1, kv_smem2, at + 1, q_smem, q_smem2, 4 * stage + 2, dp, False, D1, D2)
            dts_left = gl.convert_layout(dts16, left1)
            q1 = part1(q_smem, 4 * stage, D1)
            dtk1 = warpgroup_mma(dts_left, q1, dtk1, is_async=True)
            dk1 = warpgroup_mma(dts_left, part1(q_smem, 4 * stage + 1, D1), dk1, is_async=True)
            if D2 > 0:
                q2 = part2(q_smem2, 4 * stage, D2)
                dts_left2 = gl.convert_layout(dts16, left2)
                dtk2 = warpgroup_mma(dts_left2, q2, dtk2, is_async=True)
                dk2 = warpgroup_mma(dts_left2, part2(q_smem2, 4 * stage + 1, D2), dk2, is_async=True)
            if AHEAD:
                # C of the next queries (of these again at the end, for nothing) runs under the products of dtS and dS.
                following = count + (step + 1 < steps).to(gl.int32)
                c = _start_c(v1, kv_smem2, at, q_smem, q_smem2, ready, following, zero, D1, D2, STAGES)
                dp = warpgroup_mma_wait(3 * SPLIT, [dp])
            else:
                dp = warpgroup_mma_wait(2 * SPLIT, [dp])
            ds16 = round16(widen(p) * dp, dtype)
            dk1 = warpgroup_mma(gl.convert_layout(ds16, left1), q1, dk1, is_async=True)
            if D2 > 0:
                dk2 = warpgroup_mma(gl.convert_layout(ds16, left2), q2, dk2, is_async=True)
                dtk2, dk2 = warpgroup_mma_wait(0, [dtk2, dk2])
            if AHEAD:
                dtk1, dk1, v1, tv1, c = warpgroup_mma_wait(0, [dtk1, dk1, v1, tv1, c])
            elif HELD:
                dtk1, dk1, v1, tv1 = warpgroup_mma_wait(0, [dtk1, dk1, v1, tv1])
            else:
                dtk1, dk1 = warpgroup_mma_wait(0, [dtk1, dk1])
            sync_threads()
            mbarrier.arrive(empty.index(stage), count=1)
            count += 1
        # This role alone reads v and tv, and it is done with them.
        put_parts(dk1 * scale, dk2 * scale, kv_smem, kv_smem2, at, D1, D2)
        put_parts(dtk1 * scale, dtk2 * scale, kv_smem, kv_smem2, at + 1, D1, D2)
        hopper.fence_async_shared()
        sync_threads()
        store_parts(dk_desc, dk2_desc, bh // H, bh % H, n0, kv_smem, kv_smem2, at, D1, D2)
        store_parts(dtk_desc, dtk2_desc, bh // H, bh % H, n0, kv_smem, kv_smem2, at + 1, D1, D2)
        if KEY_BUFFERS == 1:
            release(kv_empty.index(0), True)
        turn += 1  # noqa: SIM113
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["B", "H", "N_Q", "N_KV", "PADDED", "PLANE"])
def keys_kernel(
    q_desc, q2_desc, k_desc, k2_desc, v_desc, v2_desc, tq_desc, tq2_desc, tk_desc, tk2_desc, tv_desc, tv2_desc,
    do_desc, do2_desc, dto_desc, dto2_desc, dk_desc, dk2_desc, dv_desc, dv2_desc, dtk_desc, dtk2_desc, dtv_desc,
    dtv2_desc, stats_desc, scale, B, H, N_Q, N_KV, PADDED, PLANE,
    D1: gl.constexpr, D2: gl.constexpr, STAGES: gl.constexpr, KEY_BUFFERS: gl.constexpr, EVEN: gl.constexpr,
    HELD: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """dk, dv, dtk, dtv from the row statistics that `queries_kernel` wrote."""
    dtype: gl.constexpr = q_desc.dtype
    steps = gl.cdiv(N_Q, 64)
    positions = gl.cdiv(N_KV, 64)
    units = B * H * positions
    kv_smem = gl.allocate_shared_memory(dtype, [4 * KEY_BUFFERS, 1, 1, 64, D1], k_desc.layout)
    q_smem = gl.allocate_shared_memory(dtype, [4 * STAGES, 1, 1, 64, D1], q_desc.layout)
    kv_smem2 = kv_smem
    q_smem2 = q_smem
    if D2 > 0:
        kv_smem2 = gl.allocate_shared_memory(dtype, [4 * KEY_BUFFERS, 1, 1, 64, D2], k2_desc.layout)
        q_smem2 = gl.allocate_shared_memory(dtype, [4 * STAGES, 1, 1, 64, D2], q2_desc.layout)
    stats_smem = gl.allocate_shared_memory(gl.float32, [4 * STAGES, 64], stats_desc.layout)
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, 64], dtype)
    p_smem = gl.allocate_shared_memory(dtype, [4, 64, 64], square)
    kv_ready = gl.allocate_shared_memory(gl.int64, [KEY_BUFFERS, 1], mbarrier.MBarrierLayout())
    kv_empty = gl.allocate_shared_memory(gl.int64, [KEY_BUFFERS, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    p_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    p_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(KEY_BUFFERS):
        mbarrier.init(kv_ready.index(i), count=1)
        mbarrier.init(kv_empty.index(i), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(p_ready.index(i), count=1)
        mbarrier.init(p_empty.index(i), count=1)
    hopper.fence_async_shared()
    sync_threads()
    gl.warp_specialize(
        [
            (_probabilities, (dv_desc, dv2_desc, dtv_desc, dtv2_desc, kv_smem, kv_smem2, q_smem, q_smem2, stats_smem,
                              p_smem, kv_ready, kv_empty, ready, empty, p_ready, p_empty, scale, units, H, positions,
                              steps, N_KV, D1, D2, STAGES, KEY_BUFFERS, EVEN, HELD, AHEAD)),
            (_gradients, (dk_desc, dk2_desc, dtk_desc, dtk2_desc, kv_smem, kv_smem2, q_smem, q_smem2, stats_smem,
                          p_smem, kv_ready, kv_empty, ready, empty, p_ready, p_empty, scale, units, H, positions,
                          steps, D1, D2, STAGES, KEY_BUFFERS, HELD, AHEAD)),
            (produce_keys, (k_desc, k2_desc, tk_desc, tk2_desc, v_desc, v2_desc, tv_desc, tv2_desc, kv_smem, kv_smem2,
                             kv_ready, kv_empty, units, H, positions, D1, D2, KEY_BUFFERS)),
            (produce_queries, (q_desc, q2_desc, tq_desc, tq2_desc, do_desc, do2_desc, dto_desc, dto2_desc, stats_desc,
                                q_smem, q_smem2, stats_smem, ready, empty, units, H, positions, steps, PADDED, PLANE,
                                D1, D2, STAGES)),
        ],
        [4, 1, 1],
        [240, 24, 24],
    )  # fmt: skip
