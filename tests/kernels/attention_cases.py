"""Shared by the tests of dual attention: problems, an independent float64 yardstick, relative errors.

The yardstick is PyTorch's own autograd: ``torch.func.jvp`` through softmax(q k^T) v and reverse mode through that. It
shares no formula with the kernels or with `reference.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

Problem = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def problem(
    B: int, H: int, n_q: int, n_kv: int, D: int, dtype: torch.dtype = torch.float64, *,
    tangents: tuple[bool, bool, bool] = (True, True, True), device: str = "cpu", seed: int = 0,
) -> Problem:  # fmt: skip
    """q, k, v, tq, tk, tv with normal entries; tangents that are switched off are None."""
    generator = torch.Generator().manual_seed(seed)
    rows = (n_q, n_kv, n_kv) * 2
    x = [torch.randn(B, H, n, D, generator=generator, dtype=torch.float64).to(device, dtype) for n in rows]
    return tuple(t if i < 3 or tangents[i - 3] else None for i, t in enumerate(x))


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, causal: bool = False, lengths: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T) v from elementary operators."""
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1), float("-inf"))
    if lengths is not None:
        keys = torch.arange(k.shape[2], device=s.device)
        s = s.masked_fill((keys >= lengths[:, None])[:, None, None], float("-inf"))
    return s.softmax(-1) @ v


def yardstick(
    x: Problem, do: Tensor, dto: Tensor, *, scale: float | None = None, causal: bool = False,
    lengths: Tensor | None = None, dtype: torch.dtype = torch.float64,
) -> list[Tensor]:  # fmt: skip
    """o, to and the gradients of <do, o> + <dto, to> by every tensor that is present, computed in `dtype`."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in x]
    tangents = tuple(torch.zeros_like(p) if t is None else t for p, t in zip(leaves[:3], leaves[3:], strict=True))
    o, to = torch.func.jvp(lambda *a: plain_attention(*a, scale, causal, lengths), tuple(leaves[:3]), tangents)
    present = [t for t in leaves if t is not None]
    grads = torch.autograd.grad((o * do.to(dtype)).sum() + (to * dto.to(dtype)).sum(), present)
    return [o.detach(), to.detach(), *grads]


def relative_errors(results: list[Tensor], exact: list[Tensor]) -> list[float]:
    """||a - b|| / ||b|| for each pair; NaN never passes a comparison.

    A result that vanishes exactly (the gradient by q with a single key) is measured on a thousandth of the largest one.
    """
    floor = 1e-3 * max(b.double().norm().item() for b in exact)
    pairs = zip(results, exact, strict=True)
    return [((a.double() - b.double()).norm() / b.double().norm().clamp_min(floor)).item() for a, b in pairs]


def run(function, x: Problem, do: Tensor, dto: Tensor, **options) -> list[Tensor]:
    """o, to and all gradients through `function` (dual_attention)."""
    leaves = [None if t is None else t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in x]
    o, to = function(*leaves, **options)
    grads = torch.autograd.grad([o, to], [t for t in leaves if t is not None], [do, dto])
    return [o.detach(), to.detach(), *grads]


def dominant_key(D: int, *, device: str = "cpu", seed: int = 0) -> Problem:
    """One key of 256 takes nearly all of the probability, in bfloat16: o and to cancel against what they stand for."""
    x = [t.clone() for t in problem(1, 2, 256, 256, D, device=device, seed=seed)]
    direction = torch.nn.functional.normalize(x[0].mean(2), dim=-1)
    x[0] += 4 * direction[:, :, None]
    x[1][:, :, 5] = 8 * direction * D**0.25
    return tuple(t.to(torch.bfloat16) for t in x)
