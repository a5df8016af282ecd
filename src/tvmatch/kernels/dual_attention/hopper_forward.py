"""The forward for Hopper GPUs, in Gluon: one producer warp feeds two consumer warpgroups by bulk tensor copies.

Each consumer owns 64 queries. While one runs its softmax on the ordinary units, the other keeps the matrix units busy;
no barrier ties the two together, only the ring of key/value stages does. Blocks are persistent, so that the next tile's
loads run under the epilogue of this one. Warp specialisation for attention and the idea of two consumers that alternate
come from FlashAttention-3 (Shah et al., 2024); the code is our own.

Takes 16-bit inputs with head size 64 or 128, all three tangents, no causal mask and no key lengths.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
# Triton 3.8 renamed it.
sync_threads = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier


@gluon.jit
def _place(tile, blocks, H):
    """(batch, head, first query) of a tile number."""
    bh = tile // blocks
    return bh // H, bh % H, (tile % blocks) * 128


@gluon.jit
def _produce(
    q_desc, k_desc, v_desc, tq_desc, tk_desc, tv_desc, q_smem, kv_smem, q_ready, q_empty, ready, empty,
    tiles, H, blocks, steps, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    count = 0
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        b, h, m0 = _place(tile, blocks, H)
        mbarrier.wait(q_empty, (turn & 1) ^ 1)
        mbarrier.expect(q_ready, 4 * 64 * D * 2)
        for i in gl.static_range(2):
            tma.async_copy_global_to_shared(q_desc, [b, h, m0 + 64 * i, 0], q_ready, q_smem.index(2 * i))
            tma.async_copy_global_to_shared(tq_desc, [b, h, m0 + 64 * i, 0], q_ready, q_smem.index(2 * i + 1))
        turn += 1  # noqa: SIM113
        for step in range(steps):
            stage = count % STAGES
            mbarrier.wait(empty.index(stage), ((count // STAGES) & 1) ^ 1)
            bar = ready.index(stage)
            mbarrier.expect(bar, 4 * BN * D * 2)
            tma.async_copy_global_to_shared(k_desc, [b, h, step * BN, 0], bar, kv_smem.index(4 * stage))
            tma.async_copy_global_to_shared(tk_desc, [b, h, step * BN, 0], bar, kv_smem.index(4 * stage + 1))
            tma.async_copy_global_to_shared(v_desc, [b, h, step * BN, 0], bar, kv_smem.index(4 * stage + 2))
            tma.async_copy_global_to_shared(tv_desc, [b, h, step * BN, 0], bar, kv_smem.index(4 * stage + 3))
            count += 1


@gluon.jit
def _scores(q, tq, kv_smem, stage, BN: gl.constexpr, D: gl.constexpr):
    """Start S = q k^T and tS = tq k^T + q tk^T of one stage, without the scale."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    zero = gl.full([64, BN], 0.0, gl.float32, layout)
    kT = kv_smem.index(4 * stage).reshape([BN, D]).permute((1, 0))
    tkT = kv_smem.index(4 * stage + 1).reshape([BN, D]).permute((1, 0))
    s = warpgroup_mma(q, kT, zero, use_acc=False, is_async=True)
    ts = warpgroup_mma(tq, kT, zero, use_acc=False, is_async=True)
    ts = warpgroup_mma(q, tkT, ts, is_async=True)
    return s, ts


@gluon.jit
def _outputs(p16, w16, kv_smem, stage, acc, tacc, BN: gl.constexpr, D: gl.constexpr):
    """Start acc += P v and tacc += P tv + W v of one stage."""
    v = kv_smem.index(4 * stage + 2).reshape([BN, D])
    tv = kv_smem.index(4 * stage + 3).reshape([BN, D])
    acc_token = warpgroup_mma(p16, v, acc, is_async=True)
    tacc_token = warpgroup_mma(p16, tv, tacc, is_async=True)
    tacc_token = warpgroup_mma(w16, v, tacc_token, is_async=True)
    return acc_token, tacc_token


@gluon.jit
def _softmax(
    s, ts, m, l, mu, mu_rounded, scale, n0, N_KV, BN: gl.constexpr, EVEN: gl.constexpr, dtype: gl.constexpr,
    p_layout: gl.constexpr,
):  # fmt: skip
    """One step of the running softmax: statistics, the factor for what has been summed, and P and W = P * tS."""
    layout: gl.constexpr = s.type.layout
    if not EVEN:
        columns = n0 + gl.arange(0, BN, gl.SliceLayout(0, layout))
        s = gl.where(columns[None, :] < N_KV, s, float("-inf"))
    scale2 = scale * LOG2E
    m_new = gl.maximum(m, gl.max(s, 1) * scale2)
    p = gl.exp2(s * scale2 - m_new[:, None])
    shrink = gl.exp2(m - m_new)
    l = l * shrink + gl.sum(p, 1)
    w = p * (ts * scale)
    w16 = w.to(dtype)
    mu = mu * shrink + gl.sum(w, 1)
    # See triton_forward.py: the mean of the rounded weights is what cancels in `to`.
    mu_rounded = mu_rounded * shrink + gl.sum(w16.to(gl.float32), 1)
    return (
        m_new, l, mu, mu_rounded, shrink, gl.convert_layout(p.to(dtype), p_layout), gl.convert_layout(w16, p_layout)
    )  # fmt: skip


@gluon.jit
def _consume(
    O, TO, LSE, MU, o_b, o_h, o_n, q_smem, kv_smem, q_ready, q_empty, ready, empty, turns, scale,
    tiles, H, blocks, steps, N_Q, N_KV, W: gl.constexpr, HEAD: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr, EVEN: gl.constexpr, Q_REGS: gl.constexpr, OVERLAP: gl.constexpr, PINGPONG: gl.constexpr,
):  # fmt: skip
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    q_layout: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    out_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_row: gl.constexpr = gl.SliceLayout(1, o_layout)
    dtype: gl.constexpr = O.dtype.element_ty
    count = 0
    turn = 0
    rounds = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        b, h, m0 = _place(tile, blocks, H)
        mbarrier.wait(q_ready, turn & 1)
        turn += 1  # noqa: SIM113
        q = q_smem.index(2 * W).reshape([64, D])
        tq = q_smem.index(2 * W + 1).reshape([64, D])
        if Q_REGS:
            q_op = q.load(q_layout)
            tq_op = tq.load(q_layout)
            sync_threads()
            mbarrier.arrive(q_empty, count=1)
        else:
            q_op = q
            tq_op = tq
        m = gl.full([64], float("-inf"), gl.float32, row_layout)
        l = gl.full([64], 0.0, gl.float32, row_layout)
        mu = gl.full([64], 0.0, gl.float32, row_layout)
        mu_rounded = gl.full([64], 0.0, gl.float32, row_layout)
        acc = gl.full([64, D], 0.0, gl.float32, o_layout)
        tacc = gl.full([64, D], 0.0, gl.float32, o_layout)
        if OVERLAP:
            stage = count % STAGES
            mbarrier.wait(ready.index(stage), (count // STAGES) & 1)
            s_token, ts_token = _scores(q_op, tq_op, kv_smem, stage, BN, D)
            s, ts = warpgroup_mma_wait(0, [s_token, ts_token])
            m, l, mu, mu_rounded, shrink, p16, w16 = _softmax(
                s, ts, m, l, mu, mu_rounded, scale, 0, N_KV, BN, EVEN, dtype, p_layout
            )
            for step in range(1, steps):
                # In flight together: the scores of this step, then the products with V of the step before.
                following = (count + 1) % STAGES
                mbarrier.wait(ready.index(following), ((count + 1) // STAGES) & 1)
                if PINGPONG:
                    mbarrier.wait(turns.index(W), (rounds & 1) ^ (1 - W))
                s_token, ts_token = _scores(q_op, tq_op, kv_smem, following, BN, D)
                acc_token, tacc_token = _outputs(p16, w16, kv_smem, stage, acc, tacc, BN, D)
                if PINGPONG:
                    sync_threads()
                    mbarrier.arrive(turns.index(1 - W), count=1)
                    rounds += 1
                s, ts = warpgroup_mma_wait(3, [s_token, ts_token])
                m, l, mu, mu_rounded, shrink, p_next, w_next = _softmax(
                    s, ts, m, l, mu, mu_rounded, scale, step * BN, N_KV, BN, EVEN, dtype, p_layout
                )
                acc, tacc, p16, w16 = warpgroup_mma_wait(0, [acc_token, tacc_token, p16, w16])
                p16 = p_next
                w16 = w_next
                sync_threads()
                mbarrier.arrive(empty.index(stage), count=1)
                shrink_o = gl.convert_layout(shrink, o_row)
                acc = acc * shrink_o[:, None]
                tacc = tacc * shrink_o[:, None]
                stage = following
                count += 1
            acc_token, tacc_token = _outputs(p16, w16, kv_smem, stage, acc, tacc, BN, D)
            acc, tacc = warpgroup_mma_wait(0, [acc_token, tacc_token])
            sync_threads()
            mbarrier.arrive(empty.index(stage), count=1)
            count += 1
        else:
            for step in range(steps):
                stage = count % STAGES
                mbarrier.wait(ready.index(stage), (count // STAGES) & 1)
                s_token, ts_token = _scores(q_op, tq_op, kv_smem, stage, BN, D)
                s, ts = warpgroup_mma_wait(0, [s_token, ts_token])
                m, l, mu, mu_rounded, shrink, p16, w16 = _softmax(
                    s, ts, m, l, mu, mu_rounded, scale, step * BN, N_KV, BN, EVEN, dtype, p_layout
                )
                shrink_o = gl.convert_layout(shrink, o_row)
                acc = acc * shrink_o[:, None]
                tacc = tacc * shrink_o[:, None]
                acc_token, tacc_token = _outputs(p16, w16, kv_smem, stage, acc, tacc, BN, D)
                acc, tacc = warpgroup_mma_wait(0, [acc_token, tacc_token])
                sync_threads()
                mbarrier.arrive(empty.index(stage), count=1)
                count += 1
        if not Q_REGS:
            mbarrier.arrive(q_empty, count=1)
        inverse = 1.0 / l
        inverse_o = gl.convert_layout(inverse, o_row)
        mean_o = gl.convert_layout(mu_rounded * inverse, o_row)
        o = acc * inverse_o[:, None]
        to = tacc * inverse_o[:, None] - mean_o[:, None] * o
        o16 = gl.convert_layout(o.to(dtype), out_layout)
        to16 = gl.convert_layout(to.to(dtype), out_layout)
        rows = m0 + W * 64 + gl.arange(0, 64, gl.SliceLayout(1, out_layout))
        columns = gl.arange(0, D, gl.SliceLayout(0, out_layout))
        # Strides come divided by 8, so that the compiler knows that rows are 16-byte aligned.
        base = (b.to(gl.int64) * o_b + h.to(gl.int64) * o_h) * 8
        offsets = rows[:, None] * (o_n * 8) + columns[None, :]
        inside = (rows[:, None] < N_Q) & (columns[None, :] < HEAD)
        gl.store(O + base + offsets, o16, mask=inside)
        gl.store(TO + base + offsets, to16, mask=inside)
        s_rows = m0 + W * 64 + gl.arange(0, 64, row_layout)
        statistics = (b * H + h).to(gl.int64) * N_Q + s_rows
        gl.store(LSE + statistics, (m + gl.log2(l)) * LN2, mask=s_rows < N_Q)
        gl.store(MU + statistics, mu * inverse, mask=s_rows < N_Q)


@gluon.jit(do_not_specialize=["B", "H", "N_Q", "N_KV"])
def hopper_forward_kernel(
    q_desc, k_desc, v_desc, tq_desc, tk_desc, tv_desc, O, TO, LSE, MU, o_b, o_h, o_n, scale, B, H, N_Q, N_KV,
    HEAD: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, EVEN: gl.constexpr,
    Q_REGS: gl.constexpr, OVERLAP: gl.constexpr, PINGPONG: gl.constexpr,
):  # fmt: skip
    """Persistent blocks of 128 queries; warpgroup roles: consumer (default), consumer, producer."""
    blocks = gl.cdiv(N_Q, 128)
    steps = gl.cdiv(N_KV, BN)
    tiles = B * H * blocks
    dtype: gl.constexpr = O.dtype.element_ty
    q_smem = gl.allocate_shared_memory(dtype, [4, 1, 1, 64, D], q_desc.layout)
    kv_smem = gl.allocate_shared_memory(dtype, [4 * STAGES, 1, 1, BN, D], k_desc.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_ready, count=1)
    mbarrier.init(q_empty, count=2)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    hopper.fence_async_shared()
    sync_threads()
    gl.warp_specialize(
        [
            (_consume, (O, TO, LSE, MU, o_b, o_h, o_n, q_smem, kv_smem, q_ready, q_empty, ready, empty, turns,
                        scale, tiles, H, blocks, steps, N_Q, N_KV, 0, HEAD, BN, D, STAGES, EVEN, Q_REGS, OVERLAP,
                        PINGPONG)),
            (_consume, (O, TO, LSE, MU, o_b, o_h, o_n, q_smem, kv_smem, q_ready, q_empty, ready, empty, turns,
                        scale, tiles, H, blocks, steps, N_Q, N_KV, 1, HEAD, BN, D, STAGES, EVEN, Q_REGS, OVERLAP,
                        PINGPONG)),
            (_produce, (q_desc, k_desc, v_desc, tq_desc, tk_desc, tv_desc, q_smem, kv_smem, q_ready, q_empty, ready,
                        empty, tiles, H, blocks, steps, BN, D, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
