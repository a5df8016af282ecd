"""What dual attention is measured against. Every entry is a function (q, k, v, tq, tk, tv) -> results, or None.

`products` counts matrix products of one score matrix: 6 forward and 15 backward with tangents, 2 and 5 without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor

from tvmatch.kernels.dual_attention import dual_attention


class Rival(NamedTuple):
    name: str
    run: Callable[..., tuple[Tensor, ...]]
    products: tuple[int, int]  # forward, backward
    differentiable: bool = True
    tangents: bool = True
    error: bool = False  # whether its error against float64 is measured


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in the dtype of the inputs."""
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def exact_jvp(*x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.func.jvp(exact, x[:3], x[3:])


def plain(*x: Tensor) -> tuple[Tensor]:
    return (F.scaled_dot_product_attention(*x[:3]),)


def rivals() -> list[Rival]:
    """All that can be imported here; compiled functions are compiled at their first call."""
    found = [
        Rival("tvmatch", dual_attention, (6, 15), error=True),
        Rival("PyTorch attention without tangents", plain, (2, 5), tangents=False),
        Rival("exact attention, torch.func.jvp", exact_jvp, (6, 15), error=True),
    ]
    compiled = torch.compile(exact_jvp, dynamic=False)
    found.append(Rival("exact attention, torch.func.jvp, compiled", compiled, (6, 15)))
    try:
        from importlib.metadata import version

        from jvp_flash_attention.jvp_attention import JVPAttn
    except ImportError:
        return found

    def flash_jvp(*x: Tensor) -> tuple[Tensor, Tensor]:
        with fwAD.dual_level():
            return tuple(
                fwAD.unpack_dual(JVPAttn.fwd_dual(*(fwAD.make_dual(*pair) for pair in zip(x[:3], x[3:], strict=True))))
            )

    # Its backward does not reach the tangents (its authors say so): only the forward can be compared.
    other = Rival(f"jvp-flash-attention {version('jvp-flash-attention')}", flash_jvp, (6, 15), False, error=True)
    return [*found[:3], other, *found[3:]]
