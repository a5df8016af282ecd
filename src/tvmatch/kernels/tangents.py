"""Tangents at the border of functions that differentiate themselves: dual tensors apart, gradients that carry some."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad


def unpack(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Primal and tangent of a dual tensor; of a plain one itself and None.

    Raises RuntimeError for a `vmap` inside of a jvp or a dual level, for which PyTorch has no rule.
    """
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0 and _mapped_inside(x):
        raise RuntimeError(
            "torch.vmap inside of torch.func.jvp or of a dual level: PyTorch cannot take dual tensors apart there. Put "
            "the vmap outside, as in vmap(lambda x, t: jvp(f, (x,), (t,))), or write the batch as a dimension."
        )
    return forward_ad.unpack_dual(x)


def _mapped_inside(x: Tensor) -> bool:
    """Whether the innermost transform of torch.func is a vmap, over this tensor."""
    innermost = torch._C._functorch.peek_interpreter_stack()
    is_vmap = innermost is not None and innermost.key() == torch._C._functorch.TransformType.Vmap
    return is_vmap and torch._C._functorch.is_batchedtensor(x)


def refuse_tangents(gradients: Sequence[Tensor | None], where: str) -> None:
    """RuntimeError if a gradient that comes back to a function carries a tangent: what it has saved carries none, and
    the derivative of its backward would be wrong without a word."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(g is not None and forward_ad.unpack_dual(g).tangent is not None for g in gradients):
        raise RuntimeError(
            f"the tangent of a gradient of {where}: its backward cannot be differentiated in forward mode inside of a "
            "dual level. Take the tangent inside and the gradient outside, or torch.func.jvp of torch.func.grad."
        )
