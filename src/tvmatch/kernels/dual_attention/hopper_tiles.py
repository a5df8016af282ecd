"""Tiles of 64 rows of a head, in shared memory, for the Hopper kernels.

A head is D1 columns and then, where D2 is not 0, D2 more in a tile of their own (72 = 64 + 8 padded to 16), because a
tile has power-of-two sides. Arrays of tiles come in pairs, `x_smem` and `x_smem2`, and so do descriptors.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
REST_SCALE = gl.constexpr(256.0)  # see rest.py
# Triton 3.8 renamed it.
sync_threads = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier


@gluon.jit
def round16(x, dtype: gl.constexpr):
    """float32 to 16 bits, two at a time.

    Where a result is widened again later, the compiler converts one by one, hence the assembly.
    """
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], gl.bfloat16, True, 2)
    else:
        return gl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [x], gl.float16, True, 2)


@gluon.jit
def widen(x):
    """16 bits to float32: one instruction a number for bfloat16, where the compiler takes one and a half."""
    if x.dtype == gl.bfloat16:
        both: gl.constexpr = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
        return gl.inline_asm_elementwise(both, "=r,=r,r", [x], gl.float32, True, 2)
    else:
        return x.to(gl.float32)


@gluon.jit
def pack_rest(o, to):
    """Two float32 to the two float8 of one 16-bit number: `o` in the lower half."""
    both: gl.constexpr = (
        "{ .reg .b16 a, b; cvt.rn.satfinite.e5m2x2.f32 a, $3, $1; cvt.rn.satfinite.e5m2x2.f32 b, $4, $2; "
        "mov.b32 $0, {a, b}; }"
    )
    return gl.inline_asm_elementwise(both, "=r,r,r,r,r", [o, to], gl.int16, True, 2)


@gluon.jit
def unpack_rest(rest):
    """The two float32 of `pack_rest`."""
    both: gl.constexpr = (
        "{ .reg .b16 a, b, x, y; .reg .b32 u, v; mov.b32 {a, b}, $4; cvt.rn.f16x2.e5m2x2 u, a; "
        "cvt.rn.f16x2.e5m2x2 v, b; mov.b32 {x, y}, u; cvt.f32.f16 $0, x; cvt.f32.f16 $2, y; "
        "mov.b32 {x, y}, v; cvt.f32.f16 $1, x; cvt.f32.f16 $3, y; }"
    )
    return gl.inline_asm_elementwise(both, "=r,=r,=r,=r,r", [rest], (gl.float32, gl.float32), True, 2)


@gluon.jit
def load_parts(desc, desc2, b, h, row, bar, smem, smem2, tile, D1: gl.constexpr, D2: gl.constexpr):
    """Start the copies of one tile; rows and columns beyond the tensor become zeros."""
    tma.async_copy_global_to_shared(desc, [b, h, row, 0], bar, smem.index(tile))
    if D2 > 0:
        tma.async_copy_global_to_shared(desc2, [b, h, row, D1], bar, smem2.index(tile))


@gluon.jit
def part1(smem, tile, D1: gl.constexpr):
    """The first D1 columns of a tile, [64, D1]."""
    return smem.index(tile).reshape([64, D1])


@gluon.jit
def part2(smem2, tile, D2: gl.constexpr):
    """The other columns of a tile, [64, D2]."""
    return smem2.index(tile).reshape([64, D2])


@gluon.jit
def product(x1, x2, i, y, y2, j, acc, FIRST: gl.constexpr, D1: gl.constexpr, D2: gl.constexpr):
    """Start acc += x y_j^T (acc = x y_j^T with FIRST) over both parts of the head.

    The first part of x comes as a tile or in registers, the second is tile i.
    """
    acc = warpgroup_mma(x1, part1(y, j, D1).permute((1, 0)), acc, use_acc=not FIRST, is_async=True)
    if D2 > 0:
        acc = warpgroup_mma(part2(x2, i, D2), part2(y2, j, D2).permute((1, 0)), acc, is_async=True)
    return acc


@gluon.jit
def put_parts(x, x2, smem, smem2, tile, D1: gl.constexpr, D2: gl.constexpr):
    """Round a [64, D1] and a [64, D2] accumulator to 16 bits, into a tile that is no longer needed."""
    part1(smem, tile, D1).store(x.to(smem.dtype))
    if D2 > 0:
        part2(smem2, tile, D2).store(x2.to(smem.dtype))


@gluon.jit
def store_parts(desc, desc2, b, h, row, smem, smem2, tile, D1: gl.constexpr, D2: gl.constexpr):
    """Start the copies of one tile to memory; what lies beyond the tensor is dropped."""
    tma.async_copy_shared_to_global(desc, [b, h, row, 0], smem.index(tile))
    if D2 > 0:
        tma.async_copy_shared_to_global(desc2, [b, h, row, D1], smem2.index(tile))


@gluon.jit
def release(empty, pred):
    """Give a buffer back to the warp that loads into it, once the copies of `store_parts` have read it."""
    tma.store_wait(0)
    sync_threads()
    mbarrier.arrive(empty, count=1, pred=pred)
