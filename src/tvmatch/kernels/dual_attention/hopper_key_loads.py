"""The loads of the keys kernel: a warp for the keys of a block, a warp for the queries that it walks."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .hopper_tiles import load_parts


@gluon.jit
def produce_keys(
    k_desc, k2_desc, tk_desc, tk2_desc, v_desc, v2_desc, tv_desc, tv2_desc, kv_smem, kv_smem2, kv_ready, kv_empty,
    units, H, positions, D1: gl.constexpr, D2: gl.constexpr, KEY_BUFFERS: gl.constexpr,
):  # fmt: skip
    turn = 0
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        bh = unit // positions
        b = bh // H
        h = bh % H
        n0 = unit % positions * 64
        buffer = turn % KEY_BUFFERS
        at = 4 * buffer
        bar = kv_ready.index(buffer)
        mbarrier.wait(kv_empty.index(buffer), ((turn // KEY_BUFFERS) & 1) ^ 1)
        mbarrier.expect(bar, 4 * 64 * (D1 + D2) * 2)
        load_parts(k_desc, k2_desc, b, h, n0, bar, kv_smem, kv_smem2, at, D1, D2)
        load_parts(tk_desc, tk2_desc, b, h, n0, bar, kv_smem, kv_smem2, at + 1, D1, D2)
        load_parts(v_desc, v2_desc, b, h, n0, bar, kv_smem, kv_smem2, at + 2, D1, D2)
        load_parts(tv_desc, tv2_desc, b, h, n0, bar, kv_smem, kv_smem2, at + 3, D1, D2)
        turn += 1  # noqa: SIM113


@gluon.jit
def produce_queries(
    q_desc, q2_desc, tq_desc, tq2_desc, do_desc, do2_desc, dto_desc, dto2_desc, stats_desc, q_smem, q_smem2,
    stats_smem, ready, empty, units, H, positions, steps, PADDED, PLANE, D1: gl.constexpr, D2: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    count = 0
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        bh = unit // positions
        b = bh // H
        h = bh % H
        for step in range(steps):
            stage = count % STAGES
            mbarrier.wait(empty.index(stage), ((count // STAGES) & 1) ^ 1)
            bar = ready.index(stage)
            m0 = step * 64
            mbarrier.expect(bar, 4 * 64 * (D1 + D2) * 2 + 4 * 64 * 4)
            load_parts(q_desc, q2_desc, b, h, m0, bar, q_smem, q_smem2, 4 * stage, D1, D2)
            load_parts(tq_desc, tq2_desc, b, h, m0, bar, q_smem, q_smem2, 4 * stage + 1, D1, D2)
            load_parts(dto_desc, dto2_desc, b, h, m0, bar, q_smem, q_smem2, 4 * stage + 2, D1, D2)
            load_parts(do_desc, do2_desc, b, h, m0, bar, q_smem, q_smem2, 4 * stage + 3, D1, D2)
            for i in gl.static_range(4):
                tma.async_copy_global_to_shared(
                    stats_desc, [i * PLANE + bh * PADDED + m0], bar, stats_smem.index(4 * stage + i)
                )
            count += 1
