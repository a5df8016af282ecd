"""The `torch.library` operators around the kernels, and their gradient.

The operators take primals and tangents as plain tensors and have no autograd of their own; `_ModulatedNorm` is the one
place that differentiates them. It hands the residual stream through, so that the gradient that arrives there from
later layers is added inside the backward kernel instead of in a pass of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tvmatch.kernels.elementwise import define_operators, launches_triton, two_parts
from tvmatch.kernels.tangents import refuse_dual_gradients

MAX_SIZE = 8192  # a row lives in the registers of one program
FORWARD_ROWS = 4  # rows of one program, at least, one or a few at a time
BACKWARD_ROWS = 16  # so many that the sums for the modulation, one a program, are little to write
# Where there would be more programs, each takes more rows of its sample. On an H200, B = 1024, N = 64, C = 384: forward
# with tangents 253 us with these, 306 with twice as many; backward 206, and 330 with tangents, against 255 and 451.
FORWARD_PROGRAMS, BACKWARD_PROGRAMS = 4096, 1024
AGAIN_SIZE = 1024  # rows so wide have registers left to compute a sum again: not with tangents (72 bytes spilled)


class _Tile(NamedTuple):
    """How a program takes its rows. Measured on an H200 (benchmarks/fused_layers.py): a warp for each 256 numbers, so
    that two or three rows are in flight without spilling."""

    head: int
    tail: int
    rows: int
    warps: int
    stages: int


def _tile(size: int) -> _Tile:
    head, tail = two_parts(size)
    return _Tile(head, tail, max(1, 256 // head), min(16, max(1, head // 256)), 3)


def _rows_of_a_program(least: int, programs: int, batch: int, tokens: int) -> int:
    """`least`, doubled while `programs` are left: the modulation of a sample is then read, and its gradient written,
    fewer times."""
    rows = least
    while rows < tokens and batch * -(-tokens // (2 * rows)) >= programs:
        rows *= 2
    return rows


def applies(x: Tensor) -> bool:
    """Whether the fused kernels take this residual stream [B, N, C]: on a GPU, float32 or 16 bits, C up to 8192."""
    return launches_triton(x) and x.dim() == 3 and x.shape[-1] <= MAX_SIZE


def add_norm_modulate(
    primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...], eps: float, dtype: torch.dtype, again: bool = False
) -> tuple[Tensor, ...]:
    """y = x + gate update and h = rms(y) (1 + scale) + shift, with their tangents: (y, h) or (y, h, ty, th).

    Args:
        primals: (x, shift, scale), then y = x; or (x, shift, scale, gate, update). x, update: [B, N, C]; shift,
            scale, gate: [B, 1, C].
        tangents: one for each primal, or none at all.
        eps: added to the mean square.
        dtype: of h and th; y and ty have x's.
        again: another norm has kept x as its y. Without tangents, and where registers are left, x is then kept here
            too, and the backward computes y again from what it reads anyway: one tensor less in memory.
    """
    if len(primals) not in (3, 5) or len(tangents) not in (0, len(primals)):
        raise ValueError(f"expected 3 or 5 primals and as many tangents or none, got {len(primals)}, {len(tangents)}.")
    if again and len(primals) != 5:
        raise ValueError("again=True computes x + gate update again, but no gate and update were given.")
    again = again and len(tangents) == 0 and primals[0].shape[-1] >= AGAIN_SIZE
    return _ModulatedNorm.apply(eps, dtype, again, len(primals), *primals, *tangents)


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, eps: float, dtype: torch.dtype, again: bool, count: int, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        primals, tangents = list(inputs[:count]), list(inputs[count:])
        outputs = torch.ops.tvmatch.modulated_norm(primals, tangents, eps, dtype)
        if count == 3:  # nothing was added: the stream itself passes through
            outputs = (
                [primals[0], outputs[0]] if len(tangents) == 0 else [primals[0], outputs[0], tangents[0], outputs[1]]
            )
        stream = primals[0] if again else outputs[0]
        ctx.save_for_backward(stream, *primals[2:], *((outputs[2], *tangents[2:]) if len(tangents) > 0 else ()))
        ctx.eps, ctx.dtype, ctx.again, ctx.count, ctx.pair = eps, dtype, again, count, len(tangents) > 0
        ctx.set_materialize_grads(False)  # behind the last norm the stream does not go on: no zeros need be written
        return tuple(outputs)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_dual_gradients(gradients, "the modulated norm")
        saved, pair = ctx.saved_tensors, ctx.pair
        onward = any(gradient is not None for gradient in gradients[::2])
        gradients = [
            saved[0].new_zeros(saved[0].shape, dtype=ctx.dtype if number % 2 else saved[0].dtype)
            if gradient is None and (onward or number % 2)
            else gradient
            for number, gradient in enumerate(gradients)
        ]
        half = len(saved) // 2 if pair else len(saved)
        results = torch.ops.tvmatch.modulated_norm_backward(
            list(saved[:half]), list(saved[half:]), gradients, ctx.eps, ctx.again
        )
        streams, parts = results[:-1], results[-1]
        # [B, 1, C] each, in one piece; where a program takes a whole sample there is nothing left to add
        sums = (parts if parts.shape[2] == 1 else parts.sum(dim=2, keepdim=True)).unbind(dim=0)
        kinds = len(sums) // 2 if pair else len(sums)
        sides = []
        for side in range(2 if pair else 1):
            g_shift, g_scale, *g_gate = sums[side * kinds : (side + 1) * kinds]
            # streams: gx, gtx, gupdate, gtupdate, where they exist
            g_update = [streams[(2 if pair else 1) + side]] if ctx.count == 5 else []
            sides += [streams[side], g_shift, g_scale, *g_gate, *g_update]
        return None, None, None, None, *sides


def _forward(primals: list[Tensor], tangents: list[Tensor], eps: float, dtype: torch.dtype) -> list[Tensor]:
    from .triton_forward import forward_kernel

    outputs = _forward_fake(primals, tangents, eps, dtype)
    add, pair = len(primals) == 5, bool(tangents)
    x = primals[0].contiguous()
    shift, scale, gate = (_rows(p) for p in (primals[1], primals[2], primals[3] if add else primals[1]))
    update = primals[4].contiguous() if add else x
    tx, tshift, tscale, tgate, tupdate = x, shift, scale, gate, update
    if pair:
        tx = tangents[0].contiguous()
        tshift, tscale, tgate = (_rows(p) for p in (tangents[1], tangents[2], tangents[3] if add else tangents[1]))
        tupdate = tangents[4].contiguous() if add else tx
    y, h = outputs[:2] if add else (x, outputs[0])
    ty, th = (outputs[2:] if add else (tx, outputs[1])) if pair else (y, h)
    batch, tokens, size = x.shape
    tile = _tile(size)
    rows = _rows_of_a_program(FORWARD_ROWS, FORWARD_PROGRAMS, batch, tokens)
    with torch.cuda.device_of(x):
        forward_kernel[(batch, -(-tokens // rows))](
            x, tx, update, tupdate, gate, tgate, shift, tshift, scale, tscale, y, ty, h, th,
            *(row.stride(0) for row in (gate, tgate, shift, tshift, scale, tscale)),
            tokens, eps, SIZE=size, HEAD=tile.head, TAIL=tile.tail, ROWS=tile.rows,
            TILES=-(-rows // tile.rows), STAGES=tile.stages, ADD=add, PAIR=pair, num_warps=tile.warps,
        )  # fmt: skip
    return outputs


def _forward_fake(primals: list[Tensor], tangents: list[Tensor], eps: float, dtype: torch.dtype) -> list[Tensor]:
    x = primals[0]
    one = [torch.empty_like(x, memory_format=torch.contiguous_format)] if len(primals) == 5 else []
    one.append(x.new_empty(x.shape, dtype=dtype))
    return one + [torch.empty_like(part) for part in one] if tangents else one


def _backward(
    saved: list[Tensor], tangents: list[Tensor], gradients: list[Tensor | None], eps: float, again: bool
) -> list[Tensor]:
    from .triton_backward import backward_kernel

    outputs = _backward_fake(saved, tangents, gradients, eps, again)
    add, pair = len(saved) == 4, bool(tangents)
    y, scale = saved[0].contiguous(), _rows(saved[1])
    gate, update = (_rows(saved[2]), saved[3].contiguous()) if add else (scale, y)
    ty, tscale, tgate, tupdate = y, scale, gate, update
    if pair:
        ty, tscale = tangents[0].contiguous(), _rows(tangents[1])
        tgate, tupdate = (_rows(tangents[2]), tangents[3].contiguous()) if add else (tscale, ty)
    gh, gth = (g.contiguous() for g in (gradients[1], gradients[-1]))
    onward = gradients[0] is not None
    gy, gty = (g.contiguous() for g in (gradients[0], gradients[-2])) if onward else (gh, gth)
    streams, sums = outputs[:-1], outputs[-1]
    gx, gtx = streams[0], streams[1 if pair else 0]
    gupdate, gtupdate = (streams[2 if pair else 1], streams[-1]) if add else (gx, gtx)
    batch, tokens, size = y.shape
    tile = _tile(size)
    with torch.cuda.device_of(y):
        backward_kernel[(batch, sums.shape[2])](
            y, ty, update, tupdate, gate, tgate, scale, tscale, gy, gty, gh, gth, gx, gtx, gupdate, gtupdate, sums,
            *(row.stride(0) for row in (gate, tgate, scale, tscale)),
            tokens, eps, SIZE=size, HEAD=tile.head, TAIL=tile.tail, ROWS=tile.rows,
            TILES=-(-_backward_rows(batch, tokens) // tile.rows), STAGES=tile.stages,
            ADD=add, PAIR=pair, ONWARD=onward, AGAIN=again, num_warps=tile.warps,
        )  # fmt: skip
    return outputs


def _backward_fake(
    saved: list[Tensor], tangents: list[Tensor], gradients: list[Tensor | None], eps: float, again: bool
) -> list[Tensor]:
    y, sides = saved[0], 2 if tangents else 1
    streams = [torch.empty_like(y, memory_format=torch.contiguous_format) for _ in range(sides)]
    if len(saved) == 4:
        streams += [torch.empty_like(saved[3], memory_format=torch.contiguous_format) for _ in range(sides)]
    batch, tokens, size = y.shape
    chunks = -(-tokens // _backward_rows(batch, tokens))
    kinds = (3 if len(saved) == 4 else 2) * sides
    return [*streams, y.new_empty((kinds, batch, chunks, size), dtype=torch.float32)]


def _backward_rows(batch: int, tokens: int) -> int:
    return _rows_of_a_program(BACKWARD_ROWS, BACKWARD_PROGRAMS, batch, tokens)


def _rows(modulation: Tensor) -> Tensor:
    """[B, 1, C] -> [B, C] with inner stride 1, without a copy where it is a view of all modulations."""
    rows = modulation[:, 0]
    return rows if rows.stride(1) == 1 else rows.contiguous()


define_operators(
    modulated_norm=(
        "(Tensor[] primals, Tensor[] tangents, float eps, ScalarType dtype) -> Tensor[]",
        _forward,
        _forward_fake,
    ),
    modulated_norm_backward=(
        "(Tensor[] saved, Tensor[] tangents, Tensor?[] gradients, float eps, bool again) -> Tensor[]",
        _backward,
        _backward_fake,
    ),
)
