"""Parts of the Hopper backward around its products: row statistics, and sums over key blocks in a fixed order.

dq and dtq add up over the key blocks of a head. A counter per (head, 64 queries) says whose turn it is, so that the
order of the additions, and with it every bit of the result, is always the same.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

LOG2E = gl.constexpr(1.4426950408889634)
# Triton 3.8 renamed it.
sync_threads = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier


@gluon.jit(do_not_specialize=["H", "N_Q", "PADDED", "PLANE"])
def statistics_kernel(
    O, TO, DO, DTO, LSE, MU, STATS, o_b, o_h, o_n, do_b, do_h, do_n, dto_b, dto_h, dto_n, H, N_Q, PADDED, PLANE,
    HEAD: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """STATS [4, B*H, PADDED] = logsumexp in base 2, mu, d1, d2; padding rows make every probability zero."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    row: gl.constexpr = gl.SliceLayout(1, layout)
    blocks = PADDED // 64
    bh = gl.program_id(0) // blocks
    b = (bh // H).to(gl.int64)
    h = (bh % H).to(gl.int64)
    rows = gl.program_id(0) % blocks * 64 + gl.arange(0, 64, row)
    columns = gl.arange(0, D, gl.SliceLayout(0, layout))[None, :]
    live = rows < N_Q
    inside = live[:, None] & (columns < HEAD)
    # Strides come divided by 8, so that the compiler knows that rows are 16-byte aligned.
    o_at = (b * o_b + h * o_h) * 8 + rows[:, None] * (o_n * 8) + columns
    do_at = (b * do_b + h * do_h) * 8 + rows[:, None] * (do_n * 8) + columns
    dto_at = (b * dto_b + h * dto_h) * 8 + rows[:, None] * (dto_n * 8) + columns
    o = gl.load(O + o_at, mask=inside, other=0.0).to(gl.float32)
    to = gl.load(TO + o_at, mask=inside, other=0.0).to(gl.float32)
    do = gl.load(DO + do_at, mask=inside, other=0.0).to(gl.float32)
    dto = gl.load(DTO + dto_at, mask=inside, other=0.0).to(gl.float32)
    source = bh.to(gl.int64) * N_Q + rows
    target = bh.to(gl.int64) * PADDED + rows
    gl.store(STATS + target, gl.load(LSE + source, mask=live, other=float("inf")) * LOG2E)
    gl.store(STATS + PLANE + target, gl.load(MU + source, mask=live, other=0.0))
    gl.store(STATS + 2 * PLANE + target, gl.sum(dto * o, 1))
    gl.store(STATS + 3 * PLANE + target, gl.sum(do * o, 1) + gl.sum(dto * to, 1))


@gluon.jit
def wait_turn(counter, turn):
    """Spin until the counter reaches `turn`; what was published before it is visible afterwards."""
    gl.inline_asm_elementwise(
        """{
        .reg .pred early;
        .reg .b32 value;
        POLL:
        ld.acquire.gpu.global.b32 value, [$1];
        setp.lt.s32 early, value, $2;
        @early bra POLL;
        mov.b32 $0, value;
        }""",
        "=r,l,r",
        [counter.to(gl.int64), turn],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def add_vectors(pointers, x):
    """Atomic additions of four neighbouring numbers at a time (a quarter of the instructions); no result."""
    gl.inline_asm_elementwise(
        """{
        red.relaxed.gpu.global.add.v4.f32 [$4], {$8, $9, $10, $11};
        mov.b32 $0, 0;
        mov.b32 $1, 0;
        mov.b32 $2, 0;
        mov.b32 $3, 0;
        }""",
        "=r,=r,=r,=r,l,l,l,l,r,r,r,r",
        [pointers.to(gl.int64), x],
        dtype=gl.int32,
        is_pure=False,
        pack=4,
    )


@gluon.jit
def keep_order(counters, turn, go, done, steps):
    """A warp that waits for the turn of each tile and publishes the addition, off the path of the matrix units."""
    for step in range(steps):
        wait_turn(counters + step, turn)
        mbarrier.arrive(go, count=1)
        mbarrier.wait(done, step & 1)
        gl.atomic_add(counters + step, 1, sem="release", scope="gpu")


@gluon.jit
def hand_over(
    x, OUT, out_n, step, N_Q, partials, go, done, position, last, HEAD: gl.constexpr,
):  # fmt: skip
    """Add one [64, D] tile to the running sum of its queries, in turn; the last position writes the result."""
    D: gl.constexpr = x.shape[1]
    # The order of the sums in memory is that of the registers (row = 16 warp + 8 i + g, column = 16 j + 8 e + 2 t + f):
    # a thread's address is one base and constants, and it moves 16 bytes at a time.
    flat: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [1, 4], [1, 0])
    y = x.reshape([4, 2, 8, D // 16, 2, 4, 2]).permute((3, 1, 0, 2, 5, 4, 6)).reshape([D // 8, 512])
    y = gl.convert_layout(y, flat)
    place = gl.arange(0, D // 8, gl.SliceLayout(1, flat))[:, None] * 512
    place += gl.arange(0, 512, gl.SliceLayout(0, flat))[None, :]
    partial = partials + step * 64 * D
    mbarrier.wait(go, step & 1)
    if position < last:
        if position == 0:
            gl.store(partial + place, y)
        else:
            add_vectors(partial + place, y)
    if position == last:
        if position > 0:
            y += gl.load(partial + place, cache_modifier=".cg")
        layout: gl.constexpr = x.type.layout
        out = y.to(OUT.dtype.element_ty).reshape([D // 16, 2, 4, 8, 4, 2, 2]).permute((2, 1, 3, 0, 5, 4, 6))
        out = gl.convert_layout(out.reshape([64, D]), layout)
        rows = step * 64 + gl.arange(0, 64, gl.SliceLayout(1, layout))[:, None]
        columns = gl.arange(0, D, gl.SliceLayout(0, layout))[None, :]
        gl.store(OUT + rows * out_n + columns, out, mask=(rows < N_Q) & (columns < HEAD))
    sync_threads()
    mbarrier.arrive(done, count=1)


@gluon.jit
def store_keys(OUT, x, n0, out_n, N_KV, HEAD: gl.constexpr):
    """Store a [64, D] accumulator from its own layout: shared memory is full."""
    layout: gl.constexpr = x.type.layout
    rows = n0 + gl.arange(0, 64, gl.SliceLayout(1, layout))[:, None]
    columns = gl.arange(0, x.shape[1], gl.SliceLayout(0, layout))[None, :]
    gl.store(OUT + rows * out_n + columns, x.to(OUT.dtype.element_ty), mask=(rows < N_KV) & (columns < HEAD))
