"""What rounding `o` and `to` to 16 bits drops, kept in 8 bits more for the row sums of the backward.

``d1 = rowsum(dto * o)`` and ``d2`` are subtracted from numbers that they nearly cancel where one key dominates, so the
gradients of q and k there are as exact as `o` and `to` are known. Two mantissa bits of the dropped part are enough to
put that error below the others (docs/kernel.md, Errors), and cost a sixteenth of the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The dropped part is at most 2^-9 of its number (bfloat16; 2^-12 in float16). With this factor it fits the range of
# e5m2 wherever the number itself does.
SCALE = 256.0
_LARGEST = torch.finfo(torch.float8_e5m2).max


def empty_rest(o: Tensor, keep: bool) -> Tensor:
    """[B, H, N, D, 2] bytes for the rests of o and to; D is 0 where nothing is kept or nothing was rounded."""
    width = o.shape[3] if keep and o.dtype in (torch.bfloat16, torch.float16) else 0
    return torch.empty((*o.shape[:3], width, 2), device=o.device, dtype=torch.uint8)


def as_float8(rest: Tensor) -> Tensor | None:
    """The bytes as the numbers that they are, or None where nothing is kept."""
    return rest.view(torch.float8_e5m2) if rest.shape[3] else None


def as_pairs(rest: Tensor) -> Tensor | None:
    """The two bytes of a column as one 16-bit number, or None where nothing is kept."""
    return rest.view(torch.int16) if rest.shape[3] else None


def fill_rest(rest: Tensor, exact: tuple[Tensor, Tensor], rounded: tuple[Tensor, Tensor]) -> None:
    """Write what o and to lost on the way from `exact` to `rounded`, both [B, H, N, D]."""
    if rest.shape[3]:
        for i, (x, y) in enumerate(zip(exact, rounded, strict=True)):
            dropped = (x.view(y.shape) - y.to(x.dtype)).mul_(SCALE).clamp_(-_LARGEST, _LARGEST)
            rest[..., i] = dropped.to(torch.float8_e5m2).view(torch.uint8)


def restored(o: Tensor, to: Tensor, rest: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """o and to in `dtype`, with their rests where they were kept."""
    o, to = o.to(dtype), to.to(dtype)
    if not rest.shape[3]:
        return o, to
    dropped = rest.view(torch.float8_e5m2).to(dtype) / SCALE
    return o + dropped[..., 0], to + dropped[..., 1]
