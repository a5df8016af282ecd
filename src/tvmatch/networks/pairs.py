"""Elementwise layers on pairs (primal, tangent), with one joint backward that keeps only the inputs.

PyTorch's forward-mode rules give the same numbers, but their backward keeps every intermediate of the tangent and, for
GELU, makes a dozen temporaries of the widest tensors. These two functions are what keeps a JVP step at about twice the
memory of a plain one (benchmarks/jvp_memory.py). Their backward is made of differentiable operations, so that
derivatives of any order come out right, also of a backward inside of the dual level: there x gets its tangent back.
Under torch.compile the plain formulas are used, for the compiler fuses them and decides itself what to keep.
"""

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx
from torch.nn import functional

SLOPE, CUBIC = math.sqrt(2 / math.pi), 0.044715  # GELU's tanh approximation: x/2 (1 + tanh(SLOPE (x + CUBIC x^3)))


def gelu_curvature(x: Tensor) -> Tensor:
    """The second derivative of the tanh-approximated GELU.

    With u = SLOPE (x + CUBIC x^3) and T = tanh u: (1 - T^2) (u' + x u''/2 - x T u'^2).
    """
    square = x * x
    tanh = torch.tanh(SLOPE * x * (1 + CUBIC * square))
    first = SLOPE * (1 + 3 * CUBIC * square)
    bend = first + (3 * SLOPE * CUBIC) * square - x * tanh * first.square()
    return (1 - tanh.square()) * bend


class _Level:
    """The dual level that is open when it is made (or none), to be recognised later: levels have no names."""

    def __init__(self) -> None:
        is_open = forward_ad._current_level >= 0
        self._mark = forward_ad.make_dual(torch.zeros(()), torch.zeros(())) if is_open else None

    def dual(self, x: Tensor, tx: Tensor) -> Tensor:
        """x with its tangent, for as long as the level is open; then x."""
        # the end of a level takes the tangents of all its tensors away
        is_open = self._mark is not None and forward_ad.unpack_dual(self._mark).tangent is not None
        return forward_ad.make_dual(x, tx) if is_open else x


class _GeluPair(torch.autograd.Function):
    """(x, tx) -> (g(x), g'(x) tx)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, tx: Tensor, level: _Level) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, tx)
        ctx.level = level
        return functional.gelu(x, approximate="tanh"), _gelu_slope(tx, x)

    @staticmethod
    def backward(ctx: FunctionCtx, gy: Tensor, gty: Tensor) -> tuple[Tensor, Tensor, None]:
        x, tx = ctx.saved_tensors
        x = ctx.level.dual(x, tx)
        bend = gelu_curvature(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)
        return (_gelu_slope(gy, x) + gty * tx * bend).to(x.dtype), _gelu_slope(gty, x), None


def _gelu_slope(factor: Tensor, x: Tensor) -> Tensor:
    """g'(x) times `factor`: the kernel of GELU's own backward."""
    return torch.ops.aten.gelu_backward(factor, x, approximate="tanh")


class _RmsNormPair(torch.autograd.Function):
    """(x, tx) -> (y, ty), y = r x, ty = r (tx - m y), r = 1 / sqrt(mean(x^2) + eps), m = mean(y tx).

    Backward, with q = mean(gty y) and p = mean(gty tx):
        gtx = r (gty - q y)
        g   = gy - r m gty - r q tx
        gx  = r (g - mean(g y) y) - r^2 (p - m q) y
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, tx: Tensor, level: _Level, eps: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, tx)
        ctx.level, ctx.eps = level, eps
        r, y, m = _rms_parts(x, tx, eps)
        return y, r * torch.addcmul(tx, y, m, value=-1)

    @staticmethod
    def backward(ctx: FunctionCtx, gy: Tensor, gty: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, tx = ctx.saved_tensors
        x = ctx.level.dual(x, tx)
        r, y, m = _rms_parts(x, tx, ctx.eps)  # computed again: a saved intermediate would be a constant to autograd
        q = (gty * y).mean(dim=-1, keepdim=True)
        p = (gty * tx).mean(dim=-1, keepdim=True)
        g = gy - (r * m) * gty - (r * q) * tx
        along = (g * y).mean(dim=-1, keepdim=True) + r * (p - m * q)
        return r * torch.addcmul(g, y, along, value=-1), r * torch.addcmul(gty, y, q, value=-1), None, None


def _rms_parts(x: Tensor, tx: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """r, y = r x and m = mean(y tx)."""
    r = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    y = x * r
    return r, y, (y * tx).mean(dim=-1, keepdim=True)


def gelu_pair(x: Tensor, tx: Tensor) -> tuple[Tensor, Tensor]:
    """GELU of x and its derivative along tx; equal shapes."""
    if torch.compiler.is_compiling():
        return functional.gelu(x, approximate="tanh"), _gelu_slope(tx, x)
    return _GeluPair.apply(x, tx, _Level())


def rms_norm_pair(x: Tensor, tx: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMS normalisation of x over the last dimension and its derivative along tx; equal shapes."""
    if torch.compiler.is_compiling():
        r, y, m = _rms_parts(x, tx, eps)
        return y, r * torch.addcmul(tx, y, m, value=-1)
    return _RmsNormPair.apply(x, tx, _Level(), eps)
