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


def refuse_tangents(inputs: Sequence[object], what: str, remedy: str) -> None:
    """RuntimeError if one of the tensors among `inputs` carries a tangent at the level that is being differentiated: it
    would be dropped."""
    for x in inputs:
        if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError(f"{what} would be dropped without a word: {remedy}")


def refuse_dual_gradients(gradients: Sequence[Tensor | None], layer: str) -> None:
    """RuntimeError if a gradient that comes back to a layer carries a tangent: what the layer has saved carries none,
    and the derivative of its backward would be wrong without a word."""
    if not torch.compiler.is_compiling():
        refuse_tangents(
            gradients,
            f"the tangent of a gradient of {layer}",
            "forward mode over its backward is not supported inside of a dual level; take the tangent inside and the "
            "gradient outside, or torch.func.jvp of torch.func.grad",
        )
