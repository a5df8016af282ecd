"""dq and dtq for Hopper GPUs, in Gluon: 9 of the products of the joint backward, and the row statistics d1 and d2.

Persistent blocks own 128 queries and walk the keys, 64 at a time; the last tiles are done in halves where there are
blocks for all halves. One warp loads tiles with the bulk copy engine; each of two warpgroups does the whole arithmetic
of 64 queries, and while one of them is busy with exponentials the other keeps the matrix units busy. (k, tk) and
(v, tv) are separate slots of one ring, as v and tv are free long before k. What the forward saved for the next tile is
loaded while the results of this one leave.

`dS = P*(dP - d2 + B*C)` is accumulated on top of `B*C - d2`, so that C and dP never need registers at the same time.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .hopper_query_loads import load_saved, place, produce, row_sums, whole_tiles
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
def _consume(
    dq_desc, dq2_desc, dtq_desc, dtq2_desc, O, TO, LSE, MU, REST, STATS, o_b, o_h, o_n, q_smem, q_smem2, kv_smem,
    kv_smem2, q_ready, q_empty, ready, empty, scale, tiles, H, blocks, steps, N_Q, N_KV, PADDED, PLANE,
    W: gl.constexpr, HEAD: gl.constexpr, D1: gl.constexpr, D2: gl.constexpr, SLOTS: gl.constexpr,
    BUFFERS: gl.constexpr, EVEN: gl.constexpr, HELD: gl.constexpr, HAS_REST: gl.constexpr,
):  # fmt: skip
    W2: gl.constexpr = D2 if D2 > 0 else 16
    SPLIT: gl.constexpr = 2 if D2 > 0 else 1
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    wide1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D1, 16])
    wide2: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, W2, 16])
    left1: gl.constexpr = gl.DotOperandLayout(0, wide1, 2)
    left2: gl.constexpr = gl.DotOperandLayout(0, wide2, 2)
    dtype: gl.constexpr = O.dtype.element_ty
    zero = gl.full([64, 64], 0.0, gl.float32, layout)
    count = 0
    turn = 0
    whole = whole_tiles(tiles)
    items = whole
    if W == 0:
        items = 2 * tiles - whole
    lse, mu, first, second = load_saved(
        O, TO, LSE, MU, REST, o_b, o_h, o_n, gl.program_id(0), items, whole, blocks, H, N_Q, W, HEAD, D1, D2,
        HAS_REST,
    )  # fmt: skip
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        bh, m0 = place(item, whole, blocks)
        m0 += W * 64
        alone = item >= whole
        b = bh // H
        h = bh % H
        rows = m0 + gl.arange(0, 64, gl.SliceLayout(1, layout))
        buffer = turn % BUFFERS
        at = 8 * buffer + 4 * W
        mbarrier.wait(q_ready.index(buffer), (turn // BUFFERS) & 1)
        d1, d2 = row_sums(first, q_smem, at, HAS_REST)
        if D2 > 0:
            more1, more2 = row_sums(second, q_smem2, at, HAS_REST)
            d1 += more1
            d2 += more2
        lse = lse * LOG2E
        stats = STATS + bh.to(gl.int64) * PADDED + rows
        gl.store(stats, lse, mask=rows < PADDED)
        gl.store(stats + PLANE, mu, mask=rows < PADDED)
        gl.store(stats + 2 * PLANE, d1, mask=rows < PADDED)
        gl.store(stats + 3 * PLANE, d2, mask=rows < PADDED)
        dq1 = gl.full([64, D1], 0.0, gl.float32, wide1)
        dtq1 = gl.full([64, D1], 0.0, gl.float32, wide1)
        dq2 = gl.full([64, W2], 0.0, gl.float32, wide2)
        dtq2 = gl.full([64, W2], 0.0, gl.float32, wide2)
        held: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
        q1 = part1(q_smem, at, D1)
        tq1 = part1(q_smem, at + 1, D1)
        dto1 = part1(q_smem, at + 2, D1)
        do1 = part1(q_smem, at + 3, D1)
        if HELD:
            q1 = q1.load(held)
            dto1 = dto1.load(held)
        if BUFFERS == 2:
            release(q_empty.index(buffer ^ 1), turn > 0)  # the results of the tile before leave through it
        for step in range(steps):
            slot = count % SLOTS
            other = (count + 1) % SLOTS
            mbarrier.wait(ready.index(slot), (count // SLOTS) & 1)
            k1 = part1(kv_smem, 2 * slot, D1)
            tk1 = part1(kv_smem, 2 * slot + 1, D1)
            s = product(q1, q_smem2, at, kv_smem, kv_smem2, 2 * slot, zero, True, D1, D2)
            ts = product(tq1, q_smem2, at + 1, kv_smem, kv_smem2, 2 * slot, zero, True, D1, D2)
            ts = product(q1, q_smem2, at, kv_smem, kv_smem2, 2 * slot + 1, ts, False, D1, D2)
            s = warpgroup_mma_wait(2 * SPLIT, [s])
            p = gl.exp2(s * (scale * LOG2E) - lse[:, None])
            if not EVEN:
                keys = step * 64 + gl.arange(0, 64, gl.SliceLayout(0, layout))
                p = gl.where(keys[None, :] < N_KV, p, 0.0)
            p16 = round16(p, dtype)
            ts = warpgroup_mma_wait(0, [ts])
            mbarrier.wait(ready.index(other), ((count + 1) // SLOTS) & 1)
            c = product(dto1, q_smem2, at + 2, kv_smem, kv_smem2, 2 * other, zero, True, D1, D2)
            b16 = round16(ts * scale - mu[:, None], dtype)
            c = warpgroup_mma_wait(0, [c]) - d1[:, None]
            dts16 = round16(widen(p16) * c, dtype)
            # dP runs beside the products of dtS, which do not need it.
            dp = widen(b16) * c - d2[:, None]
            dp = product(do1, q_smem2, at + 3, kv_smem, kv_smem2, 2 * other, dp, False, D1, D2)
            dp = product(dto1, q_smem2, at + 2, kv_smem, kv_smem2, 2 * other + 1, dp, False, D1, D2)
            dts_left = gl.convert_layout(dts16, left1)
            dtq1 = warpgroup_mma(dts_left, k1, dtq1, is_async=True)
            dq1 = warpgroup_mma(dts_left, tk1, dq1, is_async=True)
            if D2 > 0:
                k2 = part2(kv_smem2, 2 * slot, D2)
                tk2 = part2(kv_smem2, 2 * slot + 1, D2)
                dts_left2 = gl.convert_layout(dts16, left2)
                dtq2 = warpgroup_mma(dts_left2, k2, dtq2, is_async=True)
                dq2 = warpgroup_mma(dts_left2, tk2, dq2, is_async=True)
            dp = warpgroup_mma_wait(2 * SPLIT, [dp])
            sync_threads()
            mbarrier.arrive(empty.index(other), count=1)
            if W == 0:
                mbarrier.arrive(empty.index(other), count=1, pred=alone)
            ds16 = round16(widen(p16) * dp, dtype)
            dq1 = warpgroup_mma(gl.convert_layout(ds16, left1), k1, dq1, is_async=True)
            if D2 > 0:
                dq2 = warpgroup_mma(gl.convert_layout(ds16, left2), k2, dq2, is_async=True)
                dq2, dtq2 = warpgroup_mma_wait(0, [dq2, dtq2])
            # Operands that stay in registers are named here, or the assembler gives their registers away (it did).
            if HELD:
                dq1, dtq1, q1, dto1 = warpgroup_mma_wait(0, [dq1, dtq1, q1, dto1])
            else:
                dq1, dtq1 = warpgroup_mma_wait(0, [dq1, dtq1])
            sync_threads()
            mbarrier.arrive(empty.index(slot), count=1)
            if W == 0:
                mbarrier.arrive(empty.index(slot), count=1, pred=alone)
            count += 2
        # The tiles of q and tq are free now: the results leave through them.
        put_parts(dq1 * scale, dq2 * scale, q_smem, q_smem2, at, D1, D2)
        # What the next tile needs comes meanwhile, from the L2 cache.
        lse, mu, first, second = load_saved(
            O, TO, LSE, MU, REST, o_b, o_h, o_n, item + gl.num_programs(0), items, whole, blocks, H, N_Q, W, HEAD,
            D1, D2, HAS_REST,
        )  # fmt: skip
        put_parts(dtq1 * scale, dtq2 * scale, q_smem, q_smem2, at + 1, D1, D2)
        hopper.fence_async_shared()
        sync_threads()
        store_parts(dq_desc, dq2_desc, b, h, m0, q_smem, q_smem2, at, D1, D2)
        store_parts(dtq_desc, dtq2_desc, b, h, m0, q_smem, q_smem2, at + 1, D1, D2)
        if BUFFERS == 1:
            release(q_empty.index(0), True)
        turn += 1  # noqa: SIM113
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["B", "H", "N_Q", "N_KV", "PADDED", "PLANE"])
def queries_kernel(
    q_desc, q2_desc, k_desc, k2_desc, v_desc, v2_desc, tq_desc, tq2_desc, tk_desc, tk2_desc, tv_desc, tv2_desc,
    do_desc, do2_desc, dto_desc, dto2_desc, dq_desc, dq2_desc, dtq_desc, dtq2_desc, O, TO, LSE, MU, REST, STATS,
    o_b, o_h, o_n, scale, B, H, N_Q, N_KV, PADDED, PLANE,
    HEAD: gl.constexpr, D1: gl.constexpr, D2: gl.constexpr, SLOTS: gl.constexpr, BUFFERS: gl.constexpr,
    EVEN: gl.constexpr, HELD: gl.constexpr, HAS_REST: gl.constexpr,
):  # fmt: skip
    """dq, dtq, and STATS [4, B*H, PADDED] = logsumexp in base 2, mu, d1, d2 for `keys_kernel`.

    Padding rows of STATS make every probability zero. O and TO have one set of strides.
    """
    blocks = gl.cdiv(N_Q, 128)
    steps = gl.cdiv(N_KV, 64)
    tiles = B * H * blocks
    dtype: gl.constexpr = O.dtype.element_ty
    q_smem = gl.allocate_shared_memory(dtype, [8 * BUFFERS, 1, 1, 64, D1], q_desc.layout)
    kv_smem = gl.allocate_shared_memory(dtype, [2 * SLOTS, 1, 1, 64, D1], k_desc.layout)
    q_smem2 = q_smem
    kv_smem2 = kv_smem
    if D2 > 0:
        q_smem2 = gl.allocate_shared_memory(dtype, [8 * BUFFERS, 1, 1, 64, D2], q2_desc.layout)
        kv_smem2 = gl.allocate_shared_memory(dtype, [2 * SLOTS, 1, 1, 64, D2], k2_desc.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(BUFFERS):
        mbarrier.init(q_ready.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=2)
    for i in gl.static_range(SLOTS):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    hopper.fence_async_shared()
    sync_threads()
    gl.warp_specialize(
        [
            (_consume, (dq_desc, dq2_desc, dtq_desc, dtq2_desc, O, TO, LSE, MU, REST, STATS, o_b, o_h, o_n, q_smem,
                        q_smem2, kv_smem, kv_smem2, q_ready, q_empty, ready, empty, scale, tiles, H, blocks, steps,
                        N_Q, N_KV, PADDED, PLANE, 0, HEAD, D1, D2, SLOTS, BUFFERS, EVEN, HELD, HAS_REST)),
            (_consume, (dq_desc, dq2_desc, dtq_desc, dtq2_desc, O, TO, LSE, MU, REST, STATS, o_b, o_h, o_n, q_smem,
                        q_smem2, kv_smem, kv_smem2, q_ready, q_empty, ready, empty, scale, tiles, H, blocks, steps,
                        N_Q, N_KV, PADDED, PLANE, 1, HEAD, D1, D2, SLOTS, BUFFERS, EVEN, HELD, HAS_REST)),
            (produce, (q_desc, q2_desc, k_desc, k2_desc, v_desc, v2_desc, tq_desc, tq2_desc, tk_desc, tk2_desc,
                        tv_desc, tv2_desc, do_desc, do2_desc, dto_desc, dto2_desc, O, TO, LSE, MU, REST, o_b, o_h, o_n,
                        q_smem, q_smem2, kv_smem, kv_smem2, q_ready, q_empty, ready, empty, tiles, H, blocks, steps,
                        N_Q, HEAD, D1, D2, SLOTS, BUFFERS, HAS_REST)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
