"""The forward for Hopper GPUs, in Gluon: one producer warp feeds two consumer warpgroups by bulk tensor copies.

Each consumer owns 64 queries. While one runs its softmax on the ordinary units, the other keeps the matrix units busy;
no barrier ties the two together, only the ring of key/value stages does. With OVERLAP a consumer also starts the scores
of the next keys before the products with the values of these. Blocks are persistent, so that the next tile's
loads run under the epilogue of this one. Warp specialisation for attention and the idea of two consumers that alternate
come from FlashAttention-3 (Shah et al., 2024); the code is our own.

Takes 16-bit inputs, all three tangents, no causal mask and no key lengths.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma_wait

from .hopper_softmax import finish, lane_sums, outputs, scores, shrink_sums, softmax
from .hopper_tiles import LN2, REST_SCALE, load_parts, pack_rest, part1, part2, round16, sync_threads, widen


@gluon.jit
def _place(tile, blocks, H):
    """(batch, head, first query) of a tile number."""
    bh = tile // blocks
    return bh // H, bh % H, (tile % blocks) * 128


@gluon.jit
def _produce(
    q_desc, q2_desc, k_desc, k2_desc, v_desc, v2_desc, tq_desc, tq2_desc, tk_desc, tk2_desc, tv_desc, tv2_desc, q_smem,
    q_smem2, kv_smem, kv_smem2, q_ready, q_empty, ready, empty, tiles, H, blocks, steps,
    D1: gl.constexpr, D2: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    count = 0
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        b, h, m0 = _place(tile, blocks, H)
        mbarrier.wait(q_empty, (turn & 1) ^ 1)
        mbarrier.expect(q_ready, 4 * 64 * (D1 + D2) * 2)
        for i in gl.static_range(2):
            load_parts(q_desc, q2_desc, b, h, m0 + 64 * i, q_ready, q_smem, q_smem2, 2 * i, D1, D2)
            load_parts(tq_desc, tq2_desc, b, h, m0 + 64 * i, q_ready, q_smem, q_smem2, 2 * i + 1, D1, D2)
        turn += 1  # noqa: SIM113
        for step in range(steps):
            stage = count % STAGES
            mbarrier.wait(empty.index(stage), ((count // STAGES) & 1) ^ 1)
            bar = ready.index(stage)
            mbarrier.expect(bar, 4 * 64 * (D1 + D2) * 2)
            load_parts(k_desc, k2_desc, b, h, step * 64, bar, kv_smem, kv_smem2, 4 * stage, D1, D2)
            load_parts(tk_desc, tk2_desc, b, h, step * 64, bar, kv_smem, kv_smem2, 4 * stage + 1, D1, D2)
            load_parts(v_desc, v2_desc, b, h, step * 64, bar, kv_smem, kv_smem2, 4 * stage + 2, D1, D2)
            load_parts(tv_desc, tv2_desc, b, h, step * 64, bar, kv_smem, kv_smem2, 4 * stage + 3, D1, D2)
            count += 1


@gluon.jit
def _store_rows(OUT, x, row0, out_n, N, FIRST: gl.constexpr, HEAD: gl.constexpr):
    """Store 64 rows of 16-bit numbers from column FIRST on, 16 bytes a thread; `out_n` comes divided by 8."""
    D: gl.constexpr = x.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    rows = row0 + gl.arange(0, 64, gl.SliceLayout(1, layout))[:, None]
    columns = FIRST + gl.arange(0, D, gl.SliceLayout(0, layout))[None, :]
    gl.store(OUT + rows * (out_n * 8) + columns, gl.convert_layout(x, layout), mask=(rows < N) & (columns < HEAD))


@gluon.jit
def _store_outputs(
    OUT, TANGENT, REST, o, to, row0, o_n, N, FIRST: gl.constexpr, HEAD: gl.constexpr, HAS_REST: gl.constexpr,
):  # fmt: skip
    """Round and store 64 rows of o and to; the two 8-bit rests of a column are side by side."""
    dtype: gl.constexpr = OUT.dtype.element_ty
    o16 = round16(o, dtype)
    to16 = round16(to, dtype)
    if HAS_REST:
        rest = pack_rest((o - widen(o16)) * REST_SCALE, (to - widen(to16)) * REST_SCALE)
        _store_rows(REST, rest, row0, HEAD // 8, N, FIRST, HEAD)
    _store_rows(OUT, o16, row0, o_n, N, FIRST, HEAD)
    _store_rows(TANGENT, to16, row0, o_n, N, FIRST, HEAD)


@gluon.jit
def _consume(
    O, TO, LSE, MU, REST, o_b, o_h, o_n, q_smem, q_smem2, kv_smem, kv_smem2, q_ready, q_empty, ready, empty, scale,
    tiles, H, blocks, steps, N_Q, N_KV, W: gl.constexpr, HEAD: gl.constexpr, D1: gl.constexpr, D2: gl.constexpr,
    STAGES: gl.constexpr, EVEN: gl.constexpr, OVERLAP: gl.constexpr, HELD: gl.constexpr,
    HAS_REST: gl.constexpr,
):  # fmt: skip
    W2: gl.constexpr = D2 if D2 > 0 else 16
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D1, 16])
    o_layout2: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, W2, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    q_layout: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_row: gl.constexpr = gl.SliceLayout(1, o_layout)
    dtype: gl.constexpr = O.dtype.element_ty
    SPLIT: gl.constexpr = 2 if D2 > 0 else 1
    count = 0
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        b, h, m0 = _place(tile, blocks, H)
        mbarrier.wait(q_ready, turn & 1)
        turn += 1  # noqa: SIM113
        q = part1(q_smem, 2 * W, D1)
        tq = part1(q_smem, 2 * W + 1, D1)
        q2 = q
        tq2 = tq
        if D2 > 0:
            q2 = part2(q_smem2, 2 * W, D2)
            tq2 = part2(q_smem2, 2 * W + 1, D2)
        if OVERLAP or HELD:
            q = q.load(q_layout)
            tq = tq.load(q_layout)
            if D2 > 0:
                q2 = q2.load(q_layout)
                tq2 = tq2.load(q_layout)
            sync_threads()
            mbarrier.arrive(q_empty, count=1)
        m = gl.full([64], float("-inf"), gl.float32, row_layout)
        l = lane_sums(gl.full([64, 64], 0.0, gl.float32, s_layout))
        mu = l
        mu_rounded = l
        acc = gl.full([64, D1], 0.0, gl.float32, o_layout)
        tacc = gl.full([64, D1], 0.0, gl.float32, o_layout)
        acc2 = gl.full([64, W2], 0.0, gl.float32, o_layout2)
        tacc2 = gl.full([64, W2], 0.0, gl.float32, o_layout2)
        if OVERLAP:
            stage = count % STAGES
            mbarrier.wait(ready.index(stage), (count // STAGES) & 1)
            s, ts = scores(q, tq, q2, tq2, kv_smem, kv_smem2, stage, D1, D2)
            s, ts = warpgroup_mma_wait(0, [s, ts])
            m, l, mu, mu_rounded, shrink, p16, w16 = softmax(
                s, ts, m, l, mu, mu_rounded, scale, 0, N_KV, EVEN, dtype, p_layout
            )
            for step in range(1, steps):
                # In flight together: the scores of this step, then the products with V of the step before.
                following = (count + 1) % STAGES
                mbarrier.wait(ready.index(following), ((count + 1) // STAGES) & 1)
                s, ts = scores(q, tq, q2, tq2, kv_smem, kv_smem2, following, D1, D2)
                acc, tacc, acc2, tacc2 = outputs(p16, w16, kv_smem, kv_smem2, stage, acc, tacc, acc2, tacc2, D1, D2)
                s, ts = warpgroup_mma_wait(3 * SPLIT, [s, ts])
                m, l, mu, mu_rounded, shrink, p_next, w_next = softmax(
                    s, ts, m, l, mu, mu_rounded, scale, step * 64, N_KV, EVEN, dtype, p_layout
                )
                if D2 > 0:
                    acc, tacc, acc2, tacc2, p16, w16 = warpgroup_mma_wait(0, [acc, tacc, acc2, tacc2, p16, w16])
                else:
                    acc, tacc, p16, w16 = warpgroup_mma_wait(0, [acc, tacc, p16, w16])
                p16 = p_next
                w16 = w_next
                sync_threads()
                mbarrier.arrive(empty.index(stage), count=1)
                acc, tacc, acc2, tacc2 = shrink_sums(acc, tacc, acc2, tacc2, shrink, D2)
                stage = following
                count += 1
            acc, tacc, acc2, tacc2 = outputs(p16, w16, kv_smem, kv_smem2, stage, acc, tacc, acc2, tacc2, D1, D2)
            acc, tacc, acc2, tacc2 = finish(acc, tacc, acc2, tacc2, D2)
            sync_threads()
            mbarrier.arrive(empty.index(stage), count=1)
            count += 1
        else:
            for step in range(steps):
                stage = count % STAGES
                mbarrier.wait(ready.index(stage), (count // STAGES) & 1)
                s, ts = scores(q, tq, q2, tq2, kv_smem, kv_smem2, stage, D1, D2)
                s, ts = warpgroup_mma_wait(0, [s, ts])
                m, l, mu, mu_rounded, shrink, p16, w16 = softmax(
                    s, ts, m, l, mu, mu_rounded, scale, step * 64, N_KV, EVEN, dtype, p_layout
                )
                acc, tacc, acc2, tacc2 = shrink_sums(acc, tacc, acc2, tacc2, shrink, D2)
                acc, tacc, acc2, tacc2 = outputs(p16, w16, kv_smem, kv_smem2, stage, acc, tacc, acc2, tacc2, D1, D2)
                acc, tacc, acc2, tacc2 = finish(acc, tacc, acc2, tacc2, D2)
                sync_threads()
                mbarrier.arrive(empty.index(stage), count=1)
                count += 1
        if not (OVERLAP or HELD):
            mbarrier.arrive(q_empty, count=1)
        l = gl.convert_layout(gl.sum(l, 1), row_layout)
        mu = gl.convert_layout(gl.sum(mu, 1), row_layout)
        mu_rounded = gl.convert_layout(gl.sum(mu_rounded, 1), row_layout)
        inverse = 1.0 / l
        inverse_o = gl.convert_layout(inverse, o_row)
        mean_o = gl.convert_layout(mu_rounded * inverse, o_row)
        o = acc * inverse_o[:, None]
        # Strides come divided by 8, so that the compiler knows that rows are 16-byte aligned.
        base = (b.to(gl.int64) * o_b + h.to(gl.int64) * o_h) * 8
        row0 = m0 + W * 64
        to = tacc * inverse_o[:, None] - mean_o[:, None] * o
        rest = REST
        if HAS_REST:
            rest += (b * H + h).to(gl.int64) * N_Q * HEAD
        _store_outputs(O + base, TO + base, rest, o, to, row0, o_n, N_Q, 0, HEAD, HAS_REST)
        if D2 > 0:
            inverse_2 = gl.convert_layout(inverse, gl.SliceLayout(1, o_layout2))
            mean_2 = gl.convert_layout(mu_rounded * inverse, gl.SliceLayout(1, o_layout2))
            o2 = acc2 * inverse_2[:, None]
            to2 = tacc2 * inverse_2[:, None] - mean_2[:, None] * o2
            _store_outputs(O + base, TO + base, rest, o2, to2, row0, o_n, N_Q, D1, HEAD, HAS_REST)
        s_rows = m0 + W * 64 + gl.arange(0, 64, row_layout)
        statistics = (b * H + h).to(gl.int64) * N_Q + s_rows
        gl.store(LSE + statistics, (m + gl.log2(l)) * LN2, mask=s_rows < N_Q)
        gl.store(MU + statistics, mu * inverse, mask=s_rows < N_Q)


@gluon.jit(do_not_specialize=["B", "H", "N_Q", "N_KV"])
def hopper_forward_kernel(
    q_desc, q2_desc, k_desc, k2_desc, v_desc, v2_desc, tq_desc, tq2_desc, tk_desc, tk2_desc, tv_desc, tv2_desc,
    O, TO, LSE, MU, REST, o_b, o_h, o_n, scale, B, H, N_Q, N_KV,
    HEAD: gl.constexpr, D1: gl.constexpr, D2: gl.constexpr, STAGES: gl.constexpr,
    EVEN: gl.constexpr, OVERLAP: gl.constexpr, HELD: gl.constexpr,
    HAS_REST: gl.constexpr,
):  # fmt: skip
    """Persistent blocks of 128 queries; warpgroup roles: consumer (default), consumer, producer."""
    blocks = gl.cdiv(N_Q, 128)
    steps = gl.cdiv(N_KV, 64)
    tiles = B * H * blocks
    dtype: gl.constexpr = O.dtype.element_ty
    q_smem = gl.allocate_shared_memory(dtype, [4, 1, 1, 64, D1], q_desc.layout)
    kv_smem = gl.allocate_shared_memory(dtype, [4 * STAGES, 1, 1, 64, D1], k_desc.layout)
    q_smem2 = q_smem
    kv_smem2 = kv_smem
    if D2 > 0:
        q_smem2 = gl.allocate_shared_memory(dtype, [4, 1, 1, 64, D2], q2_desc.layout)
        kv_smem2 = gl.allocate_shared_memory(dtype, [4 * STAGES, 1, 1, 64, D2], k2_desc.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_ready, count=1)
    mbarrier.init(q_empty, count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    hopper.fence_async_shared()
    sync_threads()
    gl.warp_specialize(
        [
            (_consume, (O, TO, LSE, MU, REST, o_b, o_h, o_n, q_smem, q_smem2, kv_smem, kv_smem2, q_ready, q_empty,
                        ready, empty, scale, tiles, H, blocks, steps, N_Q, N_KV, 0, HEAD, D1, D2, STAGES, EVEN,
                        OVERLAP, HELD, HAS_REST)),
            (_consume, (O, TO, LSE, MU, REST, o_b, o_h, o_n, q_smem, q_smem2, kv_smem, kv_smem2, q_ready, q_empty,
                        ready, empty, scale, tiles, H, blocks, steps, N_Q, N_KV, 1, HEAD, D1, D2, STAGES, EVEN,
                        OVERLAP, HELD, HAS_REST)),
            (_produce, (q_desc, q2_desc, k_desc, k2_desc, v_desc, v2_desc, tq_desc, tq2_desc, tk_desc, tk2_desc,
                        tv_desc, tv2_desc, q_smem, q_smem2, kv_smem, kv_smem2, q_ready, q_empty, ready, empty, tiles,
                        H, blocks, steps, D1, D2, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
