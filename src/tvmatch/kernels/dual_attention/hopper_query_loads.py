"""What the queries kernel for Hopper GPUs reads: which tiles a block does, their copies, and the row sums d1 and d2."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from .hopper_tiles import REST_SCALE, load_parts, unpack_rest


@gluon.jit
def whole_tiles(tiles):
    """How many tiles are done whole: the last ones in halves of 64 queries where there are blocks for all halves.

    Then the first warpgroup has the matrix units to itself and the other one rests.
    """
    left = tiles % gl.num_programs(0)
    return gl.where(2 * left <= gl.num_programs(0), tiles - left, tiles)


@gluon.jit
def place(item, whole, blocks):
    """(batch and head, first query) of an item: tiles, then halves."""
    half = gl.maximum(item - whole, 0)
    tile = item - half + half // 2
    return tile // blocks, tile % blocks * 128 + half % 2 * 64


@gluon.jit
def _fetch(pointers):
    """Bring what one warp points at into the L2 cache."""
    gl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], gl.int32, False, 1)


@gluon.jit
def _fetch_saved(O, TO, LSE, MU, REST, o_b, o_h, o_n, b, h, bh, m0, N_Q, HEAD: gl.constexpr, HAS_REST: gl.constexpr):
    """Prefetch what `load_saved` will read of 128 queries, a sector of 32 bytes each time."""
    lanes: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    start = (b.to(gl.int64) * o_b + h.to(gl.int64) * o_h) * 8
    first = bh.to(gl.int64) * N_Q
    for i in gl.static_range(4):
        row = gl.minimum(m0 + 32 * i + gl.arange(0, 32, lanes), N_Q - 1)
        for j in gl.static_range((2 * HEAD + 31) // 32):
            _fetch(O + start + row * (o_n * 8) + 16 * j)
            _fetch(TO + start + row * (o_n * 8) + 16 * j)
            if HAS_REST:
                _fetch(REST + (first + row) * HEAD + 16 * j)
    row = gl.minimum(m0 + 4 * gl.arange(0, 32, lanes), N_Q - 1)
    _fetch(LSE + first + row)
    _fetch(MU + first + row)


@gluon.jit
def produce(
    q_desc, q2_desc, k_desc, k2_desc, v_desc, v2_desc, tq_desc, tq2_desc, tk_desc, tk2_desc, tv_desc, tv2_desc,
    do_desc, do2_desc, dto_desc, dto2_desc, O, TO, LSE, MU, REST, o_b, o_h, o_n, q_smem, q_smem2, kv_smem, kv_smem2,
    q_ready, q_empty, ready, empty, tiles, H, blocks, steps, N_Q, HEAD: gl.constexpr, D1: gl.constexpr,
    D2: gl.constexpr, SLOTS: gl.constexpr, BUFFERS: gl.constexpr, HAS_REST: gl.constexpr,
):  # fmt: skip
    count = 0
    turn = 0
    whole = whole_tiles(tiles)
    for item in range(gl.program_id(0), 2 * tiles - whole, gl.num_programs(0)):
        bh, m0 = place(item, whole, blocks)
        b = bh // H
        h = bh % H
        buffer = turn % BUFFERS
        bar = q_ready.index(buffer)
        mbarrier.wait(q_empty.index(buffer), ((turn // BUFFERS) & 1) ^ 1)
        mbarrier.expect(bar, 8 * 64 * (D1 + D2) * 2)
        for i in gl.static_range(2):
            at = 8 * buffer + 4 * i
            row = m0 + 64 * i
            load_parts(q_desc, q2_desc, b, h, row, bar, q_smem, q_smem2, at, D1, D2)
            load_parts(tq_desc, tq2_desc, b, h, row, bar, q_smem, q_smem2, at + 1, D1, D2)
            load_parts(dto_desc, dto2_desc, b, h, row, bar, q_smem, q_smem2, at + 2, D1, D2)
            load_parts(do_desc, do2_desc, b, h, row, bar, q_smem, q_smem2, at + 3, D1, D2)
        if BUFFERS == 2:  # with one, the consumers have read it by now
            _fetch_saved(O, TO, LSE, MU, REST, o_b, o_h, o_n, b, h, bh, m0, N_Q, HEAD, HAS_REST)
        turn += 1  # noqa: SIM113
        for step in range(steps):
            slot = count % SLOTS
            bar = ready.index(slot)
            mbarrier.wait(empty.index(slot), ((count // SLOTS) & 1) ^ 1)
            mbarrier.expect(bar, 2 * 64 * (D1 + D2) * 2)
            load_parts(k_desc, k2_desc, b, h, step * 64, bar, kv_smem, kv_smem2, 2 * slot, D1, D2)
            load_parts(tk_desc, tk2_desc, b, h, step * 64, bar, kv_smem, kv_smem2, 2 * slot + 1, D1, D2)
            count += 1
            slot = count % SLOTS
            bar = ready.index(slot)
            mbarrier.wait(empty.index(slot), ((count // SLOTS) & 1) ^ 1)
            mbarrier.expect(bar, 2 * 64 * (D1 + D2) * 2)
            load_parts(v_desc, v2_desc, b, h, step * 64, bar, kv_smem, kv_smem2, 2 * slot, D1, D2)
            load_parts(tv_desc, tv2_desc, b, h, step * 64, bar, kv_smem, kv_smem2, 2 * slot + 1, D1, D2)
            count += 1


@gluon.jit
def _load_part(
    O, TO, REST, o_n, m0, N_Q, live, FIRST: gl.constexpr, HEAD: gl.constexpr, WIDTH: gl.constexpr,
    HAS_REST: gl.constexpr,
):  # fmt: skip
    """o, to and their rests, columns FIRST.. of 64 rows; a warp has the 16 rows whose sums it needs."""
    layout: gl.constexpr = gl.BlockedLayout([WIDTH // 16, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    row = m0 + gl.arange(0, 64, gl.SliceLayout(1, layout))[:, None]
    columns = FIRST + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))[None, :]
    # Strides come divided by 8, so that the compiler knows that rows are 16-byte aligned.
    at = row * (o_n * 8) + columns
    inside = (row < N_Q) & (columns < HEAD) & live
    o = gl.load(O + at, mask=inside, other=0.0)
    to = gl.load(TO + at, mask=inside, other=0.0)
    rest = o
    if HAS_REST:
        rest = gl.load(REST + row * HEAD + columns, mask=inside, other=0)
    return o, to, rest


@gluon.jit
def load_saved(
    O, TO, LSE, MU, REST, o_b, o_h, o_n, item, items, whole, blocks, H, N_Q, W: gl.constexpr, HEAD: gl.constexpr,
    D1: gl.constexpr, D2: gl.constexpr, HAS_REST: gl.constexpr,
):  # fmt: skip
    """What the forward saved for the 64 queries of a warpgroup; nothing beyond the last item."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    bh, m0 = place(item, whole, blocks)
    m0 += W * 64
    start = ((bh // H).to(gl.int64) * o_b + (bh % H).to(gl.int64) * o_h) * 8
    rest = REST
    if HAS_REST:
        rest += bh.to(gl.int64) * N_Q * HEAD
    rows = m0 + gl.arange(0, 64, gl.SliceLayout(1, layout))
    source = bh.to(gl.int64) * N_Q + rows
    live = (rows < N_Q) & (item < items)
    lse = gl.load(LSE + source, mask=live, other=float("inf"))
    mu = gl.load(MU + source, mask=live, other=0.0)
    first = _load_part(O + start, TO + start, rest, o_n, m0, N_Q, item < items, 0, HEAD, D1, HAS_REST)
    second = first
    if D2 > 0:
        second = _load_part(O + start, TO + start, rest, o_n, m0, N_Q, item < items, D1, HEAD, D2, HAS_REST)
    return lse, mu, first, second


@gluon.jit
def row_sums(saved, smem, tile, HAS_REST: gl.constexpr):
    """rowsum(dto*o) and rowsum(do*o) + rowsum(dto*to) over one part of the head."""
    o, to, rest = saved
    layout: gl.constexpr = o.type.layout
    shape: gl.constexpr = o.shape
    o = o.to(gl.float32)
    to = to.to(gl.float32)
    if HAS_REST:
        rest_o, rest_to = unpack_rest(rest)
        o += rest_o * (1 / REST_SCALE)
        to += rest_to * (1 / REST_SCALE)
    dto = smem.index(tile + 2).reshape(shape).load(layout).to(gl.float32)
    do = smem.index(tile + 3).reshape(shape).load(layout).to(gl.float32)
    target: gl.constexpr = gl.SliceLayout(1, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
    d1 = gl.convert_layout(gl.sum(dto * o, 1), target)
    return d1, gl.convert_layout(gl.sum(do * o + dto * to, 1), target)
